"""Mixup and CutMix: torchvision's, on whatever loader the batches come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mxtorch._checks import check_integer, positive_rate


class Mixed:
    """A loader whose batches are mixed: pairs of pictures with targets in proportion.

    `find_lr` and `fit` see the same batches, mixed anew each time. Targets become class probabilities [N, num_classes],
    which `nn.CrossEntropyLoss` takes; training metrics that expect class numbers do not. Validate on plain batches.

    Args:
        data: Batches of (pictures [N, C, H, W], class numbers [N]).
        num_classes: How many classes there are.
        mixup: The alpha of the Beta distribution of Zhang et al. 2017 (arXiv 1710.09412); None leaves it out. Its
            default, and that of `cutmix`, are those of torchvision's training recipes.
        cutmix: The alpha of Yun et al. 2019 (arXiv 1905.04899); None leaves it out. With both, each batch is mixed in
            one of the two ways, at random.

    Raises:
        ValueError: Both are None, or a number is off. While iterating: batches have another form.
    """

    def __init__(
        self, data: Iterable[Any], *, num_classes: int, mixup: float | None = 0.2, cutmix: float | None = 1.0
    ) -> None:
        from torchvision.transforms import v2

        check_integer(num_classes, "num_classes", at_least=2)
        ways = []
        if mixup is not None:
            ways.append(v2.MixUp(alpha=positive_rate(mixup, "mixup"), num_classes=num_classes))
        if cutmix is not None:
            ways.append(v2.CutMix(alpha=positive_rate(cutmix, "cutmix"), num_classes=num_classes))
        if not ways:
            raise ValueError("mixup: got None, and cutmix is None, too; give an alpha for one of them")
        self.data = data
        self._mix = ways[0] if len(ways) == 1 else v2.RandomChoice(ways)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            if not _can_be_mixed(batch):
                raise ValueError("data: Mixed takes batches of (pictures [N, C, H, W], class numbers [N])")
            inputs, targets = self._mix(batch[0], batch[1])
            yield inputs, targets

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]


def _can_be_mixed(batch: Any) -> bool:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    inputs, targets = batch
    return (
        isinstance(inputs, Tensor)
        and inputs.ndim == 4
        and isinstance(targets, Tensor)
        and targets.ndim == 1
        and targets.dtype == torch.long
    )
