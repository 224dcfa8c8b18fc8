"""The search with Accelerate: of what `Accelerator.prepare` returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch._checks import check_loss_function, check_parameters, positive_rate
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find
from mxtorch.training.supervised import StepOutput, supervised_step

if TYPE_CHECKING:
    from typing_extensions import Unpack


def find_lr(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    schedule: Schedule = "constant",
    clip_grad_norm: float | None = None,
    **options: Unpack[SearchOptions],
) -> LRFinderResult:
    """Find a learning rate for a loop with Accelerate.

    A step is what such a loop does: the model's loss, `accelerator.backward`, `accelerator.clip_grad_norm_`, the
    optimizer's step; in the accelerator's precision, with its gradient accumulation. A loop that does more can be given
    to `mxtorch.lr_finder.find`. Afterwards everything is bit for bit what it was.

    Args:
        accelerator: Of a single process.
        model: As `accelerator.prepare` returned it.
        optimizer: Likewise; it may wrap a `ScheduledOptim`.
        train_data: Likewise: a loader of `(inputs, targets)`, or of dictionaries of the model's arguments.
        val_data: Likewise; held-out samples come from it. Without it a part of the training data is set aside.
        loss: `loss(outputs, targets) -> scalar tensor`; None for models that return their own `.loss`.
        schedule: What the rate is for.
        clip_grad_norm: What the loop gives to `accelerator.clip_grad_norm_`.
        **options: As for `mxtorch.find_lr`.

    Returns:
        The suggestion with its interval and its status, and the data behind them.

    Raises:
        ValueError: Several processes train, or an argument is wrong.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch
        >>> accelerator = Accelerator(cpu=True)
        >>> inputs = torch.randn(256, 4)
        >>> data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(data, 16))
        >>> found = find_lr(accelerator, model, optimizer, loader, loss=nn.MSELoss(), epochs=5, num_steps=600)
        >>> found.status
        'ok'
    """
    if accelerator.num_processes > 1:
        raise ValueError(
            f"accelerator: it trains in {accelerator.num_processes} processes; find the rate in one, then train"
        )
    check_loss_function(loss)
    loss_module = loss if isinstance(loss, nn.Module) else None
    check_parameters(model, loss_module, optimizer)
    clip = None if clip_grad_norm is None else positive_rate(clip_grad_norm, "clip_grad_norm")
    accumulate = accelerator.gradient_accumulation_steps

    def output_of(batch: Any) -> StepOutput:
        with accelerator.autocast():
            return supervised_step(model, loss, batch)

    def step(batches: Any) -> Tensor:
        window = batches if accumulate > 1 else [batches]
        losses: list[Tensor] = []
        optimizer.zero_grad()
        for place, batch in enumerate(window):
            # What accelerator.accumulate does, by the place in the window and not by a count of its own.
            accelerator.gradient_state._set_sync_gradients(place == len(window) - 1)
            found = output_of(batch).loss
            assert found is not None
            accelerator.backward(found)
            losses.append(found.detach())
        if clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return sum(losses[1:], start=losses[0]) / len(losses)

    return find(
        step,
        optimizer,
        train_data,
        state=(model, *([] if loss_module is None else [loss_module]), accelerator),
        evaluate=output_of,
        val_data=val_data,
        loss=loss,
        schedule=schedule,
        accumulate=accumulate,
        **options,
    )
