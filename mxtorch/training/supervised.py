"""What one step computes from a batch, and how it is told that a batch can't be trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from mxtorch.batches import Batch, describe, split_batch

# What a batch of the wrong kind makes a model or loss raise. Running out of memory is not among them.
_BATCH_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)


class StepOutput(NamedTuple):
    """What a step computed: the loss to minimise, and what metrics compare."""

    loss: Tensor | None
    outputs: Any = None
    targets: Any = None


class BatchError(ValueError):
    """A batch or loss that can't be trained on; the message says why and what to do."""


def supervised_step(
    model: nn.Module, loss: Callable[..., Tensor] | None, batch: Batch, *, check_labels: bool = False
) -> StepOutput:
    """Model and loss on a batch: `(x, y)`, `(x1, x2, ..., y)`, or a dictionary passed by name.

    Args:
        model: Called with the batch's inputs.
        loss: `loss(outputs, targets)`. Without one the model is given the labels as well and must return a `.loss`.
        batch: What the loader yields, on the model's device.
        check_labels: Look at the labels before the loss does: on CUDA it would answer bad ones with a device-side
            assert, which names nothing and ends the process's use of the device. It waits for the device.

    Raises:
        BatchError: A label is outside the classes.
    """
    example = split_batch(batch, keep_labels=loss is None)
    outputs = model(*example.inputs, **example.named_inputs)
    predictions = _field(outputs, "logits", outputs)
    if loss is None:
        return StepOutput(_field(outputs, "loss", None), predictions, example.targets)
    if check_labels:
        _check_class_labels(loss, predictions, example.targets)
    try:
        return StepOutput(loss(predictions, example.targets), predictions, example.targets)
    except IndexError:  # how torch answers a bad label on the CPU
        _check_class_labels(loss, predictions, example.targets)
        raise


def predictions(model: nn.Module, batch: Batch) -> Any:
    """The model's outputs for a batch. Of an `(x, y)` batch the y is left out."""
    example = split_batch(batch)
    outputs = model(*example.inputs, **example.named_inputs)
    return _field(outputs, "logits", outputs)


def check_loss(output: StepOutput, *, wants_outputs: bool) -> None:
    """Raise unless a training step gave a loss that can be trained on.

    Raises:
        TypeError: The loss is no tensor.
        BatchError: It is no scalar, or detached; or there are metrics and nothing for them to compare.
    """
    loss = output.loss
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step: got {loss!r} as the loss; return a scalar tensor, or give the Trainer a loss")
    if loss.ndim != 0:
        how = "with .squeeze()" if loss.numel() == 1 else "with .mean() or reduction='mean'"
        raise BatchError(f"loss: got a tensor of shape {list(loss.shape)}; reduce it to a scalar, {how}")
    if not loss.requires_grad:
        raise BatchError(
            "loss: got one that is detached from the model's parameters; compute it from the model's outputs without "
            ".detach(), .item(), torch.no_grad() or argmax"
        )
    if wants_outputs and output.outputs is None:
        raise BatchError(
            "train_metrics: training_step returns a loss alone; let it return StepOutput(loss, outputs, targets)"
        )


def explain_first_batch(error: Exception, batch: Any, step: str) -> NoReturn:
    """Raise a ValueError that says what the first batch looked like to a step that could not take it."""
    if not isinstance(error, _BATCH_ERRORS) or isinstance(error, (torch.OutOfMemoryError, BatchError)):
        raise error
    raise ValueError(
        f"{step} could not take the first batch, a {describe(batch)}: {type(error).__name__}: {error}. Give batches "
        f"of (inputs, targets), dictionaries of the model's arguments, or override {step}."
    ) from error


def _check_class_labels(loss: Any, outputs: Any, targets: Any) -> None:
    if not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or not isinstance(targets, Tensor):
        return
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or targets.is_floating_point():
        return
    classes = outputs.shape[1]
    labels = targets[targets != loss.ignore_index]
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise BatchError(
            f"labels: got {int(labels.min())} to {int(labels.max())}, but the model has {classes} outputs, for classes "
            f"0 to {classes - 1}; give the head as many outputs as there are classes, or number the classes from 0"
        )


def _field(outputs: Any, name: str, default: Any) -> Any:
    """A field of a model's outputs, which may be a dictionary or an object (Hugging Face has both in one)."""
    if isinstance(outputs, Tensor):
        return default
    return outputs.get(name, default) if isinstance(outputs, dict) else getattr(outputs, name, default)
