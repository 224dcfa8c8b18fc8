"""How an image becomes the input of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The least share of an image's area that a random crop for training keeps. torchvision's recipes go down to 0.08; in
# fine-tuning on few images such a crop too often leaves the object out.
SMALLEST_TRAINING_CROP = 0.35


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input that a set of weights was trained on.

    Attributes:
        size: Side of the input in evaluation, in pixels.
        resize: Length of the shorter side of the image before the centre crop, in pixels.
        interpolation: `bilinear` or `bicubic`.
        mean: Mean of each channel, for pixels from 0 to 1, in the order that `channels` gives.
        std: Standard deviation of each channel, likewise.
        channels: `RGB`, or `BGR` for networks that come from Caffe.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: str = "RGB"

    def transforms(self, *, train: bool = False, channels: int = 3) -> Any:
        """The transforms that this description stands for.

        Args:
            train: Random crop and horizontal flip in place of resize and centre crop.
            channels: 3, or 1 for grey images.

        Returns:
            A `torchvision.transforms.v2.Compose`: PIL image in, normalised float32 tensor [channels, size, size] out.

        Example:
            >>> from PIL import Image
            >>> from mxtorch import model_zoo
            >>> transform = model_zoo.Preprocessing(size=96, resize=110).transforms()
            >>> transform(Image.new("RGB", (300, 200))).shape
            torch.Size([3, 96, 96])
        """
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(self.interpolation)
        if train:
            scale = (SMALLEST_TRAINING_CROP, 1.0)
            steps = [
                v2.RandomResizedCrop(self.size, scale=scale, interpolation=mode, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        else:
            steps = [v2.Resize(self.resize, interpolation=mode, antialias=True), v2.CenterCrop(self.size)]
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        mean, std = list(self.mean), list(self.std)
        if channels == 1:
            steps.append(v2.Grayscale(1))
            mean, std = [sum(mean) / 3], [sum(std) / 3]
        elif self.channels == "BGR":
            steps.append(ReverseChannels())
        return v2.Compose([*steps, v2.Normalize(mean, std)])


class ReverseChannels(nn.Module):
    """RGB to BGR: [..., 3, H, W] in and out."""

    def forward(self, image: Tensor) -> Tensor:
        """The image with its channels in reverse order."""
        return image.flip(-3)
