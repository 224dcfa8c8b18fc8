"""Pretrained networks with one interface. The zoo builds networks and does not train them.

For every model of the list there is a function with the name of the model. The function takes `pretrained` (True, or
the tag of a set of weights), `num_classes`, `in_channels` and `weights` (a file); see `create`. `create` also builds
any model of timm by the name `timm/<name>`. torchvision and timm are imported when a network is built.

    >>> import torch
    >>> from mxtorch import model_zoo
    >>> net = model_zoo.resnet18(num_classes=10).eval()
    >>> net(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    >>> net.fc = torch.nn.Linear(net.fc.in_features, 120)  # the classifier is `fc` on every model

On the command line: `python -m mxtorch.model_zoo list`.
"""

from __future__ import annotations

from .build import create, imagenet_classes
from .cards import Entry, WeightFile, Weights
from .download import WeightsError
from .feature_extraction import features, taps
from .fusion import fuse
from .grouping import freeze, freeze_to, groups, param_groups, unfreeze
from .lookup import info, list_models, preprocess
from .models import functions as _functions
from .preprocessing import Preprocessing

# fmt: off
(
    alexnet, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn, squeezenet1_0, squeezenet1_1,
    densenet121, densenet161, densenet169, densenet201, inception_v3, resnet18, resnet34, resnet50, resnet101,
    resnet152, resnext50_32x4d, resnext101_64x4d, convnext_tiny, convnext_small, convnext_base, efficientnet_b0,
    efficientnet_b1, efficientnet_b2, efficientnet_b3, efficientnet_b4, mobilenetv3_large, regnety_016,
    regnety_032, swin_tiny, resnext101_32x4d, se_resnet50, se_resnet101, se_resnet152, se_resnext50_32x4d,
    se_resnext101_32x4d, senet154, inceptionv4, inceptionresnetv2, nasnetalarge, pnasnet5large, xception, dpn68,
    dpn68b, dpn92, dpn98, dpn107, dpn131, efficientnet_lite0, vit_small, vit_base, resnet10t, nasnetamobile,
    fbresnet152, bninception, cafferesnet101, polynet,
) = _functions(create)

__all__ = [  # noqa: RUF022
    "Entry", "Preprocessing", "WeightFile", "Weights", "WeightsError", "create", "features", "freeze",
    "freeze_to", "fuse", "groups", "imagenet_classes", "info", "list_models", "param_groups", "preprocess",
    "taps", "unfreeze",
    "alexnet", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "squeezenet1_0", "squeezenet1_1", "densenet121", "densenet161", "densenet169", "densenet201", "inception_v3",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_64x4d",
    "convnext_tiny", "convnext_small", "convnext_base", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2",
    "efficientnet_b3", "efficientnet_b4", "mobilenetv3_large", "regnety_016", "regnety_032", "swin_tiny",
    "resnext101_32x4d", "se_resnet50", "se_resnet101", "se_resnet152", "se_resnext50_32x4d",
    "se_resnext101_32x4d", "senet154", "inceptionv4", "inceptionresnetv2", "nasnetalarge", "pnasnet5large",
    "xception", "dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131", "efficientnet_lite0", "vit_small",
    "vit_base", "resnet10t", "nasnetamobile", "fbresnet152", "bninception", "cafferesnet101", "polynet",
]
# fmt: on
