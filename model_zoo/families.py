"""The layout of the networks of a family: the path of the classifier, and the modules of each layer group.

The groups follow the resolution: `stem` has the first layers, `low` ends at a stride of 8, `mid` at 16, `high` at 32.
`high` also has all remaining layers before the classifier. `head` is the classifier.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass

GROUPS = ("stem", "low", "mid", "high", "head")


@dataclass(frozen=True)
class Family:
    """The layout of a family.

    Attributes:
        title: The name that its authors use.
        paper: The publication.
        head: The path of the classifier.
        stem: The paths of the modules of this group. `blocks.[0:3]` means `blocks.0` to `blocks.2`. A path that ends
            with a star means all paths that start with the text before the star.
        low: The paths of this group, in the same form.
        mid: The paths of this group, in the same form.
        high: The paths of this group, in the same form.
        taps: The paths of the modules whose outputs are the feature maps after stem, low, mid and high. If a path has a
            star, the last of its modules counts. `<` before a path means the input of the module, not the output.
        map: The layout of these outputs: `NCHW`, `NHWC`, or `tokens` [N, prefix tokens + patches, C].
    """

    title: str
    paper: str
    head: str
    stem: tuple[str, ...]
    low: tuple[str, ...]
    mid: tuple[str, ...]
    high: tuple[str, ...]
    taps: tuple[str, str, str, str]
    map: str = "NCHW"

    def group_of(self, name: str) -> str:
        """The group of a parameter or module, by its full name.

        Raises:
            KeyError: The name is in no group.
        """
        if covers(self.head, name):
            return "head"
        for group in GROUPS[:-1]:
            if any(covers(path, name) for path in expand(getattr(self, group))):
                return group
        raise KeyError(name)


def covers(path: str, name: str) -> bool:
    """Whether the module at a path is that of the name, or contains it."""
    if path.endswith("*"):
        return name.startswith(path[:-1])
    return name == path or name.startswith(path + ".")


@functools.cache
def expand(paths: tuple[str, ...]) -> list[str]:
    """The paths. Each range is replaced by its paths."""
    found = []
    for path in paths:
        match = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", path)
        if match is None:
            found.append(path)
        else:
            found += [f"{match[1]}{index}" for index in range(int(match[2]), int(match[3]))]
    return found


def _vgg(layers: int, *pools: int) -> Family:
    starts = (0, *(pool + 1 for pool in pools))
    cuts = [f"features.[{starts[i]}:{starts[j]}]" for i, j in ((0, 2), (2, 3), (3, 4), (4, 5))]
    return Family(
        f"VGG-{layers}",
        "Simonyan and Zisserman 2014, arXiv 1409.1556",
        "classifier.6",
        stem=(cuts[0],),
        low=(cuts[1],),
        mid=(cuts[2],),
        high=(cuts[3], "classifier.0", "classifier.3"),
        taps=(f"features.{pools[1]}", f"features.{pools[2]}", f"features.{pools[3]}", f"features.{pools[4]}"),
    )


_RESNET = Family(
    "ResNet",
    "He et al. 2015, arXiv 1512.03385",
    "fc",
    stem=("conv1", "bn1"),
    low=("layer1", "layer2"),
    mid=("layer3",),
    high=("layer4",),
    taps=("maxpool", "layer2", "layer3", "layer4"),
)
_SQUEEZENET = Family(
    "SqueezeNet",
    "Iandola et al. 2016, arXiv 1602.07360",
    "classifier.1",
    stem=("features.0",),
    low=("features.[3:6]",),
    mid=("features.[7:11]",),
    high=("features.12",),
    taps=("features.2", "features.6", "features.11", "features.12"),
)
_NASNET = Family(
    "NASNet-A",
    "Zoph et al. 2017, arXiv 1707.07012",
    "last_linear",
    stem=("conv0",),
    low=("cell_stem_0", "cell_stem_1", "cell_[0:6]"),
    mid=("reduction_cell_0", "cell_[6:12]"),
    high=("reduction_cell_1", "cell_[12:18]"),
    taps=("conv0", "cell_5", "cell_11", "act"),
)

FAMILIES: dict[str, Family] = {
    "alexnet": Family(
        "AlexNet",
        "Krizhevsky 2014, arXiv 1404.5997",
        "classifier.6",
        stem=("features.0",),
        low=("features.3",),
        mid=("features.[6:9]",),
        high=("features.10", "classifier.1", "classifier.4"),
        taps=("features.2", "features.5", "features.9", "features.12"),
    ),
    "vgg11": _vgg(11, 2, 5, 10, 15, 20),
    "vgg11_bn": _vgg(11, 3, 7, 14, 21, 28),
    "vgg13": _vgg(13, 4, 9, 14, 19, 24),
    "vgg13_bn": _vgg(13, 6, 13, 20, 27, 34),
    "vgg16": _vgg(16, 4, 9, 16, 23, 30),
    "vgg16_bn": _vgg(16, 6, 13, 23, 33, 43),
    "vgg19": _vgg(19, 4, 9, 18, 27, 36),
    "vgg19_bn": _vgg(19, 6, 13, 26, 39, 52),
    "squeezenet1_0": _SQUEEZENET,
    "squeezenet1_1": dataclasses.replace(
        _SQUEEZENET,
        low=("features.[3:5]",),
        mid=("features.[6:8]",),
        high=("features.[9:13]",),
        taps=("features.2", "features.5", "features.8", "features.12"),
    ),
    "densenet": Family(
        "DenseNet",
        "Huang et al. 2016, arXiv 1608.06993",
        "classifier",
        stem=("features.conv0", "features.norm0"),
        low=("features.denseblock1", "features.transition1", "features.denseblock2"),
        mid=("features.transition2", "features.denseblock3"),
        high=("features.transition3", "features.denseblock4", "features.norm5"),
        taps=("features.pool0", "features.denseblock2", "features.denseblock3", "features.norm5"),
    ),
    "inception_v3": Family(
        "Inception v3",
        "Szegedy et al. 2015, arXiv 1512.00567",
        "fc",
        stem=("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
        low=("Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5*"),
        mid=("Mixed_6*",),
        high=("Mixed_7*",),
        taps=("maxpool1", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
    ),
    "resnet": _RESNET,
    "resnext": dataclasses.replace(_RESNET, title="ResNeXt", paper="Xie et al. 2016, arXiv 1611.05431"),
    "fbresnet": dataclasses.replace(_RESNET, head="last_linear"),
    "senet": Family(
        "Squeeze-and-Excitation network",
        "Hu et al. 2017, arXiv 1709.01507",
        "last_linear",
        stem=("layer0",),
        low=("layer1", "layer2"),
        mid=("layer3",),
        high=("layer4",),
        taps=("pool0", "layer2", "layer3", "layer4"),
    ),
    "inceptionv4": Family(
        "Inception v4",
        "Szegedy et al. 2016, arXiv 1602.07261",
        "last_linear",
        stem=("features.[0:3]",),
        low=("features.[3:10]",),
        mid=("features.[10:18]",),
        high=("features.[18:22]",),
        taps=("features.2", "features.9", "features.17", "features.21"),
    ),
    "inceptionresnetv2": Family(
        "Inception-ResNet v2",
        "Szegedy et al. 2016, arXiv 1602.07261",
        "classif",
        stem=("conv2d_1a", "conv2d_2a", "conv2d_2b"),
        low=("conv2d_3b", "conv2d_4a", "mixed_5b", "repeat"),
        mid=("mixed_6a", "repeat_1"),
        high=("mixed_7a", "repeat_2", "block8", "conv2d_7b"),
        taps=("maxpool_3a", "repeat", "repeat_1", "conv2d_7b"),
    ),
    "nasnetalarge": _NASNET,
    "nasnetamobile": dataclasses.replace(
        _NASNET,
        low=("cell_stem_0", "cell_stem_1", "cell_[0:4]"),
        mid=("reduction_cell_0", "cell_[6:10]"),
        high=("reduction_cell_1", "cell_[12:16]"),
        taps=("conv0", "cell_3", "cell_9", "relu"),
    ),
    "pnasnet5large": Family(
        "PNASNet-5",
        "Liu et al. 2017, arXiv 1712.00559",
        "last_linear",
        stem=("conv_0",),
        low=("cell_stem_0", "cell_stem_1", "cell_[0:4]"),
        mid=("cell_[4:8]",),
        high=("cell_[8:12]",),
        taps=("conv_0", "cell_3", "cell_7", "act"),
    ),
    "xception": Family(
        "Xception",
        "Chollet 2016, arXiv 1610.02357",
        "fc",
        stem=("conv1", "bn1", "conv2", "bn2"),
        low=("block1", "block2"),
        mid=("block[3:12]",),
        high=("block12", "conv3", "bn3", "conv4", "bn4"),
        taps=("act2", "block2", "block11", "act4"),
    ),
    "dpn": Family(
        "Dual path network",
        "Chen et al. 2017, arXiv 1707.01629",
        "classifier",
        stem=("features.conv1_*",),
        low=("features.conv2_*", "features.conv3_*"),
        mid=("features.conv4_*",),
        high=("features.conv5_*",),
        taps=("features.conv1_pool", "features.conv3_*", "features.conv4_*", "features.conv5_bn_ac"),
    ),
    "bninception": Family(
        "Inception with batch normalisation",
        "Ioffe and Szegedy 2015, arXiv 1502.03167",
        "last_linear",
        stem=("conv1_*",),
        low=("conv2_*", "inception_3a_*", "inception_3b_*"),
        mid=("inception_3c_*", "inception_4a_*", "inception_4b_*", "inception_4c_*", "inception_4d_*"),
        high=("inception_4e_*", "inception_5*"),
        taps=("pool1_3x3_s2", "<inception_3c_3x3_reduce", "<inception_4e_3x3_reduce", "<global_pool"),
    ),
    "polynet": Family(
        "PolyNet",
        "Zhang et al. 2016, arXiv 1611.05725",
        "last_linear",
        stem=("stem",),
        low=("stage_a",),
        mid=("reduction_a", "stage_b"),
        high=("reduction_b", "stage_c"),
        taps=("stem", "stage_a", "stage_b", "stage_c"),
    ),
    "convnext": Family(
        "ConvNeXt",
        "Liu et al. 2022, arXiv 2201.03545",
        "classifier.2",
        stem=("features.0",),
        low=("features.[1:4]",),
        mid=("features.[4:6]",),
        high=("features.[6:8]", "classifier.0"),
        taps=("features.0", "features.3", "features.5", "features.7"),
    ),
    "efficientnet": Family(
        "EfficientNet",
        "Tan and Le 2019, arXiv 1905.11946",
        "classifier.1",
        stem=("features.0",),
        low=("features.[1:4]",),
        mid=("features.[4:6]",),
        high=("features.[6:9]",),
        taps=("features.0", "features.3", "features.5", "features.8"),
    ),
    "efficientnet_lite": Family(
        "EfficientNet-Lite",
        "Tan and Le 2019, arXiv 1905.11946",
        "classifier",
        stem=("conv_stem", "bn1"),
        low=("blocks.[0:3]",),
        mid=("blocks.[3:5]",),
        high=("blocks.[5:7]", "conv_head", "bn2"),
        taps=("bn1", "blocks.2", "blocks.4", "bn2"),
    ),
    "mobilenetv3": Family(
        "MobileNet v3",
        "Howard et al. 2019, arXiv 1905.02244",
        "classifier.3",
        stem=("features.0",),
        low=("features.[1:7]",),
        mid=("features.[7:13]",),
        high=("features.[13:17]", "classifier.0"),
        taps=("features.0", "features.6", "features.12", "features.16"),
    ),
    "regnet": Family(
        "RegNet",
        "Radosavovic et al. 2020, arXiv 2003.13678",
        "fc",
        stem=("stem",),
        low=("trunk_output.block1", "trunk_output.block2"),
        mid=("trunk_output.block3",),
        high=("trunk_output.block4",),
        taps=("stem", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
    ),
    "vit": Family(
        "Vision Transformer",
        "Dosovitskiy et al. 2020, arXiv 2010.11929",
        "head",
        stem=("cls_token", "pos_embed", "patch_embed"),
        low=("blocks.[0:4]",),
        mid=("blocks.[4:8]",),
        high=("blocks.[8:12]", "norm"),
        taps=("norm_pre", "blocks.3", "blocks.7", "norm"),
        map="tokens",
    ),
    "swin": Family(
        "Swin Transformer",
        "Liu et al. 2021, arXiv 2103.14030",
        "head",
        stem=("features.0",),
        low=("features.[1:4]",),
        mid=("features.[4:6]",),
        high=("features.[6:8]", "norm"),
        taps=("features.0", "features.3", "features.5", "norm"),
        map="NHWC",
    ),
}
