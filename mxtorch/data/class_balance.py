"""Classes of different sizes: weights for the loss, or a sampler that draws samples of small classes more often.

Use only one of the two. Both together would give small classes too much weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler

from mxtorch._checks import shortened, whole_number


def class_weights(labels: Any, num_classes: int | None = None, *, beta: float | None = None) -> Tensor:
    """Weights for `nn.CrossEntropyLoss(weight=...)`, with a mean of 1 over the samples.

    Args:
        labels: Class numbers, or a data set with class numbers as `targets` or `labels`, such as those of torchvision.
        num_classes: The number of classes; by default the highest class number plus 1.
        beta: None weights a class by the inverse of its number of samples. A number below 1, such as 0.999, weights a
            class by the inverse of its effective number of samples (Cui et al. 2019, arXiv 1901.05555), so that the
            weights differ less.

    Returns:
        float32 [num_classes].

    Raises:
        ValueError: There are no labels, a class has no samples, a label is not below `num_classes`, or `beta` is not
            between 0 and 1.
        TypeError: `labels` has no class numbers.

    Example:
        >>> class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000])
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
    """A sampler that draws every class equally often, with replacement. An epoch has as many samples as the data set.

    Args:
        labels: As for `class_weights`.
        num_classes: As for `class_weights`.
        generator: The source of random numbers; by default torch's global generator.

    Returns:
        The sampler, for `DataLoader(dataset, sampler=...)`.

    Raises:
        ValueError: As `class_weights`.
        TypeError: As `class_weights`.

    Example:
        >>> labels = [0] * 900 + [1] * 100
        >>> drawn = [labels[index] for index in balanced_sampler(labels)]
        >>> len(drawn), 400 < sum(drawn) < 600
        (1000, True)
    """
    numbers = labels_of(labels)
    weights = (1 / _counts(numbers, num_classes))[numbers]
    return WeightedRandomSampler(weights.tolist(), len(numbers), generator=generator)


def labels_of(labels: Any) -> Tensor:
    """The class numbers, int64 [N], in a list, a data set or the data set of a loader. No sample is read.

    Raises:
        TypeError: The argument has no labels.
        ValueError: There are no samples, or the labels are no integers.
    """
    if isinstance(labels, DataLoader):
        return labels_of(labels.dataset)
    if isinstance(labels, Subset):
        return labels_of(labels.dataset)[torch.as_tensor(list(labels.indices))]
    if isinstance(labels, ConcatDataset):
        return torch.cat([labels_of(part) for part in labels.datasets])
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
    """The number of samples of each class, float64 [classes]."""
    classes = int(numbers.max()) + 1 if num_classes is None else whole_number(num_classes)
    if classes is None:
        raise ValueError(f"num_classes: got {num_classes!r}; give an integer, or None")
    if int(numbers.min()) < 0 or int(numbers.max()) >= classes:
        raise ValueError(
            f"labels: got {int(numbers.min())} to {int(numbers.max())}; for {classes} classes give 0 to {classes - 1}"
        )
    counts = torch.bincount(numbers, minlength=classes).double()
    if (counts == 0).any():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"labels: got no samples of class {shortened(missing, 5)}, so the weight would be infinite; leave this "
            "class out"
        )
    return counts
