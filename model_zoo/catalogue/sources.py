"""Where files are published, and short ways to write entries down.

The eight or nine hexadecimal digits at the end of a file's name begin its sha256.
"""

from __future__ import annotations

from ..cards import Preprocessing, WeightFile, Weights

TORCH = "https://download.pytorch.org/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
TIMM_CADENE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
TIMM_VIT = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
TIMM_RSB = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights/"
GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
DPN = "https://github.com/rwightman/pytorch-dpn-pretrained/releases/download/v0.1/"
FACEBOOK = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
CADENE = "https://data.lip6.fr/cadene/pretrainedmodels/"

HALF = (0.5, 0.5, 0.5)
DPN_MEAN = (124 / 255, 117 / 255, 104 / 255)
DPN_STD = (1 / (0.0167 * 255),) * 3

PLAIN = Preprocessing()
NEWER = Preprocessing(resize=232)  # torchvision's second recipe
INCEPTION = Preprocessing(299, 333, "bicubic", HALF, HALF)


def bicubic(size: int, resize: int) -> Preprocessing:
    """The usual preprocessing with another size and interpolation."""
    return Preprocessing(size, resize, "bicubic")


def from_folder(folder: str, name: str) -> WeightFile:
    """A file whose name ends in the first digits of its hash."""
    return WeightFile(name, folder + name, name.removesuffix(".pth").rsplit("-", 1)[-1])


def from_hub(name: str) -> WeightFile:
    """A file of timm's on the Hugging Face Hub."""
    return WeightFile(
        f"{name}.safetensors", f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors", hub=f"timm/{name}"
    )


def weights_of_cadene(name: str, top1: float, preprocessing: Preprocessing) -> Weights:
    """A set of weights of pretrained-models.pytorch."""
    return Weights(
        "cadene",
        (from_folder(CADENE, name),),
        "BSD-3-Clause",
        top1,
        "pretrained-models.pytorch",
        preprocessing=preprocessing,
    )


def weights_of_timm(
    tag: str,
    top1: float,
    preprocessing: Preprocessing,
    *files: WeightFile,
    licence: str = "Apache-2.0",
    package: str | None = None,
) -> Weights:
    """A set of weights of timm."""
    return Weights(tag, files, licence, top1, "timm", package, preprocessing)
