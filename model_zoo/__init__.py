"""Pretrained networks with one way to use them all; it knows nothing of training.

Every function takes `pretrained` (True, or the tag of a pinned set of weights), `num_classes`, and `weights` (a file);
see `create`. torchvision and timm are imported when a network is built.
"""

from __future__ import annotations

from typing import Any

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


def resnet18(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNet-18 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet18", pretrained, **options)


def resnet34(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNet-34 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet34", pretrained, **options)


def resnet50(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNet-50 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet50", pretrained, **options)


def resnet101(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNet-101 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet101", pretrained, **options)


def resnet152(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNet-152 (He et al. 2015, arXiv 1512.03385); see `create`."""
    return create("resnet152", pretrained, **options)


def resnext50_32x4d(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNeXt-50 32x4d (Xie et al. 2016, arXiv 1611.05431); see `create`."""
    return create("resnext50_32x4d", pretrained, **options)


def resnext101_32x4d(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNeXt-101 32x4d (Xie et al. 2016, arXiv 1611.05431); see `create`."""
    return create("resnext101_32x4d", pretrained, **options)


def resnext101_64x4d(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """ResNeXt-101 64x4d (Xie et al. 2016, arXiv 1611.05431); see `create`."""
    return create("resnext101_64x4d", pretrained, **options)


def inceptionresnetv2(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """Inception-ResNet-v2 (Szegedy et al. 2016, arXiv 1602.07261), for pictures of 299 pixels; see `create`."""
    return create("inceptionresnetv2", pretrained, **options)


def efficientnet_lite0(pretrained: bool | str = False, **options: Any) -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946), small and fast; see `create`."""
    return create("efficientnet_lite0", pretrained, **options)
