"""Passes over data in which nothing is trained: evaluation and prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mxtorch._checks import check_data
from mxtorch._structure import concatenate, describe, to_host
from mxtorch.data.sharding import Padding, marked
from mxtorch.training.callback import CallbackList
from mxtorch.training.context import Context
from mxtorch.training.loss_weight import Weight, mean_loss
from mxtorch.training.metrics import MetricBuffer
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import (
    BatchError,
    StepOutput,
    check_scalar,
    checked_labels,
    explain_first_batch,
    split_batch,
    weight_of,
)
from mxtorch.training.trial import in_memory_format

_NONE = object()
Augmentations = Literal["flip"] | Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]]


@torch.no_grad()
def evaluate(
    context: Context,
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    callbacks: CallbackList,
    metrics: Any,
    prefix: str = "val",
    *,
    check: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Loss (that of all batches as one large batch) and metrics of `evaluation_step`; see `Trainer.evaluate`.

    Args:
        context: The model with everything that computes it.
        data: The batches, or several sets of them by name.
        callbacks: They know the weights to be judged, and are called at the start and the end.
        metrics: A `torchmetrics.MetricCollection`, or None.
        prefix: Goes before the names of the figures, with several sets as `prefix/<name>`.
        check: Called before each batch of a validation in `fit`; raises to break the pass off.

    Raises:
        LossTypeError: A TypeError: `evaluation_step` gave a loss that is no tensor.
        ValueError: There is no batch, or nothing to report; the first batch can't be taken; a loss is no scalar.
    """
    if isinstance(data, Mapping):
        parts = [evaluate(context, data[name], callbacks, metrics, f"{prefix}/{name}", check=check) for name in data]
        return {name: value for part in parts for name, value in part.items()}
    check_data(data, "data", passes=1)
    engine = context.engine
    buffer = None if metrics is None else MetricBuffer(metrics)
    losses: list[Tensor] = []
    weights: list[Weight] = []
    first = True

    def compute(host_batch: Any) -> Tensor | StepOutput | None:
        with engine.autocast(), checked_labels(first and engine.asynchronous):
            return context.evaluation_step(engine.move(host_batch))

    with preserved_modes(*context.modules), callbacks.judged_weights(), callbacks.running("evaluate"):
        for module in context.modules:
            module.eval()
        for host_batch in marked(data) if engine.world_size > 1 else data:
            if check is not None:
                check()
            if type(host_batch) is Padding:
                if engine.shards:
                    compute(host_batch.batch)
                continue
            try:
                output = in_memory_format(context, "evaluation_step", compute, host_batch)
                output = output if isinstance(output, StepOutput) else StepOutput(output)
                if output.loss is not None:
                    check_scalar(output.loss, "evaluation_step")
                if output.loss is None and buffer is None and not losses:
                    raise BatchError(nothing_to_report(context))
                if buffer is not None:
                    buffer.update(output.outputs, output.targets)
            except Exception as error:
                if first:
                    explain_first_batch(error, host_batch, "evaluation_step")
                raise
            first = False
            if output.loss is not None:
                losses.append(output.loss)
                weight = weight_of(output)
                weights.append((context.count_samples(host_batch) or 1) if weight is None else weight)
    if engine.agree(not first) is False:
        argument = "data" if check is None else validation_argument(prefix)
        raise ValueError(f"{argument}: got a loader that yields no batches; give it at least one")
    figures: dict[str, float] = {}
    if engine.agree(bool(losses)):
        figures[f"{prefix}/loss"] = mean_loss(losses, weights, engine.gather_values)
    return figures | ({} if buffer is None else buffer.compute(prefix))


def validation_argument(prefix: str) -> str:
    """What `fit` was given as the validation set whose figures have a prefix.

    >>> validation_argument("val"), validation_argument("val/noisy")
    ('val_data', "val_data['noisy']")
    """
    _, _, name = prefix.partition("/")
    return f"val_data[{name!r}]" if name else "val_data"


def nothing_to_report(context: Context) -> str:
    """What to do where `evaluation_step` gives no loss, and there are no metrics."""
    if context.has_own_evaluation_step or not context.has_own_training_step:
        return (
            "evaluation_step: it gives no loss and there are no metrics, so there is nothing to report; return a loss, "
            "or StepOutput(loss, outputs, targets), or give the Trainer metrics"
        )
    return (
        "evaluation_step: training_step is overridden and evaluation_step is not, so validation has no loss; override "
        "evaluation_step too (`return self.training_step(batch)`, if that computes a loss and steps nothing), give the "
        "Trainer a loss or metrics, or leave val_data out"
    )


@torch.no_grad()
def predict(context: Context, data: Iterable[Any], tta: Augmentations = ()) -> Any:
    """The outputs of `prediction_step` for all batches, joined; see `Trainer.predict`."""
    check_data(data, "data", passes=1)
    augmentations = _augmentations(tta)
    parts: list[Any] = []
    engine = context.engine

    def compute(host_batch: Any) -> Any:
        batch = engine.move(host_batch)
        with engine.autocast():
            outputs = context.prediction_step(batch)
            return _mean_over(context, batch, outputs, augmentations) if augmentations else outputs

    with preserved_modes(context.model):
        context.model.eval()
        for host_batch in marked(data) if engine.world_size > 1 else data:
            if type(host_batch) is Padding:
                if engine.shards:
                    compute(host_batch.batch)
                continue
            try:
                outputs = in_memory_format(context, "prediction_step", compute, host_batch)
            except Exception as error:
                if not parts:
                    explain_first_batch(error, host_batch, "prediction_step")
                raise
            parts.append(to_host(outputs))
    if engine.world_size > 1:  # the batches of a step follow one another in the order of the processes
        everywhere = engine.gather_values(parts)
        parts = [part for step in itertools.zip_longest(*everywhere, fillvalue=_NONE) for part in step]
        parts = [part for part in parts if part is not _NONE]
    if not parts:
        raise ValueError("data: got a loader that yields no batches; give it at least one")
    return concatenate(parts)


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


def _mean_over(context: Context, batch: Any, outputs: Any, augmentations: list[Callable[[Tensor], Tensor]]) -> Any:
    """The mean of the outputs of a batch and of its augmentations."""
    inputs = batch if isinstance(batch, Tensor) else split_batch(batch).inputs[0]
    given = [outputs, *(context.prediction_step((augment(inputs), None)) for augment in augmentations)]
    if not all(isinstance(one, Tensor) for one in given):
        raise ValueError(f"tta: the outputs are a {describe(outputs)}; only tensors have a mean")
    return torch.stack(given).mean(0)
