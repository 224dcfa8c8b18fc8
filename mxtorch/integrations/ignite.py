"""The search with Ignite: of an `Engine` that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine
from ignite.utils import convert_tensor
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch._checks import check_loss_function
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find
from mxtorch.training.supervised import StepOutput, supervised_step

if TYPE_CHECKING:
    from typing_extensions import Unpack


def find_lr(
    trainer: Engine,
    to_save: Mapping[str, Any],
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    evaluate: Callable[[Any], Tensor | StepOutput | None] | None = None,
    output_transform: Callable[[Any], Tensor | float] = lambda output: output,
    schedule: Schedule = "constant",
    **options: Unpack[SearchOptions],
) -> LRFinderResult:
    """Find a learning rate for an Ignite trainer.

    The trainer's process function takes the steps; no event is fired, so that handlers (schedulers, loggers,
    checkpoints) are not called. Afterwards everything that can be reached from `to_save` and from the process function
    is bit for bit what it was, as are the engine's state and the random generators.

    Args:
        trainer: An engine whose process function takes a step of the optimizer from a batch, as that of
            `create_supervised_trainer` does.
        to_save: What `FastaiLRFinder.attach` is given: `{"model": ..., "optimizer": ...}`, and what else a step
            changes.
        train_data: A loader, as for `trainer.run`.
        val_data: Held-out samples come from it. Without it a part of the training data is set aside.
        loss: `loss(outputs, targets)`, to judge held-out batches of `(inputs, targets)` or dictionaries; None for
            models that return their own `.loss`.
        evaluate: The loss of a held-out batch, where `loss` is not all there is to it.
        output_transform: The loss in what the process function returns.
        schedule: What the rate is for.
        **options: As for `mxtorch.find_lr`.

    Returns:
        The suggestion with its interval and its status, and the data behind them.

    Raises:
        ValueError: An argument is wrong.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> inputs = torch.randn(256, 4)
        >>> data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        >>> loader = torch.utils.data.DataLoader(data, 16)
        >>> model, loss = nn.Linear(4, 1), nn.MSELoss()
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> trainer = create_supervised_trainer(model, optimizer, loss)
        >>> to_save = {"model": model, "optimizer": optimizer}
        >>> find_lr(trainer, to_save, loader, loss=loss, epochs=5, num_steps=600).status
        'ok'
    """
    if not isinstance(trainer, Engine):
        raise TypeError(f"trainer: got {trainer!r}; give an ignite.engine.Engine")
    for name, kind in (("model", nn.Module), ("optimizer", Optimizer)):
        if not isinstance(to_save.get(name), kind):
            raise TypeError(f"to_save: its {name!r} is {to_save.get(name)!r}; give {{'model': ..., 'optimizer': ...}}")
    check_loss_function(loss)
    model, optimizer = to_save["model"], to_save["optimizer"]
    process = trainer._process_function
    state = trainer.state
    device = next(model.parameters()).device

    def step(batch: Any) -> Tensor | float | None:
        state.iteration += 1
        state.batch = batch
        state.output = process(trainer, batch)
        return None if state.output is None else output_transform(state.output)

    def judged(batch: Any) -> StepOutput:
        return supervised_step(model, loss, convert_tensor(batch, device=device))

    others = [part for name, part in to_save.items() if name not in ("model", "optimizer")]
    loss_modules = [loss] if isinstance(loss, nn.Module) else []
    return find(
        step,
        optimizer,
        train_data,
        state=(model, *loss_modules, *others, state, process),
        evaluate=judged if evaluate is None else evaluate,
        val_data=val_data,
        loss=loss if evaluate is None else None,
        schedule=schedule,
        **options,
    )
