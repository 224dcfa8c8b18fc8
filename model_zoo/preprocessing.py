"""How an image becomes the input of a network."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The smallest part of an image's area that a random crop for training keeps. torchvision's recipes use 0.08, but in
# fine-tuning on few images, such a small crop often does not contain the object.
SMALLEST_TRAINING_CROP = 0.35
DEEP_MODES = ("I", "F")  # the first letters of PIL's modes with 16 or 32 bits for each pixel: I, F, I;16, I;16B, ...


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input, as in the training of a set of weights.

    Attributes:
        size: The side of the input in evaluation, in pixels.
        resize: The length of the image's shorter side before the centre crop, in pixels.
        interpolation: `bilinear` or `bicubic`.
        mean: The mean of each channel, for pixels from 0 to 1, in the order of `channels`.
        std: The standard deviation of each channel, in the same form.
        channels: `RGB`, or `BGR` for networks from Caffe.
        crop_mode: How an image that is not square is treated. `center` keeps the shape of the image, and the crop cuts
            off the ends of the longer side. `squash` scales both sides to `resize`, so that nothing is cut off.
            `border` scales the longer side to `resize`, and fills the rest with the mean colour.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: str = "RGB"
    crop_mode: str = "center"

    def transforms(self, *, train: bool = False, channels: int = 3) -> Any:
        """The transforms of this description.

        Args:
            train: Whether to use random crop and horizontal flip, in place of resize and centre crop.
            channels: 3, or 1 for grey images.

        Returns:
            A `torchvision.transforms.v2.Compose`: PIL image in, normalised float32 tensor [channels, size, size] out.
            An image of another mode (grey, palette, with transparency, CMYK) becomes RGB first. Pillow can't convert
            images with 16 or 32 bits for each pixel, so the transforms raise a ValueError for these.

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
            steps = self._resize_and_crop(mode)
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        mean, std = list(self.mean), list(self.std)
        if channels == 1:
            steps.append(v2.Grayscale(1))
            mean, std = [sum(mean) / 3], [sum(std) / 3]
        elif self.channels == "BGR":
            steps.append(ReverseChannels())
        return _of_pictures([*steps, v2.Normalize(mean, std)])

    def _resize_and_crop(self, mode: Any) -> list[Any]:
        from torchvision.transforms import v2

        if self.crop_mode == "squash":
            resize: Any = v2.Resize([self.resize, self.resize], interpolation=mode, antialias=True)
        elif self.crop_mode == "border":
            from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio

            red, green, blue = (round(255 * value) for value in self.mean)
            resize = ResizeKeepRatio(self.resize, longest=1.0, interpolation=mode.value)  # type: ignore[no-untyped-call]
            return [resize, CenterCropOrPad(self.size, fill=(red, green, blue))]
        elif self.crop_mode == "center":
            resize = v2.Resize(self.resize, interpolation=mode, antialias=True)
        else:
            raise ValueError(f"crop_mode: got {self.crop_mode!r}; give 'center', 'squash' or 'border'")
        return [resize, v2.CenterCrop(self.size)]


def in_mode(picture: Any, mode: str = "RGB") -> Any:
    """A PIL picture, converted to a mode as the data sets of torchvision and timm do. Any other object is returned.

    Transparency is dropped, not blended. The orientation in the EXIF data is not applied.

    Raises:
        ValueError: The picture has more than 8 bits for each channel. Pillow would clip all values at 255, which makes
            the picture white.
    """
    given = getattr(picture, "mode", None)
    if not isinstance(given, str) or given == mode:
        return picture
    if given.startswith(DEEP_MODES):
        raise ValueError(
            f"picture: got mode {given!r}, which has more than 8 bits a pixel and which Pillow clips at 255; scale the "
            "picture to 8 bits yourself, in the same way as the training data"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        return picture.convert(mode)


def _of_pictures(steps: list[Any]) -> Any:
    """A `Compose` of torchvision that first converts pictures to RGB."""
    return compose_of_pictures()(steps)


@functools.cache
def compose_of_pictures() -> Any:
    """The class of the transforms that `Preprocessing.transforms` returns."""
    from torchvision.transforms import v2  # imported on first use, because the import takes time

    return type("PictureCompose", (_FirstAsRGB, v2.Compose), {"__module__": __name__})


class _FirstAsRGB:
    def forward(self, *inputs: Any) -> Any:
        return super().forward(in_mode(inputs[0]), *inputs[1:])  # type: ignore[misc]

    def __reduce__(self) -> Any:  # needed because the class is made at run time
        return _of_pictures, (list(self.transforms),)  # type: ignore[attr-defined]


class ReverseChannels(nn.Module):
    """RGB to BGR: [..., 3, H, W] in and out."""

    def forward(self, image: Tensor) -> Tensor:
        """The image with its channels in reverse order."""
        return image.flip(-3)
