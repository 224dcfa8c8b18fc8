"""Pretrained networks with one way to use them all; it knows nothing of training.

    net = model_zoo.resnet50(pretrained=True)
    net.fc = torch.nn.Linear(net.fc.in_features, 120)  # works on every model of the zoo
    transform = model_zoo.preprocess(net)

Every function takes `pretrained` (True, or the tag of a pinned set of weights), `num_classes`, and `weights` (a file
of your own); see `create`. `model_zoo.weights` tells where weights are looked for. torchvision and timm are imported
when a network is built.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from model_zoo.build import create, freeze, info, list_models, unfreeze
from model_zoo.entries import Entry, WeightFile, Weights
from model_zoo.preprocess import preprocess
from model_zoo.weights import WeightsError

__all__ = [
    "Entry",
    "WeightFile",
    "Weights",
    "WeightsError",
    "create",
    "efficientnet_lite0",
    "freeze",
    "inceptionresnetv2",
    "info",
    "list_models",
    "preprocess",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_64x4d",
    "unfreeze",
]


def resnet18(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNet-18 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet18", pretrained, num_classes=num_classes, weights=weights)


def resnet34(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNet-34 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet34", pretrained, num_classes=num_classes, weights=weights)


def resnet50(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNet-50 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet50", pretrained, num_classes=num_classes, weights=weights)


def resnet101(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNet-101 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet101", pretrained, num_classes=num_classes, weights=weights)


def resnet152(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNet-152 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet152", pretrained, num_classes=num_classes, weights=weights)


def resnext50_32x4d(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNeXt-50 32x4d (Xie et al. 2016, arXiv 1611.05431); see `create`."""
    return create("resnext50_32x4d", pretrained, num_classes=num_classes, weights=weights)


def resnext101_32x4d(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNeXt-101 32x4d (Xie et al. 2016, arXiv 1611.05431).

    It is timm's `resnext101_32x4d.gluon_in1k`; see `create`.
    """
    return create("resnext101_32x4d", pretrained, num_classes=num_classes, weights=weights)


def resnext101_64x4d(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """ResNeXt-101 64x4d (Xie et al. 2016, arXiv 1611.05431); see `create`."""
    return create("resnext101_64x4d", pretrained, num_classes=num_classes, weights=weights)


def inceptionresnetv2(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """Inception-ResNet-v2 (Szegedy et al. 2016, arXiv 1602.07261), 299 pixels.

    It is timm's `inception_resnet_v2.tf_in1k`; see `create`.
    """
    return create("inceptionresnetv2", pretrained, num_classes=num_classes, weights=weights)


def efficientnet_lite0(
    pretrained: bool | str = False, *, num_classes: int = 1000, weights: str | Path | None = None
) -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946), small and fast.

    It is timm's `tf_efficientnet_lite0.in1k`; see `create`.
    """
    return create("efficientnet_lite0", pretrained, num_classes=num_classes, weights=weights)
