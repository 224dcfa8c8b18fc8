"""From a picture to what a network was trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from model_zoo.entries import ENTRIES, Entry

# torchvision's own training recipes crop down to 8% of the area; for fine-tuning on few pictures that loses the
# object too often.
SMALLEST_TRAINING_CROP = 0.35


def preprocess(net: nn.Module | str, *, train: bool = False, size: int | None = None) -> Any:
    """The transforms that a model's weights were made for: PIL picture in, normalised float tensor [3, size, size] out.

    Args:
        net: A network of the zoo, or a name.
        train: Random crop and horizontal flip in place of resize and centre crop.
        size: Side in pixels, where it shall not be the model's own.

    Returns:
        A `torchvision.transforms.v2.Compose`.

    Raises:
        ValueError: The network is not of the zoo.
    """
    from torchvision.transforms import v2

    entry, tag = _origin(net)
    crop = next((weights.crop for weights in entry.weights if weights.tag == tag), None) or entry.crop
    size = entry.image_size if size is None else size
    mode = v2.InterpolationMode(entry.interpolation)
    if train:
        first = [
            v2.RandomResizedCrop(size, scale=(SMALLEST_TRAINING_CROP, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    else:
        first = [v2.Resize(math.floor(size / crop + 0.5), interpolation=mode, antialias=True), v2.CenterCrop(size)]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(entry.mean), list(entry.std))]
    return v2.Compose([*first, *last])


def _origin(net: nn.Module | str) -> tuple[Entry, str | None]:
    if isinstance(net, str):
        from model_zoo.build import info

        entry = info(net)
        return entry, entry.weights[0].tag
    name = getattr(net, "zoo_name", None)
    if name is None:
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; give one of its names")
    return ENTRIES[name], getattr(net, "zoo_weights", None) or ENTRIES[name].weights[0].tag
