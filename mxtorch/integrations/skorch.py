"""The search with skorch: of a `NeuralNet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from skorch import NeuralNet
from skorch.dataset import unpack_data
from torch import Tensor, nn

from mxtorch.checkpointing.random_state import raw_random_state, set_raw_random_state
from mxtorch.integrations.rates import schedule_in_force
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find

if TYPE_CHECKING:
    from typing_extensions import Unpack


def find_lr(
    net: NeuralNet, X: Any, y: Any = None, *, schedule: Schedule | None = None, **options: Unpack[SearchOptions]
) -> LRFinderResult:
    """Find a learning rate for a skorch net.

    `fit` makes a new module each time, so the search makes one as `fit` would, from a clone of the net: the net itself
    is not touched. With `warm_start=True` and a net that is initialised the search goes on from its module, and puts
    everything back. A step is the net's `train_step`; held-out samples are those of its `train_split`. Callbacks are
    called for gradients only, as those that clip them; rates that `LRScheduler` sets are not, so give the schedule. The
    random generators are afterwards what they were: `fit` begins with the weights that the search began with.

    Args:
        net: A net with one optimizer.
        X: As for `net.fit`.
        y: As for `net.fit`.
        schedule: What the rate is for. Left out, that of the `ScheduledOptim` which the net makes, or constant.
        **options: As for `mxtorch.find_lr`. Without `epochs` and `training_steps` the length is `net.max_epochs`.

    Returns:
        The suggestion, for `net.set_params(lr=...)`, with its interval and its status, and the data behind them.

    Raises:
        ValueError: The net has several optimizers.
        TypeError: It is no net.

    Example:
        >>> import numpy, torch
        >>> from skorch import NeuralNetRegressor
        >>> X = numpy.random.default_rng(0).normal(size=(256, 4)).astype("float32")
        >>> net = NeuralNetRegressor(torch.nn.Linear(4, 1), optimizer=torch.optim.Adam, batch_size=16, max_epochs=5)
        >>> found = find_lr(net, X, X.sum(1, keepdims=True), num_steps=600)
        >>> found.status
        'ok'
        >>> _ = net.set_params(lr=found.suggestion)
    """
    if not isinstance(net, NeuralNet):
        raise TypeError(f"net: got {net!r}; give a skorch.NeuralNet")
    random_state = raw_random_state()
    try:
        goes_on = net.warm_start and net.initialized_
        searched = net if goes_on else clone(net).initialize()
        return _search(searched, X, y, schedule, options)
    finally:
        set_raw_random_state(random_state)


def _search(net: NeuralNet, X: Any, y: Any, schedule: Schedule | None, options: SearchOptions) -> LRFinderResult:
    if len(net._optimizers) != 1:
        raise ValueError(f"net: it has {len(net._optimizers)} optimizers, {', '.join(net._optimizers)}; give it one")
    optimizer = getattr(net, net._optimizers[0] + "_")
    net.check_data(X, y)
    train_set, valid_set = net.get_split_datasets(X, y)
    if options.get("epochs") is None and options.get("training_steps") is None:
        options = options | {"epochs": net.max_epochs}

    def step(batch: Any) -> Tensor:
        loss: Tensor = net.train_step(batch)["loss"]
        return loss

    def evaluate(batch: Any) -> Tensor:
        inputs, targets = unpack_data(batch)
        loss: Tensor = net.get_loss(net.infer(inputs), targets, X=inputs, training=False)
        return loss

    parts = [getattr(net, name + "_") for name in (*net._modules, *net._criteria)]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return find(
        step,
        optimizer,
        net.get_iterator(train_set, training=True),
        state=(*modules, net.callbacks_),
        evaluate=evaluate,
        val_data=None if valid_set is None else net.get_iterator(valid_set, training=False),
        schedule=schedule_in_force(optimizer, []) if schedule is None else schedule,
        **options,
    )
