"""What the loss of a batch is a mean of, which is how much it weighs in a mean over several batches.

A mean of batch means is the mean over all samples only if each batch weighs what its own loss was divided by: the
samples in the usual case, the class weights of the targets in `CrossEntropyLoss(weight=...)`, the targets that are not
ignored, the elements in `MSELoss`. A loss with `reduction="sum"` was divided by nothing: such losses are added up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Targets of at most this many elements are kept until the loss is read, and counted all at once: a count costs some
# microseconds in a step, which a large batch does not feel.
MOST_KEPT_ELEMENTS = 4096


class AddsUp:
    """The weight of a loss that is a sum (`reduction="sum"`): the loss of several batches is the sum of theirs."""

    def __repr__(self) -> str:
        return "ADDS_UP"


ADDS_UP = AddsUp()


class CountedTargets:
    """The weight of a batch of class labels: how many are not ignored, or the sum of their classes' weights.

    Args:
        targets: Class labels, integers of any shape.
        loss: Has `ignore_index`, the label that does not count, and `weight`, one for each class [C], or None for 1.
    """

    __slots__ = ("loss", "targets")

    def __init__(self, targets: Tensor, loss: Any) -> None:
        self.targets, self.loss = targets, loss

    def value(self) -> Tensor:
        """The weight, a scalar tensor on the device of the targets."""
        return _counts(self.targets.reshape(1, -1), self.loss)[0]


Weight = float | Tensor | AddsUp | CountedTargets
Weigher = Callable[[Any, Any], Weight]


def weigher_of(loss: Any) -> Weigher | None:
    """A function of outputs and targets that gives what `loss` is a mean of there; None for an unknown loss.

    Known are the losses of torch that take outputs and targets, as modules, functions of `torch.nn.functional`, and
    `functools.partial` of these; a subclass that has a `forward` of its own is unknown.

    >>> weigher_of(nn.CrossEntropyLoss())(torch.zeros(3, 5), torch.tensor([0, -100, 4])).value()
    tensor(2)
    >>> weigher_of(nn.MSELoss())(torch.zeros(3, 5), torch.zeros(3, 5))
    15
    """
    if isinstance(loss, nn.Module):
        rule = _RULES.get(type(loss).forward)
    elif type(loss) in (functools.partial, FunctionType):
        loss = _settings_of(loss)
        rule = None if loss is None else loss.rule
    else:
        rule = None
    return None if rule is None else functools.partial(rule, loss)


class _Settings:
    """What a function of torch is called with, by the names that its module has."""

    reduction, weight, ignore_index = "mean", None, -100

    def __init__(self, function: Any, settings: dict[str, Any]) -> None:
        self.rule = _RULES[function]
        vars(self).update(settings)


@functools.lru_cache(maxsize=64)
def _settings_of(loss: Any) -> _Settings | None:
    given = loss if isinstance(loss, functools.partial) else functools.partial(loss)
    return _Settings(given.func, given.keywords) if given.func in _RULES and not given.args else None


def base_of(loss: Any) -> Any:
    """The class of torch that a loss is an instance of, or whose function it is; None for another loss."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    for module, plain in (*_BY_LABELS, *_BY_ROWS, *_BY_ELEMENTS):
        if isinstance(loss, module) or function is plain:
            return module
    return None


def as_scalar(weight: Weight) -> float | Tensor:
    """The weight as a number or a scalar tensor; 1 for a loss that is a sum."""
    if isinstance(weight, CountedTargets):
        return weight.value()
    return 1.0 if isinstance(weight, AddsUp) else weight


def read_weights(weights: Sequence[Weight]) -> list[float]:
    """The weights as numbers; those on a device are read all at once."""
    read: list[float] = [0.0] * len(weights)
    kinds: dict[Any, list[int]] = {}
    waiting: list[tuple[list[int], Tensor]] = []
    for index, weight in enumerate(weights):
        if isinstance(weight, CountedTargets) and weight.loss.weight is None:
            kinds.setdefault((weight.targets.shape, weight.loss.ignore_index), []).append(index)
        elif isinstance(weight, CountedTargets):  # one by one: the last digits of a sum may depend on its neighbours
            waiting.append(([index], weight.value().reshape(1)))
        elif isinstance(weight, Tensor):
            waiting.append(([index], weight.detach().reshape(1)))
        else:
            read[index] = 1 if isinstance(weight, AddsUp) else weight
    for places in kinds.values():
        counted: list[Any] = [weights[place] for place in places]
        rows = torch.stack([one.targets for one in counted]).reshape(len(counted), -1)
        waiting.append((places, _counts(rows, counted[0].loss)))
    if waiting:
        if len({(tensor.dtype, tensor.device) for _, tensor in waiting}) == 1:
            numbers = torch.cat([tensor for _, tensor in waiting]).tolist()
        else:
            numbers = [number for _, tensor in waiting for number in tensor.tolist()]
        places = [place for group, _ in waiting for place in group]
        for place, number in zip(places, numbers, strict=True):
            read[place] = number
    return read


def mean_loss(
    losses: Sequence[Tensor],
    weights: Sequence[Weight],
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> float:
    """The loss of several batches as that of one large batch: the weighted mean, or the sum where losses are sums.

    Args:
        losses: Scalar tensors.
        weights: What each is a mean of. Batches that weigh nothing have no part in it.
        gather: Gives what all processes gave it, of which each has batches of its own.

    Returns:
        NaN where no batch weighs anything, as torch has it.
    """
    everywhere = gather(
        (
            read_weights(weights),
            torch.stack(list(losses)).to("cpu", torch.float64) if losses else torch.zeros(0, dtype=torch.float64),
            any(isinstance(weight, AddsUp) for weight in weights),
        )
    )
    read = torch.tensor([weight for own, _, _ in everywhere for weight in own], dtype=torch.float64)
    values = torch.cat([own for _, own, _ in everywhere])
    if any(adds_up for _, _, adds_up in everywhere):
        return float(values.sum())
    values, read = values[read != 0], read[read != 0]
    return float((values * read).sum() / read.sum())


def _counts(rows: Tensor, loss: Any) -> Tensor:
    """The weight of each row of labels."""
    counts = torch.ne(rows, loss.ignore_index)
    if loss.weight is None:
        return counts.sum(1)
    weights: Tensor = loss.weight.detach()
    return (weights[torch.where(counts, rows, 0)] * counts).sum(1)


def _of_labels(loss: Any, outputs: Tensor, targets: Tensor) -> Weight:
    if loss.reduction == "sum":
        return ADDS_UP
    if targets.is_floating_point():  # the probability of each class
        return outputs.numel() // outputs.shape[1 if outputs.ndim > 1 else 0]
    counted = CountedTargets(targets, loss)
    return counted if targets.numel() <= MOST_KEPT_ELEMENTS else counted.value()


def _of_elements(loss: Any, outputs: Tensor, targets: Tensor) -> Weight:
    if loss.reduction != "mean":
        return ADDS_UP if loss.reduction == "sum" else outputs.shape[0]  # "batchmean"
    if outputs.shape == targets.shape:
        return outputs.numel()
    return math.prod(torch.broadcast_shapes(outputs.shape, targets.shape))  # type: ignore[no-untyped-call]


def _of_rows(loss: Any, outputs: Tensor, targets: Tensor) -> Weight:
    return ADDS_UP if loss.reduction == "sum" else outputs.numel() // outputs.shape[-1]


_BY_LABELS = [(nn.CrossEntropyLoss, F.cross_entropy), (nn.NLLLoss, F.nll_loss)]
_BY_ROWS = [
    (nn.MultiMarginLoss, F.multi_margin_loss),
    (nn.MultiLabelMarginLoss, F.multilabel_margin_loss),
    (nn.MultiLabelSoftMarginLoss, F.multilabel_soft_margin_loss),
]
_BY_ELEMENTS = [
    (nn.MSELoss, F.mse_loss),
    (nn.L1Loss, F.l1_loss),
    (nn.SmoothL1Loss, F.smooth_l1_loss),
    (nn.HuberLoss, F.huber_loss),
    (nn.BCELoss, F.binary_cross_entropy),
    (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
    (nn.SoftMarginLoss, F.soft_margin_loss),
    (nn.PoissonNLLLoss, F.poisson_nll_loss),
    (nn.KLDivLoss, F.kl_div),
    (nn.HingeEmbeddingLoss, F.hinge_embedding_loss),
]
_RULES: dict[Any, Callable[[Any, Any, Any], Weight]] = {
    key: rule
    for group, rule in ((_BY_LABELS, _of_labels), (_BY_ROWS, _of_rows), (_BY_ELEMENTS, _of_elements))
    for module, function in group
    for key in (module.forward, function)  # type: ignore[attr-defined]
}
