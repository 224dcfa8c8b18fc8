"""Uneven classes: weights for the loss, or a sampler that draws rare ones more often. Use one of the two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, WeightedRandomSampler


def class_weights(labels: Any, num_classes: int | None = None, *, beta: float | None = None) -> Tensor:
    """Weights for `nn.CrossEntropyLoss(weight=...)`, with a mean of 1 over the samples.

    Args:
        labels: Class numbers, or a data set that has them as `targets` or `labels` (torchvision's do).
        num_classes: How many classes there are; by default as many as the labels need.
        beta: None weighs a class by the inverse of its count. A number below 1, such as 0.999, weighs by the inverse of
            the effective number of samples (Cui et al. 2019, arXiv 1901.05555), which evens out less.

    Returns:
        float32 [num_classes].

    Raises:
        ValueError: A class has no samples, a label is outside the classes, beta is not in (0, 1), there are no labels.
    """
    numbers = labels_of(labels)
    counts = _counts(numbers, num_classes)
    if beta is None:
        weights = 1 / counts
    elif 0 < beta < 1:
        weights = (1 - beta) / (1 - beta**counts)
    else:
        raise ValueError(f"beta: got {beta!r}; give a number between 0 and 1, such as 0.999, or None")
    return (weights * counts.sum() / (weights * counts).sum()).float()


def balanced_sampler(
    labels: Any, num_classes: int | None = None, *, generator: torch.Generator | None = None
) -> WeightedRandomSampler:
    """A sampler that draws every class equally often, with replacement; an epoch has as many samples as there are.

    Args:
        labels: As for `class_weights`.
        num_classes: Likewise.
        generator: Draws the samples; torch's global one when left out.

    Returns:
        For `DataLoader(dataset, sampler=...)`.
    """
    numbers = labels_of(labels)
    weights = (1 / _counts(numbers, num_classes))[numbers]
    return WeightedRandomSampler(weights.tolist(), len(numbers), generator=generator)


def labels_of(labels: Any) -> Tensor:
    """Class numbers [N] from numbers, or from a data set that has them without its items being read.

    Raises:
        TypeError: There are none to be found.
        ValueError: They are empty, or no integers.
    """
    if isinstance(labels, Subset):
        return labels_of(labels.dataset)[torch.as_tensor(list(labels.indices))]
    if hasattr(labels, "tensors"):  # a TensorDataset, whose last tensor holds the targets
        labels = labels.tensors[-1]
    for name in ("targets", "labels"):
        if not isinstance(labels, Tensor) and hasattr(labels, name):
            labels = getattr(labels, name)
    if not isinstance(labels, Iterable) or isinstance(labels, (str, bytes)) or hasattr(labels, "__getitems__"):
        raise TypeError(f"labels: got a {type(labels).__name__}; give class numbers, or a data set with .targets")
    numbers = labels if isinstance(labels, Tensor) else torch.as_tensor(list(labels))
    if numbers.ndim != 1 or len(numbers) == 0 or numbers.is_floating_point():
        raise ValueError(f"labels: got {list(numbers.shape)} of {numbers.dtype}; give a list of class numbers")
    return numbers.long()


def _counts(numbers: Tensor, num_classes: int | None) -> Tensor:
    classes = int(numbers.max()) + 1 if num_classes is None else num_classes
    if int(numbers.min()) < 0 or int(numbers.max()) >= classes:
        raise ValueError(f"labels: got {int(numbers.min())} to {int(numbers.max())} for {classes} classes, 0 onwards")
    counts = torch.bincount(numbers, minlength=classes).double()
    if (counts == 0).any():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"labels: no samples of class {', '.join(map(str, missing[:5]))}; its weight would be infinite"
        )
    return counts
