"""Mixup and CutMix of torchvision, applied to the batches of any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mxtorch._checks import positive_rate, whole_number


class Mixed:
    """A loader of mixed batches: each sample is a mixture of two pictures, and its target a mixture of their classes.

    `find_lr` and `fit` take it in place of any loader. The batches are mixed again in every pass. The targets become
    class probabilities, float32 [N, num_classes], which `nn.CrossEntropyLoss` takes. Training metrics that expect class
    numbers do not take them. Use batches that are not mixed for validation.

    Args:
        data: Batches of (pictures [N, C, H, W], class numbers int64 [N]).
        num_classes: The number of classes.
        mixup: The alpha of the Beta distribution of mixup (Zhang et al. 2017, arXiv 1710.09412); None turns mixup off.
            The defaults of `mixup` and `cutmix` are those of torchvision's training recipes.
        cutmix: The alpha of the Beta distribution of CutMix (Yun et al. 2019, arXiv 1905.04899); None turns CutMix off.
            With both, each batch is mixed in one of the two ways, at random.

    Raises:
        ValueError: Both alphas are None, or a number is out of range. During iteration: a batch has another form.

    Example:
        >>> batches = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))]
        >>> pictures, targets = next(iter(Mixed(batches, num_classes=10)))
        >>> pictures.shape, targets.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
    """

    def __init__(
        self, data: Iterable[Any], *, num_classes: int, mixup: float | None = 0.2, cutmix: float | None = 1.0
    ) -> None:
        from torchvision.transforms import v2

        classes = whole_number(num_classes)
        if classes is None or classes < 2:
            raise ValueError(f"num_classes: got {num_classes!r}; give an integer of at least 2")
        ways = [
            kind(alpha=positive_rate(alpha, name), num_classes=classes)
            for name, alpha, kind in (("mixup", mixup, v2.MixUp), ("cutmix", cutmix, v2.CutMix))
            if alpha is not None
        ]
        if not ways:
            raise ValueError("mixup: got None, and cutmix is None, too; give a number for one of them")
        self.data = data
        self._mix = ways[0] if len(ways) == 1 else v2.RandomChoice(ways)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            if not _can_be_mixed(batch):
                raise ValueError("data: Mixed takes batches of (pictures [N, C, H, W], class numbers int64 [N])")
            inputs, targets = self._mix(batch[0], batch[1])
            yield inputs, targets

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]


def _can_be_mixed(batch: Any) -> bool:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        return False
    inputs, targets = batch
    return bool(inputs.ndim == 4 and targets.ndim == 1 and targets.dtype == torch.long)
