"""Passes over data in which nothing is trained: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mxtorch import batches, rate_free, state
from mxtorch.checks import check_data
from mxtorch.metrics import MetricBuffer
from mxtorch.steps import StepOutput, explain_first_batch

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

Augmentations = str | Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]]


@torch.no_grad()
def evaluate(trainer: Trainer, data: Iterable[Any], prefix: str) -> dict[str, float]:
    """Loss (the mean over samples) and metrics of `evaluation_step` on data; see `Trainer.evaluate`."""
    check_data(data, "data", passes=1)
    metrics = None if trainer.metrics is None else MetricBuffer(trainer.metrics)
    losses: list[Tensor] = []
    sizes: list[int] = []
    with (
        state.preserved_modes(trainer.model),
        rate_free.evaluation_point(trainer.optimizers),
        trainer.callbacks.running("evaluate", trainer),
    ):
        trainer.model.eval()
        trainer.first_batch = True
        for host_batch in data:
            trainer.check_interruption()
            batch = trainer.engine.move(host_batch)
            try:
                with trainer.engine.autocast():
                    output = trainer.evaluation_step(batch)
                if isinstance(output, Tensor):
                    output = StepOutput(output)
                if metrics is not None:
                    metrics.update(output.outputs, output.targets)
            except Exception as error:
                if trainer.first_batch:
                    explain_first_batch(error, batch, "evaluation_step")
                raise
            trainer.first_batch = False
            if output.loss is not None:
                losses.append(output.loss)
                sizes.append(batches.batch_size(host_batch) or 1)
    if trainer.first_batch:
        raise ValueError("data: got a loader that yields no batches; give it at least one")
    figures: dict[str, float] = {}
    if losses:
        weights = torch.tensor(sizes, dtype=torch.float64)
        values = torch.stack(losses).to("cpu", torch.float64)
        figures[f"{prefix}/loss"] = float((values * weights).sum() / weights.sum())
    return figures | ({} if metrics is None else metrics.compute(prefix))


@torch.no_grad()
def predict(trainer: Trainer, data: Iterable[Any], tta: Augmentations = ()) -> Any:
    """The outputs of `prediction_step` for all batches, joined; see `Trainer.predict`."""
    check_data(data, "data", passes=1)
    augmentations = _augmentations(tta)
    parts: list[Any] = []
    with state.preserved_modes(trainer.model), rate_free.evaluation_point(trainer.optimizers):
        trainer.model.eval()
        for host_batch in data:
            trainer.check_interruption()
            batch = trainer.engine.move(host_batch)
            try:
                with trainer.engine.autocast():
                    outputs = trainer.prediction_step(batch)
                    if augmentations:
                        outputs = _mean_over(trainer, batch, outputs, augmentations)
            except Exception as error:
                if not parts:
                    explain_first_batch(error, batch, "prediction_step")
                raise
            parts.append(batches.to_host(outputs))
    if not parts:
        raise ValueError("data: got a loader that yields no batches; give it at least one")
    return batches.concatenate(parts)


def _augmentations(tta: Augmentations) -> list[Callable[[Tensor], Tensor]]:
    if isinstance(tta, str):
        if tta != "flip":
            raise ValueError(f"tta: got {tta!r}; give 'flip', or functions of a batch of inputs")
        return [_flipped]
    functions = [tta] if callable(tta) else list(tta)
    if not all(callable(function) for function in functions):
        raise TypeError(f"tta: got {tta!r}; give 'flip', or functions of a batch of inputs")
    return functions


def _flipped(pictures: Tensor) -> Tensor:
    if pictures.ndim != 4:
        raise ValueError(f"tta: 'flip' takes pictures [N, C, H, W]; got {list(pictures.shape)}")
    return pictures.flip(-1)


def _mean_over(trainer: Trainer, batch: Any, outputs: Any, augmentations: list[Callable[[Tensor], Tensor]]) -> Any:
    """The mean of the outputs of a batch and of its augmentations."""
    inputs = batch if isinstance(batch, Tensor) else batches.split_batch(batch).inputs[0]
    given = [outputs, *(trainer.prediction_step((augment(inputs), None)) for augment in augmentations)]
    if not all(isinstance(one, Tensor) for one in given):
        raise ValueError(f"tta: the outputs are a {batches.describe(outputs)}; only tensors have a mean")
    return torch.stack(given).mean(0)
