"""One pass over data: probabilities, targets, and the pictures of the samples with the highest losses."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mxtorch._checks import check_data, check_integer
from mxtorch._structure import describe, to_host
from mxtorch.data.class_names import class_names
from mxtorch.interpretation.result import Interpretation
from mxtorch.training.supervised import split_batch
from mxtorch.training.trainer_view import TrainerView

# The class number that torch's cross_entropy and nll_loss ignore by default.
IGNORED_BY_DEFAULT = -100


def interpret(
    trainer: TrainerView, val_data: Iterable[Any], *, classes: Sequence[str] | None = None, pictures: int = 12
) -> Interpretation:
    """Analyse the predictions of a classifier: confusion, precision and recall, highest losses, calibration.

    Args:
        trainer: A trainer, or another object with `model` and `predict`.
        val_data: Batches with class numbers as targets. They are read once, and `predict` is called for each batch.
            Samples with the class number that the loss ignores (`ignore_index`, -100 by default) are left out.
        classes: Names of the classes; by default `.classes` of the data set or of the model, or the class numbers.
        pictures: The number of inputs with the highest losses that are kept, if inputs are pictures [N, 1 or 3, H, W].

    Returns:
        Probabilities and targets, and the figures, tables and plots that are computed from them.

    Raises:
        ValueError: There are no batches, or only samples that the loss ignores; the outputs are not [N, classes]; the
            targets are not class numbers below the number of outputs (for example, there are several labels for each
            sample); the number of names is wrong, or a name occurs twice.

    Example:
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> net = nn.Linear(4, 2)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), progress=False)
        >>> result = interpret(trainer, [(torch.randn(16, 4), torch.randint(2, (16,)))], classes=["cat", "dog"])
        >>> int(result.confusion.sum()), result.classes
        (16, ['cat', 'dog'])
    """
    check_data(val_data, "val_data", passes=1)
    check_integer(pictures, "pictures", at_least=0)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    samples: list[Tensor] = []
    worst: list[
        tuple[float, int, Tensor]
    ] = []  # a heap with the lowest loss first; for equal losses, the negative number decides
    count = 0
    loss_function = getattr(trainer, "loss", None)
    ignored = _ignored_label(loss_function)
    for batch in val_data:
        logits, labels = _logits(_predicted(trainer, batch, first=not outputs)), _labels(batch)
        kept = torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored
        numbers = count + kept.nonzero()[:, 0]
        count += len(labels)
        logits, labels = logits[kept], labels[kept]
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise ValueError(
                f"val_data: got class numbers {int(labels.min())} to {int(labels.max())}; the model has "
                f"{logits.shape[1]} outputs, so give 0 to {logits.shape[1] - 1}"
            )
        losses = F.cross_entropy(logits, labels, reduction="none").tolist()
        inputs = _pictures(batch)
        for loss, number, place in zip(losses, numbers.tolist(), kept.nonzero()[:, 0].tolist(), strict=True):
            if inputs is not None and pictures:
                push = heapq.heappush if len(worst) < pictures else heapq.heappushpop
                push(worst, (loss, -number, inputs[place].detach().cpu().clone()))
        outputs.append(logits)
        targets.append(labels)
        samples.append(numbers)
    if not outputs:
        raise ValueError("val_data: got a loader that yields no batches; give it at least one")
    all_outputs, all_targets = torch.cat(outputs), torch.cat(targets)
    if not len(all_targets):
        raise ValueError(f"val_data: every label is {ignored}, which the loss ignores; give samples with a class")
    number = all_outputs.shape[1]
    return Interpretation(
        all_outputs.softmax(1),
        all_targets,
        list(class_names(classes, val_data, trainer.model, number) or map(str, range(number))),
        {-index: picture for _, index, picture in sorted(worst, key=lambda entry: (-entry[0], -entry[1]))},
        torch.cat(samples),
        count - len(all_targets),
        _loss(loss_function, all_outputs, all_targets),
    )


def _ignored_label(loss: Any) -> int | None:
    """The class number that a loss ignores; None if it ignores none."""
    if isinstance(loss, functools.partial) and "ignore_index" in loss.keywords:
        return int(loss.keywords["ignore_index"])
    function = loss.func if isinstance(loss, functools.partial) else loss
    if function in (F.cross_entropy, F.nll_loss):
        return IGNORED_BY_DEFAULT
    number = getattr(loss, "ignore_index", None)
    return number if isinstance(number, int) else None


def _loss(loss: Any, outputs: Tensor, targets: Tensor) -> float | None:
    """The loss of the trainer over all samples at once; None if it is not torch's mean cross-entropy.

    Like `val/loss` of `evaluate`, it includes class weights and label smoothing.
    """
    if not isinstance(loss, nn.CrossEntropyLoss) or loss.reduction != "mean":
        return None
    device = outputs.device if loss.weight is None else loss.weight.device
    with torch.no_grad():
        return float(loss(outputs.to(device), targets.to(device)))


def _predicted(trainer: TrainerView, batch: Any, *, first: bool) -> Any:
    """The outputs for one batch."""
    try:
        return trainer.predict([batch])
    except ValueError as error:
        if first or error.__cause__ is None:
            raise
        # `predict` explains every error as one of its first batch, which is wrong for a later batch.
        raise error.__cause__ from None


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] == 1:
        raise ValueError(
            f"the outputs are a {describe(outputs)}; interpret needs logits [N, classes] of at least two classes. One "
            "output is a number, or the logit of one class"
        )
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ValueError(f"the outputs are a {describe(outputs)}; interpret needs logits [N, classes]")
    return outputs


def _labels(batch: Any) -> Tensor:
    targets = to_host(split_batch(batch).targets)
    if isinstance(targets, Tensor) and targets.ndim == 2:
        raise ValueError(
            f"the targets are a {describe(targets)}, several labels or numbers for each sample; interpret needs class "
            "numbers [N], because a confusion matrix needs one class for each sample. For several labels, give the "
            "Trainer metrics of torchmetrics"
        )
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(f"the targets are a {describe(targets)}; interpret needs class numbers [N]")
    return targets.long()


def _pictures(batch: Any) -> Tensor | None:
    """The first input if it is a batch of pictures; otherwise None."""
    inputs = next(iter(split_batch(batch).inputs), None)
    return inputs if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3) else None
