"""One pass over data: probabilities, targets, and the pictures of the samples with the highest losses."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mxtorch._checks import check_data, check_integer
from mxtorch._structure import describe, to_host
from mxtorch.data.class_names import class_names
from mxtorch.interpretation.result import Interpretation
from mxtorch.training.supervised import split_batch
from mxtorch.training.trainer_view import TrainerView


def interpret(
    trainer: TrainerView, val_data: Iterable[Any], *, classes: Sequence[str] | None = None, pictures: int = 12
) -> Interpretation:
    """Look at a classifier's predictions: confusion, precision and recall, highest losses, calibration.

    Args:
        trainer: A trainer, or anything else that has a `model` and a `predict`.
        val_data: Batches with class numbers as targets. They are read once, and `predict` is called for each batch.
        classes: Names of the classes. By default those of the data set (`.classes`) or of the model, else numbers.
        pictures: How many inputs with the highest losses are kept, where inputs are pictures [N, 1 or 3, H, W].

    Returns:
        Probabilities and targets, with figures, tables and plots made from them.

    Raises:
        ValueError: There are no batches; the outputs are not [N, classes]; the targets are not class numbers below the
            number of outputs; the number of names is wrong.

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
    worst: list[tuple[float, int, Tensor]] = []  # a heap, the lowest loss first; the negative index breaks ties
    count = 0
    for batch in val_data:
        logits, labels = _logits(_predicted(trainer, batch, first=not outputs)), _labels(batch)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise ValueError(
                f"val_data: got class numbers {int(labels.min())} to {int(labels.max())}; the model has "
                f"{logits.shape[1]} outputs, so give 0 to {logits.shape[1] - 1}"
            )
        losses = F.cross_entropy(logits, labels, reduction="none").tolist()
        for index, (loss, picture) in enumerate(zip(losses, _pictures(batch, len(labels)), strict=True)):
            if picture is not None and pictures:
                push = heapq.heappush if len(worst) < pictures else heapq.heappushpop
                push(worst, (loss, -(count + index), picture.detach().cpu().clone()))
        outputs.append(logits)
        targets.append(labels)
        count += len(labels)
    if not outputs:
        raise ValueError("val_data: got a loader that yields no batches; give it at least one")
    number = outputs[0].shape[1]
    return Interpretation(
        torch.cat(outputs).softmax(1),
        torch.cat(targets),
        list(class_names(classes, val_data, trainer.model, number) or map(str, range(number))),
        {-index: picture for _, index, picture in sorted(worst, key=lambda entry: (-entry[0], -entry[1]))},
    )


def _predicted(trainer: TrainerView, batch: Any, *, first: bool) -> Any:
    """The outputs for one batch."""
    try:
        return trainer.predict([batch])
    except ValueError as error:
        if first or error.__cause__ is None:
            raise
        raise error.__cause__ from None  # `predict` took a later batch for its first one, and explained it as such


def _logits(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(f"the outputs are a {describe(outputs)}; interpret takes logits [N, classes]")
    return outputs


def _labels(batch: Any) -> Tensor:
    targets = to_host(split_batch(batch).targets)
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(f"the targets are a {describe(targets)}; interpret takes class numbers [N]")
    return targets.long()


def _pictures(batch: Any, samples: int) -> Iterable[Tensor | None]:
    """The picture of each sample, where the first input is a batch of pictures; else None for each."""
    inputs = next(iter(split_batch(batch).inputs), None)
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3):
        return inputs
    return [None] * samples
