"""From a picture to what a network was trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from .cards import Preprocessing
from .lookup import entry as entry_of

# torchvision's own training recipes crop down to 8% of the area; for fine-tuning on few pictures that loses the
# object too often.
SMALLEST_TRAINING_CROP = 0.35


def preprocess(net: nn.Module | str, *, train: bool = False, size: int | None = None) -> Any:
    """The transforms that a model's weights were made for: PIL picture in, normalised float tensor [C, size, size] out.

    Args:
        net: A network of the zoo, or a name, which means its default weights.
        train: Random crop and horizontal flip in place of resize and centre crop.
        size: Side in pixels, where it shall not be the model's own.

    Returns:
        A `torchvision.transforms.v2.Compose`. For a network of one input channel the picture is made grey.

    Raises:
        ValueError: The network is not of the zoo, takes neither one nor three channels, or the size is not positive.
    """
    made_for = _preprocessing(net)
    channels = 3 if isinstance(net, str) else getattr(net, "zoo_in_channels", 3)
    if channels not in (1, 3):
        raise ValueError(f"net: it takes {channels} channels; pictures have 1 or 3, so write its transforms yourself")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size: got {size!r}; give a number of pixels, at least 1")
    if size is not None:
        resize = round(size * made_for.resize / made_for.size)
        made_for = dataclasses.replace(made_for, size=size, resize=resize)
    return transforms_of(made_for, train=train, channels=channels)


def transforms_of(made_for: Preprocessing, *, train: bool = False, channels: int = 3) -> Any:
    """The transforms that a description of an input stands for.

    Args:
        made_for: The description.
        train: Random crop and horizontal flip in place of resize and centre crop.
        channels: 3, or 1 for grey pictures.

    Returns:
        A `torchvision.transforms.v2.Compose`: PIL picture in, normalised float tensor [channels, size, size] out.
    """
    from torchvision.transforms import v2

    size = made_for.size
    mode = v2.InterpolationMode(made_for.interpolation)
    if train:
        steps = [
            v2.RandomResizedCrop(size, scale=(SMALLEST_TRAINING_CROP, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    else:
        steps = [v2.Resize(made_for.resize, interpolation=mode, antialias=True), v2.CenterCrop(size)]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    mean, std = list(made_for.mean), list(made_for.std)
    if channels == 1:
        steps.append(v2.Grayscale(1))
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    elif made_for.channels == "BGR":
        steps.append(ReverseChannels())
    return v2.Compose([*steps, v2.Normalize(mean, std)])


class ReverseChannels(nn.Module):
    """RGB to BGR: [..., 3, H, W] in and out."""

    def forward(self, picture: Tensor) -> Tensor:
        """The picture with its channels in reverse."""
        return picture.flip(-3)


def _preprocessing(net: nn.Module | str) -> Preprocessing:
    if isinstance(net, str):
        return entry_of(net).preprocessing
    name = getattr(net, "zoo_name", None)
    if not isinstance(name, str):
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; give one of its names")
    entry = entry_of(name)
    tag = getattr(net, "zoo_weights", None)
    return next((weights.preprocessing for weights in entry.weights if weights.tag == tag), entry.preprocessing)
