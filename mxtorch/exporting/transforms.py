"""How a picture becomes an input: torchvision transforms, described by plain values that a file can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch.model_zoo import Preprocessing
from mxtorch.model_zoo.preprocessing import (  # type: ignore[import-not-found]
    ReverseChannels,
    compose_of_pictures,
    in_mode,
)

MODES = ("RGB", "L")
TOLERANCE = 1e-5
# The transforms that can be written, each with the arguments that determine its result.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Resize": ("size", "interpolation", "max_size", "antialias"),
    "CenterCrop": ("size",),
    "Pad": ("padding", "fill", "padding_mode"),
    "Grayscale": ("num_output_channels",),
    "RGB": (),
    "ToImage": (),
    "PILToTensor": (),
    "ToTensor": (),
    "ToDtype": ("dtype", "scale"),
    "ConvertImageDtype": ("dtype",),
    "Normalize": ("mean", "std"),
    "ToPureTensor": (),
    "Identity": (),
}
_MAKE_TENSORS = ("ToImage", "PILToTensor", "ToTensor")
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.float32, torch.float64, torch.uint8)
}
# The sizes of the random pictures with which a description is checked: odd, small, wide, tall.
_CHECKED_SIZES = ((97, 61), (40, 30), (301, 203), (64, 150))

Step = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class PictureTransforms:
    """How a picture becomes an input, in values that JSON can hold.

    Attributes:
        mode: The PIL mode in which a picture is opened: `RGB`, or `L` (grey).
        steps: The name and the arguments of each transform, in order. The prefix `v1.` means
            `torchvision.transforms`, and `v2.` means `torchvision.transforms.v2`.

    Example:
        >>> from torchvision.transforms import v2
        >>> transforms = describe_transform(v2.Compose([v2.CenterCrop(32), v2.PILToTensor()]))
        >>> print(transforms)
        opened as RGB, CenterCrop(size=[32, 32]), PILToTensor()
    """

    mode: str
    steps: tuple[Step, ...]

    @property
    def size(self) -> Any:
        """The side of an input in pixels; (height, width) if it is not square; None if it depends on the picture."""
        for name, arguments in reversed(self.steps):
            sizes = arguments.get("size")
            if name.endswith("CenterCrop") or (isinstance(sizes, list) and len(sizes) == 2):
                height, width = sizes if isinstance(sizes, list) and len(sizes) == 2 else _pair(sizes)
                return height if height == width else (height, width)
        return None

    @property
    def largest_resize(self) -> int:
        """The largest side to which a picture is resized, in pixels; 1 if it is not resized."""
        sizes = [arguments["size"] for name, arguments in self.steps if name.endswith("Resize")]
        return max((max(_pair(size)) for size in sizes if size is not None), default=1)

    def __call__(self, picture: Any) -> Tensor:
        """The input [C, H, W] for a PIL picture.

        Raises:
            TypeError: The argument is no PIL picture.
            ValueError: The picture has more than 8 bits for each channel.
        """
        if not hasattr(picture, "convert"):
            raise TypeError(f"pictures: got a {type(picture).__name__}; give files, PIL pictures, or a tensor [N, ...]")
        result = self._composed(in_mode(picture, self.mode))
        assert isinstance(result, Tensor)
        return result.as_subclass(Tensor)

    def __str__(self) -> str:
        words = [f"opened as {self.mode}"]
        for name, arguments in self.steps:
            given = ", ".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
            words.append(f"{name.partition('.')[2]}({given})")
        return ", ".join(words)

    @classmethod
    def from_values(cls, values: Any) -> PictureTransforms:
        """The description that `dataclasses.asdict` made these values from. It is checked by making every transform.

        Raises:
            ValueError: The values are malformed, or name a transform that can't be written.
        """
        try:
            mode, steps = values["mode"], tuple((name, dict(arguments)) for name, arguments in values["steps"])
            if mode not in MODES:
                raise ValueError(f"mode {mode!r}")
            made = cls(mode, steps)
            made._composed  # noqa: B018 - this makes the transforms
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"preprocessing: the description in the file is malformed: {error}") from error
        return made

    @cached_property
    def _composed(self) -> Any:
        from torchvision.transforms import Compose

        return Compose([_make(name, arguments) for name, arguments in self.steps])


def describe_transform(transform: Any, channels: int = 3) -> PictureTransforms:
    """The description of a transform. It is compared with the transform on random pictures.

    Args:
        transform: A torchvision transform of either version, the transform of torchvision weights, or a
            `model_zoo.Preprocessing`.
        channels: The number of channels of an input. With one channel, pictures are opened as grey, unless a step makes
            them grey.

    Raises:
        ValueError: A step can't be written, or the description gives other tensors than the transform.
    """
    if isinstance(transform, Preprocessing):
        transform = transform.transforms(channels=channels)
    steps = tuple(_described(step) for step in _flat(transform))
    names = [name.partition(".")[2] for name, _ in steps]
    if not any(name in _MAKE_TENSORS for name in names):
        raise ValueError(
            "preprocessing: the transform has no step that makes a tensor from a picture; give a transform with a step "
            "such as ToImage"
        )
    grey = channels == 1 and not {"Grayscale", "RGB"} & set(names)
    description = PictureTransforms("L" if grey else "RGB", steps)
    _check(description, transform)
    return description


def _flat(transform: Any) -> Iterator[Any]:
    """The single steps of a transform: containers such as `Compose` are replaced by their content."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2
    from torchvision.transforms._presets import ImageClassification

    if isinstance(transform, (list, tuple)):
        steps = list(transform)
    elif type(transform) in (v1.Compose, v2.Compose, nn.Sequential, compose_of_pictures()):
        steps = list(transform if isinstance(transform, nn.Sequential) else transform.transforms)
    elif type(transform) is ImageClassification:
        yield v1.Resize(transform.resize_size, transform.interpolation, antialias=transform.antialias)
        yield v1.CenterCrop(transform.crop_size)
        yield from (v1.PILToTensor(), v1.ConvertImageDtype(torch.float32))
        yield v1.Normalize(transform.mean, transform.std)
        return
    else:
        yield transform
        return
    for step in steps:
        yield from _flat(step)


def _described(step: Any) -> Step:
    """The name and the arguments of a transform.

    Raises:
        ValueError: The transform can't be written.
    """
    kind = type(step)
    for name, known in _known().items():
        if kind is known:
            plain = name.partition(".")[2]
            return name, {argument: _plain(getattr(step, argument), kind) for argument in _ARGUMENTS.get(plain, ())}
    raise ValueError(
        f"preprocessing: {kind.__name__} can't be written into a file; give preprocessing= a transform that consists "
        f"of {', '.join(_ARGUMENTS)}, or a model_zoo.Preprocessing"
    )


def _known() -> dict[str, Any]:
    """The classes of the transforms that can be written, by name."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    found = {"zoo.ReverseChannels": ReverseChannels, "v1.Identity": nn.Identity}
    for prefix, module in (("v1", v1), ("v2", v2)):
        found |= {f"{prefix}.{name}": getattr(module, name) for name in _ARGUMENTS if hasattr(module, name)}
    return found


def _plain(value: Any, kind: type) -> Any:
    """An argument of a transform as a value that JSON can hold."""
    from torchvision.transforms import InterpolationMode

    if isinstance(value, InterpolationMode):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        if name in _DTYPES:
            return name
    elif isinstance(value, Tensor):
        return [float(one) for one in value.flatten()]
    elif isinstance(value, (list, tuple)) and all(isinstance(one, (int, float, Tensor)) for one in value):
        return [one.item() if isinstance(one, Tensor) else one for one in value]
    raise ValueError(f"preprocessing: {kind.__name__} with {value!r} can't be written into a file")


def _make(name: str, arguments: dict[str, Any]) -> Any:
    """The transform of a name, with its arguments.

    Raises:
        ValueError: The name is unknown, or the transform has other arguments.
    """
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    known = _known()
    plain = name.partition(".")[2]
    if name not in known:
        raise ValueError(f"there is no transform {name!r}")
    if set(arguments) != set(_ARGUMENTS.get(plain, ())):
        raise ValueError(f"{name} has the arguments {list(arguments)}")
    given = dict(arguments)
    if "interpolation" in given:
        given["interpolation"] = v2.InterpolationMode(given["interpolation"])
    if "dtype" in given:
        given["dtype"] = _DTYPES[given["dtype"]]
    if name == "v2.ToTensor":  # it is deprecated, and does the same as that of version 1
        return v1.ToTensor()
    return known[name](**given)


def _check(description: PictureTransforms, transform: Any) -> None:
    """Raise if a description gives other tensors than its transform."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for width, height in _CHECKED_SIZES:
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
        picture = Image.fromarray(pixels.numpy()).convert(description.mode)
        expected, found = _applied(transform, picture), description(picture)
        if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
            raise ValueError(
                f"preprocessing: the transform gives another shape or type than its steps ({description}); give "
                "preprocessing= a Compose of these steps"
            )
        if not torch.allclose(expected.as_subclass(Tensor).double(), found.double(), rtol=0, atol=TOLERANCE):
            raise ValueError(
                f"preprocessing: the transform gives other values than its steps ({description}); give preprocessing= "
                "a Compose of these steps"
            )


def _applied(transform: Any, picture: Any) -> Any:
    if isinstance(transform, (list, tuple)):
        for step in transform:
            picture = _applied(step, picture)
        return picture
    return transform(picture)


def _pair(size: Any) -> tuple[int, int]:
    sizes = size if isinstance(size, (list, tuple)) else [size]
    return (int(sizes[0]), int(sizes[-1]))
