"""JPEG files decoded at a reduced scale, where the first thing that is done to a picture is to make it smaller.

A JPEG decoder can leave out the fine frequencies, so that it gives a half, a quarter or an eighth of the size and takes
a fraction of the time (Pillow's `Image.draft`). A picture of at least twice the size that is wanted, resized with
antialiasing, is hardly told from one that was decoded whole (Pillow's `Image.thumbnail` takes the same factor).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.utils.data import Subset

# Pillow's own `reducing_gap` for thumbnails.
SIZE_BEFORE_RESIZING = 2
# So many files are looked at to tell whether any is large enough.
FILES_LOOKED_AT = 8


@dataclass(frozen=True)
class ReducedJPEG:
    """Opens a picture as torchvision's `pil_loader` does, at a reduced scale where it is a large JPEG.

    Args:
        side: No side is made smaller than this, in pixels.
    """

    side: int

    def __call__(self, path: str) -> Image.Image:
        """The picture, in RGB."""
        with open(path, "rb") as file:
            picture: Image.Image = Image.open(file)
            picture.draft(None, (self.side, self.side))
            return picture.convert("RGB")

    def reduces(self, path: str) -> bool:
        """Whether a file is decoded at a reduced scale; only its head is read."""
        with Image.open(path) as picture:
            whole = picture.size
            picture.draft(None, (self.side, self.side))
            return picture.size != whole


def reduced(dataset: Any) -> tuple[Any, ReducedJPEG | None]:
    """The data set to read pictures from, and how it opens them.

    Args:
        dataset: Any data set.

    Returns:
        A copy of a data set of picture files of torchvision (`ImageFolder`, also in a `Subset`) that opens them at a
        reduced scale, where its transform begins with `Resize`, and where that makes a difference for some of its first
        files. Otherwise the data set itself, and None.
    """
    if type(dataset) is Subset:
        inner, loader = reduced(dataset.dataset)
        return (dataset, None) if loader is None else (Subset(inner, dataset.indices), loader)
    from torchvision import get_image_backend
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader, pil_loader

    side = _resized_to(getattr(dataset, "transform", None))
    if side is None or not isinstance(dataset, DatasetFolder):
        return dataset, None
    if dataset.loader is not pil_loader and not (dataset.loader is default_loader and get_image_backend() == "PIL"):
        return dataset, None
    if type(dataset).__getitem__ is not DatasetFolder.__getitem__:
        return dataset, None  # it may open files in a way of its own
    loader = ReducedJPEG(side * SIZE_BEFORE_RESIZING)
    step = max(len(dataset.samples) // FILES_LOOKED_AT, 1)
    if not any(loader.reduces(path) for path, _ in dataset.samples[::step][:FILES_LOOKED_AT]):
        return dataset, None
    reading = copy.copy(dataset)
    reading.loader = loader
    return reading, loader


def _resized_to(transform: Any) -> int | None:
    """The larger side in pixels that a transform first resizes a picture to; None where it begins with another step."""
    first = transform
    while steps := list(getattr(first, "transforms", ())):
        first = steps[0]
    of_torchvision = type(first).__module__.startswith("torchvision.transforms") and type(first).__name__ == "Resize"
    size = getattr(first, "size", None)
    if not of_torchvision or size is None or first.max_size is not None:
        return None
    return size if isinstance(size, int) else max(size)
