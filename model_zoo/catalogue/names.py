"""The names of the models and of their weights as types, so that an editor can complete them."""

from __future__ import annotations

from typing import Literal, TypeAlias

# The same names in the same order as in `ENTRIES`; a test compares them.
# fmt: off
ModelName: TypeAlias = Literal[
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
WeightTag: TypeAlias = Literal[
    "IMAGENET1K_V1", "IMAGENET1K_V2", "cadene", "gluon_in1k", "fb_swsl_ig1b_ft_in1k", "fb_ssl_yfcc100m_ft_in1k",
    "in1k", "tf_in1k", "mx_in1k", "ra_in1k", "augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k",
    "orig_in21k_ft_in1k", "c3_in1k",
]
# fmt: on
