"""The search in fastai: of a `Learner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn

from mxtorch import schedules
from mxtorch.lr_finder.numbers import NUMBERS, USUAL_RATE_OF_OTHERS, USUAL_RATES
from mxtorch.lr_finder.result import LRFinderResult, is_constant
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Callbacks of these modules show, record and keep; none changes what a step computes.
_WATCHING = ("fastai.callback.progress", "fastai.callback.tracker", "fastai.callback.tensorboard")
_LOGGING = ("fastai.callback.wandb", "fastai.callback.comet", "fastai.callback.neptune", "fastai.callback.azureml")
# The shape of `Learner.fit_one_cycle`; fastai's momentum, which goes the other way, is left at its default.
FIT_ONE_CYCLE = schedules.OneCycle(pct_start=0.25, div_factor=25.0, final_div_factor=4000.0)


def find_lr(learn: Learner, *, schedule: Schedule = FIT_ONE_CYCLE, **options: Unpack[SearchOptions]) -> LRFinderResult:
    """Find a learning rate for a fastai Learner.

    A step is the learner's `one_batch`, with the callbacks that change it (mixed precision, mixup, clipping); those
    that show, record and save are not called. Afterwards the learner, its data and the random generators are bit for
    bit what they were, and it has no optimizer, if it had none.

    Args:
        learn: The learner, frozen or not. Of discriminative rates it keeps the ratios that its optimizer has.
        schedule: What the rate is for: the shape of `fit_one_cycle` by default, whose `lr_max` is then the rate. Give
            `"constant"` for `fit`.
        **options: As for `mxtorch.find_lr`.

    Returns:
        The suggestion, for `learn.fit_one_cycle(epochs, lr_max=found.suggestion)`, with its interval and its status,
        and the data behind them.

    Raises:
        TypeError: It is no learner.

    Example:
        >>> import torch
        >>> from fastai.data.core import DataLoaders
        >>> inputs = torch.randn(256, 4)
        >>> data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        >>> loaders = DataLoaders(*(torch.utils.data.DataLoader(data, 16) for _ in range(2)))
        >>> learn = Learner(loaders, nn.Linear(4, 1), loss_func=nn.MSELoss(), cbs=[])
        >>> find_lr(learn, epochs=5, num_steps=600).status
        'ok'
    """
    if not isinstance(learn, Learner):
        raise TypeError(f"learn: got {learn!r}; give a fastai Learner")
    kept = {name: vars(learn)[name] for name in ("opt", "lr")}
    if learn.opt is None:
        learn.create_opt()
    try:
        return _search(learn, schedule, options)
    finally:
        vars(learn).update(kept)


def _search(learn: Learner, schedule: Schedule, options: SearchOptions) -> LRFinderResult:
    wrapped = isinstance(learn.opt, OptimWrapper)
    steps = _Steps(learn)
    loss_modules = [learn.loss_func] if isinstance(learn.loss_func, nn.Module) else []
    return find(
        steps.step,
        learn.opt.opt if wrapped else _Hypers(learn.opt),
        learn.dls.train,
        state=(learn.model, *loss_modules, learn),
        evaluate=steps.evaluate,
        val_data=learn.dls.valid if len(learn.dls.loaders) > 1 else None,
        schedule=schedule,
        usual_lr=None if wrapped else _usual_rate(learn, schedule),
        begin=steps.begin,
        **options,
    )


class _Hypers:
    """The hyper-parameters of an optimizer of fastai, which each step reads, as parameter groups."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = list(optimizer.hypers)


class _Steps:
    """What the learner's loop does with a batch."""

    def __init__(self, learn: Learner) -> None:
        self._learn = learn
        self._index = 0

    def begin(self) -> None:
        """The start of the first epoch, without callbacks that watch."""
        learn = self._learn
        for callback in [one for one in learn.cbs if _only_watches(one)]:
            learn.cbs.remove(callback)
        if learn.wd is not None:  # as fit does
            learn.opt.set_hypers(wd=learn.wd)
        self._index = 0
        learn.n_epoch, learn.epoch = 1, 0
        learn.dl = learn.dls.train
        learn.n_iter = len(learn.dl)
        for event in ("before_fit", "before_epoch", "before_train"):
            learn(event)

    def step(self, batch: Any) -> Tensor:
        """One step of the optimizer."""
        self._learn.one_batch(self._index, batch)
        self._index += 1
        return self._loss()

    def evaluate(self, batch: Any) -> Tensor:
        """The loss of a batch, as in a validation."""
        learn = self._learn
        learn.training = False
        try:
            learn.one_batch(0, batch)
        finally:
            learn.training = True
        return self._loss()

    def _loss(self) -> Tensor:
        loss: Tensor = self._learn.loss
        return loss.detach().as_subclass(Tensor)


def _only_watches(callback: Callback) -> bool:
    module = type(callback).__module__
    return type(callback).__name__ == "Recorder" or module.startswith((*_WATCHING, *_LOGGING))


def _usual_rate(learn: Learner, schedule: Schedule) -> float:
    """The usual rate of an optimizer of fastai, by the name of the function that makes it."""
    function = getattr(learn.opt_func, "func", learn.opt_func)
    name = {"RMSProp": "RMSprop"}.get(function.__name__, function.__name__)
    usual = USUAL_RATES.get(name, USUAL_RATE_OF_OTHERS)
    return usual if is_constant(schedule) else usual * NUMBERS.prior_peak_factor
