"""A function for each model of the list."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import nn

from .build import create
from .catalogue import ENTRIES
from .families import FAMILIES


class Model(Protocol):
    """A function that builds one model; the arguments are those of `create`."""

    def __call__(
        self,
        pretrained: bool | str = False,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        weights: str | Path | None = None,
    ) -> nn.Module:
        """Build the network."""


def _model(name: str) -> Model:
    def build(
        pretrained: bool | str = False,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        weights: str | Path | None = None,
    ) -> nn.Module:
        return create(name, pretrained, num_classes=num_classes, in_channels=in_channels, weights=weights)

    family = FAMILIES[ENTRIES[name].family]
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name}, {family.title} ({family.paper}); see `create`."
    return build


alexnet = _model("alexnet")
vgg11 = _model("vgg11")
vgg11_bn = _model("vgg11_bn")
vgg13 = _model("vgg13")
vgg13_bn = _model("vgg13_bn")
vgg16 = _model("vgg16")
vgg16_bn = _model("vgg16_bn")
vgg19 = _model("vgg19")
vgg19_bn = _model("vgg19_bn")
squeezenet1_0 = _model("squeezenet1_0")
squeezenet1_1 = _model("squeezenet1_1")
densenet121 = _model("densenet121")
densenet161 = _model("densenet161")
densenet169 = _model("densenet169")
densenet201 = _model("densenet201")
inception_v3 = _model("inception_v3")
resnet18 = _model("resnet18")
resnet34 = _model("resnet34")
resnet50 = _model("resnet50")
resnet101 = _model("resnet101")
resnet152 = _model("resnet152")
resnext50_32x4d = _model("resnext50_32x4d")
resnext101_64x4d = _model("resnext101_64x4d")
convnext_tiny = _model("convnext_tiny")
convnext_small = _model("convnext_small")
convnext_base = _model("convnext_base")
efficientnet_b0 = _model("efficientnet_b0")
efficientnet_b1 = _model("efficientnet_b1")
efficientnet_b2 = _model("efficientnet_b2")
efficientnet_b3 = _model("efficientnet_b3")
efficientnet_b4 = _model("efficientnet_b4")
mobilenetv3_large = _model("mobilenetv3_large")
regnety_016 = _model("regnety_016")
regnety_032 = _model("regnety_032")
swin_tiny = _model("swin_tiny")
resnext101_32x4d = _model("resnext101_32x4d")
se_resnet50 = _model("se_resnet50")
se_resnet101 = _model("se_resnet101")
se_resnet152 = _model("se_resnet152")
se_resnext50_32x4d = _model("se_resnext50_32x4d")
se_resnext101_32x4d = _model("se_resnext101_32x4d")
senet154 = _model("senet154")
inceptionv4 = _model("inceptionv4")
inceptionresnetv2 = _model("inceptionresnetv2")
nasnetalarge = _model("nasnetalarge")
pnasnet5large = _model("pnasnet5large")
xception = _model("xception")
dpn68 = _model("dpn68")
dpn68b = _model("dpn68b")
dpn92 = _model("dpn92")
dpn98 = _model("dpn98")
dpn107 = _model("dpn107")
dpn131 = _model("dpn131")
efficientnet_lite0 = _model("efficientnet_lite0")
vit_small = _model("vit_small")
vit_base = _model("vit_base")
resnet10t = _model("resnet10t")
nasnetamobile = _model("nasnetamobile")
fbresnet152 = _model("fbresnet152")
bninception = _model("bninception")
cafferesnet101 = _model("cafferesnet101")
polynet = _model("polynet")
