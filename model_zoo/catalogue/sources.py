"""The addresses of published weights, and functions that shorten the entries of the catalogue.

The eight or nine hexadecimal digits at the end of a file's name are the first digits of its sha256.
"""

from __future__ import annotations

from ..cards import WeightFile, Weights
from ..preprocessing import Preprocessing
from .hashes import WHOLE

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
NEWER = Preprocessing(resize=232)  # of the weights IMAGENET1K_V2 of torchvision
INCEPTION = Preprocessing(299, 333, "bicubic", HALF, HALF)


def bicubic(size: int, resize: int) -> Preprocessing:
    """Preprocessing with ImageNet's usual mean and deviation, another size, and bicubic interpolation."""
    return Preprocessing(size, resize, "bicubic")


def from_folder(folder: str, name: str) -> WeightFile:
    """A file whose name ends with the first digits of its sha256."""
    return WeightFile(name, folder + name, WHOLE.get(name) or name.removesuffix(".pth").rsplit("-", 1)[-1])


def from_hub(name: str) -> WeightFile:
    """A file that timm publishes on the Hugging Face Hub."""
    url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    return WeightFile(f"{name}.safetensors", url, WHOLE.get(f"{name}.safetensors", ""), f"timm/{name}")


def weights_of_cadene(name: str, top1: float, preprocessing: Preprocessing) -> Weights:
    """A set of weights that pretrained-models.pytorch published."""
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
    """A set of weights that timm published."""
    return Weights(tag, files, licence, top1, "timm", package, preprocessing)
