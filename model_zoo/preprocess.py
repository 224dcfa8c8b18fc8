"""From a picture to what a network was trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from model_zoo.build import info
from model_zoo.entries import Entry

# torchvision's own training recipes crop down to 8% of the area; for fine-tuning on few pictures that loses the
# object too often.
SMALLEST_TRAINING_CROP = 0.35


def preprocess(net_or_name: nn.Module | str, *, train: bool = False, size: int | None = None) -> Any:
    """The transforms that a model's weights were made for.

    Args:
        net_or_name: A network of the zoo, or a name. The network's own weights count, for a name the default ones.
        train: Random crop and horizontal flip in place of resize and centre crop.
        size: Side in pixels, where it shall not be the model's own.

    Returns:
        A `torchvision.transforms.v2.Compose`: PIL picture (RGB) in, normalised float32 tensor [3, size, size] out.

    Raises:
        ValueError: The network is not of the zoo, the name is unknown, or the size is no positive integer.
    """
    from torchvision.transforms import v2

    entry, crop = _origin(net_or_name)
    size = entry.image_size if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size: got {size!r}; give an integer of at least 1, in pixels")
    mode = v2.InterpolationMode(entry.interpolation)
    if train:
        first = [
            v2.RandomResizedCrop(size, scale=(SMALLEST_TRAINING_CROP, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    else:
        # Rounded half up: 224 / (224 / 232) is a hair below 232.
        first = [v2.Resize(math.floor(size / crop + 0.5), interpolation=mode, antialias=True), v2.CenterCrop(size)]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(entry.mean), list(entry.std))]
    return v2.Compose([*first, *last])


def _origin(net_or_name: nn.Module | str) -> tuple[Entry, float]:
    """The entry, and the crop of the weights in question."""
    name = net_or_name if isinstance(net_or_name, str) else getattr(net_or_name, "zoo_name", None)
    if name is None:
        kind = type(net_or_name).__name__
        raise ValueError(f"net_or_name: got a {kind} that was not built by the zoo; give the name of a model")
    entry = info(name)
    tag = getattr(net_or_name, "zoo_weights", None) or entry.weights[0].tag
    crops = {weights.tag: weights.crop for weights in entry.weights}
    return entry, crops.get(tag) or entry.crop
