"""What one step computes from a batch by default: the model's outputs, and their loss against the targets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from mxtorch._structure import describe, tensors_in
from mxtorch.training.loss_weight import Weigher, Weight, weigher_of

Batch = Any

LABEL_KEYS = ("labels", "label", "targets", "target")
# What a batch of the wrong kind makes a model or a loss raise. Running out of memory is not among them.
_BATCH_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)

_labels_are_checked: ContextVar[bool] = ContextVar("labels_are_checked", default=False)


class StepOutput(NamedTuple):
    """What a step computed.

    Attributes:
        loss: The loss to minimise, a scalar tensor; None for a step that only computes metrics.
        outputs: What metrics compare with the targets: tensors or a structure of them.
        targets: The targets.
        weight: What the loss is a mean of, and so how much it weighs beside the losses of other batches: a number, or a
            scalar tensor, which may stay on the device. 0 where there is nothing to learn from in the batch. Or a
            function of outputs and targets that gives it, as the default steps have it for the losses of torch. None
            takes the number of samples.

    Example:
        A mean over the words of a batch, which weighs as many words as it has:

        >>> def training_step(self, batch):
        ...     outputs = self.model(batch["words"])
        ...     losses = nn.functional.cross_entropy(outputs, batch["next"], reduction="none") * batch["mask"]
        ...     words = batch["mask"].sum()
        ...     return StepOutput(losses.sum() / words, outputs, batch["next"], weight=words)
    """

    loss: Tensor | None
    outputs: Any = None
    targets: Any = None
    weight: Weight | Weigher | None = None


class BatchError(ValueError):
    """A batch or a loss that can't be trained on; the message says why and what to do."""


class LossTypeError(TypeError):
    """What a step gave as its loss is no tensor; the message says what to return."""


class Example(NamedTuple):
    """A batch taken apart: `model(*inputs, **named_inputs)` is compared with `targets`."""

    inputs: tuple[Any, ...]
    named_inputs: dict[str, Any]
    targets: Any


class SupervisedSteps:
    """The three steps that a user of `Trainer` may override.

    Attributes:
        model: The module that is trained.
        loss: `loss(outputs, targets) -> scalar tensor`, or None where the model computes its own loss.
    """

    model: nn.Module
    loss: Callable[..., Tensor] | None

    def training_step(self, batch: Batch) -> Tensor | StepOutput | None:
        """The loss of one batch, a scalar tensor that `backward` can be called on.

        Return a `StepOutput` to have training metrics computed, too, and to say what the loss is a mean of. Return None
        to pass over the batch: it has no part in the step, and a step without any batch is not taken and is counted in
        `skipped_steps`.

        Args:
            batch: What the loader yields, on the device.
        """
        return supervised_step(self.model, self.loss, batch)

    def evaluation_step(self, batch: Batch) -> Tensor | StepOutput:
        """Loss, outputs and targets of one batch of validation data; no gradient is recorded."""
        return supervised_step(self.model, self.loss, batch)

    def prediction_step(self, batch: Batch) -> Any:
        """The model's outputs for one batch. Of an `(x, y)` batch the y is left out."""
        return predictions(self.model, batch)

    def count_samples(self, batch: Batch) -> int | None:
        """The number of samples in a batch; None where it is not known, and the batch counts as one sample.

        It is how much the batch weighs in means where `StepOutput.weight` and the loss do not say it, and what
        `samples_per_second` counts. Override it for batches in which it can't be seen, as of graphs.

        Args:
            batch: What the loader yields, before it is moved to the device.
        """
        return batch_size(batch)


def split_batch(batch: Batch, *, keep_labels: bool = False) -> Example:
    """Take a batch apart.

    `(x, y)` has one input and a target; in a longer tuple or list all but the last are inputs; the entries of a
    dictionary are passed by name (Hugging Face style), its `labels` (or `label`, `targets`, `target`) being the
    target; anything else is an input without a target.

    Args:
        batch: What a loader yields.
        keep_labels: Leave the labels of a dictionary among the inputs, for models that compute their own loss.

    >>> split_batch({"pixels": 1, "labels": 2})
    Example(inputs=(), named_inputs={'pixels': 1}, targets=2)
    """
    if isinstance(batch, (tuple, list)):
        return Example(tuple(batch[:-1]), {}, batch[-1]) if len(batch) > 1 else Example(tuple(batch), {}, None)
    if isinstance(batch, Mapping):
        named = dict(batch)
        key = next((key for key in LABEL_KEYS if key in named), None)
        targets = None if key is None else named[key]
        if key is not None and not keep_labels:
            del named[key]
        return Example((), named, targets)
    return Example((batch,), {}, None)


def batch_size(batch: Batch) -> int | None:
    """The number of samples in a batch, as far as its form tells; None where it does not.

    The length of the first dimension of the targets: inputs may have time or the nodes of several graphs there. Without
    targets, that of the first tensor that has one. Where inputs and targets are lists of one length, as in detection,
    that length.

    >>> batch_size((torch.zeros(50, 8, 3), torch.zeros(8)))  # sequences with the time first
    8
    """
    if type(batch) in (tuple, list) and batch:
        targets = batch[-1]
        if isinstance(targets, Tensor):
            if targets.ndim:
                return targets.shape[0]  # the usual case
        elif _has_one_entry_a_sample(targets) and type(batch[0]) is type(targets) and len(batch[0]) == len(targets):
            return len(targets)
    elif isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        if isinstance(labels, Tensor) and labels.ndim:
            return labels.shape[0]
    return next((tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim > 0), None)


def _has_one_entry_a_sample(targets: Any) -> bool:
    return type(targets) in (tuple, list) and bool(targets) and isinstance(targets[0], (Mapping, list, tuple))


def supervised_step(model: nn.Module, loss: Callable[..., Tensor] | None, batch: Batch) -> StepOutput:
    """Model and loss on a batch: `(x, y)`, `(x1, x2, ..., y)`, or a dictionary passed by name.

    Args:
        model: Called with the inputs of the batch.
        loss: `loss(outputs, targets)`. Without one the model is given the labels as well and must return a `.loss`; or
            it is a detector of torchvision, which is given the targets while it is trained and returns its losses. A
            loss of torch is given the `"out"` of a segmentation network of torchvision.
        batch: What the loader yields, on the model's device.

    Raises:
        BatchError: A label is outside the classes. On an accelerator this is found for the first batch of a pass only.
    """
    if type(batch) in (tuple, list) and len(batch) == 2:  # the usual case, without the general way's cost
        inputs, targets = batch
        if loss is None and _is_of_detection(targets):
            return _detection_step(model, inputs, targets)
        outputs = model(inputs)
    else:
        example = split_batch(batch, keep_labels=loss is None)
        targets = example.targets
        outputs = model(*example.inputs, **example.named_inputs)
    predicted = outputs if isinstance(outputs, Tensor) else _field(outputs, "logits", outputs)
    if loss is None:
        return StepOutput(_field(outputs, "loss", None), predicted, targets)
    weight = weigher_of(loss)
    if weight is not None and isinstance(predicted, Mapping):
        predicted = predicted.get("out", predicted)
    if _labels_are_checked.get():
        _check_class_labels(loss, predicted, targets)
    try:
        return StepOutput(loss(predicted, targets), predicted, targets, weight)
    except IndexError:  # how torch answers a wrong label on the CPU
        _check_class_labels(loss, predicted, targets)
        raise


def _is_of_detection(targets: Any) -> bool:
    """Whether targets are a list of dictionaries with boxes, one for each picture."""
    return (
        type(targets) in (tuple, list)
        and bool(targets)
        and all(isinstance(one, Mapping) and "boxes" in one for one in targets)
    )


def _detection_step(model: nn.Module, pictures: Any, targets: Any) -> StepOutput:
    """The sum of a detector's losses while it is trained; its detections, for metrics, while it is evaluated."""
    if not model.training:
        return StepOutput(None, model(pictures), list(targets))
    losses = model(pictures, targets)
    if not isinstance(losses, Mapping):
        raise BatchError(
            f"loss: got None, targets with boxes, and {describe(losses)} of the model in training; a detector of "
            "torchvision returns a dictionary of losses. Override training_step for another"
        )
    return StepOutput(torch.stack(list(losses.values())).sum(), None, targets)


def predictions(model: nn.Module, batch: Batch) -> Any:
    """The model's outputs for a batch. Of an `(x, y)` batch the y is left out."""
    example = split_batch(batch)
    outputs = model(*example.inputs, **example.named_inputs)
    return _field(outputs, "logits", outputs)


@contextlib.contextmanager
def checked_labels(needed: bool) -> Iterator[None]:
    """In the block, look at class labels before the loss does.

    On CUDA a loss answers a wrong label with a device-side assert, which names nothing and ends the process's use of
    the device. Looking at labels waits for the device, so it is done for the first batch of a pass only.

    Args:
        needed: False does nothing.
    """
    token = _labels_are_checked.set(needed)
    try:
        yield
    finally:
        _labels_are_checked.reset(token)


def weight_of(output: StepOutput) -> Weight | None:
    """What the loss of a step is a mean of; None for the samples of the batch."""
    return output.weight(output.outputs, output.targets) if callable(output.weight) else output.weight


def check_loss(output: StepOutput, *, wants_outputs: bool) -> None:
    """Raise unless a training step gave a loss that can be trained on.

    Raises:
        LossTypeError: A TypeError: the loss is no tensor.
        BatchError: There is no loss, it is no scalar or detached; or there are metrics and nothing for them to compare.
    """
    check_scalar(output.loss, "training_step")
    loss = output.loss
    assert loss is not None
    if not loss.requires_grad:
        raise BatchError(
            "loss: got a loss that is detached from the model's parameters; compute it from the model's outputs "
            "without .detach(), .item(), torch.no_grad() or argmax"
        )
    if wants_outputs and output.outputs is None:
        raise BatchError(
            "train_metrics: training_step returns a loss alone; let it return StepOutput(loss, outputs, targets)"
        )


def check_scalar(loss: Any, step: str) -> None:
    """Raise unless a loss is a scalar tensor.

    Args:
        loss: What a step gave.
        step: The name of the step.

    Raises:
        LossTypeError: A TypeError: the loss is no tensor.
        BatchError: There is no loss, or it is no scalar.
    """
    if loss is None:
        raise BatchError(f"{step}: got None as the loss; return a scalar tensor, or give the Trainer a loss")
    if not isinstance(loss, Tensor):
        raise LossTypeError(
            f"{step}: got {loss!r} as the loss; let it, and the loss function, return a scalar tensor, without .item() "
            "or float()"
        )
    if loss.ndim != 0:
        how = "with .squeeze()" if loss.numel() == 1 else "with .mean() or reduction='mean'"
        raise BatchError(f"loss: got a tensor of shape {list(loss.shape)}; reduce it to a scalar, {how}")


def explain_first_batch(error: Exception, batch: Batch, step: str) -> NoReturn:
    """Raise a ValueError that says what the first batch looked like to a step that could not take it."""
    explained = (torch.OutOfMemoryError, BatchError, LossTypeError)
    if not isinstance(error, _BATCH_ERRORS) or isinstance(error, explained):
        raise error
    raise ValueError(
        f"{step} could not take the first batch, a {describe(batch)}: {type(error).__name__}: {error}. Give batches "
        f"of (inputs, targets), dictionaries of the model's arguments, or override {step}."
    ) from error


def raise_with_advice(error: ValueError, place: str) -> NoReturn:
    """Raise an error of a step again; where batch normalisation had a batch of one sample, with what to do."""
    if "more than 1 value per channel" not in str(error):
        raise error
    raise ValueError(
        f"{place}: a batch of one sample, of which batch normalisation can compute no variance; give the DataLoader "
        f"drop_last=True or another batch_size ({str(error).splitlines()[-1]})"
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
