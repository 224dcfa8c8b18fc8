"""Models that torchvision defines. The accuracies are those in the `meta` of its weights."""

from __future__ import annotations

from ..cards import Entry, Weights
from ..preprocessing import Preprocessing
from .sources import HALF, NEWER, PLAIN, TORCH, bicubic, from_folder, weights_of_cadene


def _model(
    name: str,
    family: str,
    parameters: int,
    gmacs: float,
    *sets: tuple[str, float, Preprocessing],
    builder: str = "",
    more: tuple[Weights, ...] = (),
) -> Entry:
    """A model of torchvision; torchvision's own sets of weights are IMAGENET1K_V1, IMAGENET1K_V2 and so on."""
    weights = tuple(
        Weights(
            f"IMAGENET1K_V{version}",
            (from_folder(TORCH, file),),
            "BSD-3-Clause",
            top1,
            "torchvision",
            preprocessing=preprocessing,
        )
        for version, (file, top1, preprocessing) in enumerate(sets, start=1)
    )
    return Entry(name, f"torchvision:{builder or name}", family, parameters, gmacs, weights + more)


# fmt: off
MODELS = (
    _model("alexnet", "alexnet", 61100840, 0.714, ("alexnet-owt-7be5be79.pth", 56.522, PLAIN)),
    _model("vgg11", "vgg11", 132863336, 7.609, ("vgg11-8a719046.pth", 69.02, PLAIN)),
    _model("vgg11_bn", "vgg11_bn", 132868840, 7.609, ("vgg11_bn-6002323d.pth", 70.37, PLAIN)),
    _model("vgg13", "vgg13", 133047848, 11.308, ("vgg13-19584684.pth", 69.928, PLAIN)),
    _model("vgg13_bn", "vgg13_bn", 133053736, 11.308, ("vgg13_bn-abd245e5.pth", 71.586, PLAIN)),
    _model("vgg16", "vgg16", 138357544, 15.47, ("vgg16-397923af.pth", 71.592, PLAIN)),
    _model("vgg16_bn", "vgg16_bn", 138365992, 15.47, ("vgg16_bn-6c64b313.pth", 73.36, PLAIN)),
    _model("vgg19", "vgg19", 143667240, 19.632, ("vgg19-dcbb9e9d.pth", 72.376, PLAIN)),
    _model("vgg19_bn", "vgg19_bn", 143678248, 19.632, ("vgg19_bn-c79401a0.pth", 74.218, PLAIN)),
    _model("squeezenet1_0", "squeezenet1_0", 1248424, 0.819, ("squeezenet1_0-b66bff10.pth", 58.092, PLAIN)),
    _model("squeezenet1_1", "squeezenet1_1", 1235496, 0.349, ("squeezenet1_1-b8a52dc0.pth", 58.178, PLAIN)),
    _model("densenet121", "densenet", 7978856, 2.834, ("densenet121-a639ec97.pth", 74.434, PLAIN)),
    _model("densenet161", "densenet", 28681000, 7.728, ("densenet161-8d451a50.pth", 77.138, PLAIN)),
    _model("densenet169", "densenet", 14149480, 3.36, ("densenet169-b2777c0a.pth", 75.6, PLAIN)),
    _model("densenet201", "densenet", 20013928, 4.291, ("densenet201-c1103571.pth", 76.896, PLAIN)),
    # These weights expect pixels from -1 to 1. In torchvision, the network itself converts normalised pixels to these.
    _model(
        "inception_v3", "inception_v3", 23834568, 5.713,
        ("inception_v3_google-0cc3c7bd.pth", 77.294, Preprocessing(299, 342, mean=HALF, std=HALF)),
    ),
    _model("resnet18", "resnet", 11689512, 1.814, ("resnet18-f37072fd.pth", 69.758, PLAIN)),
    _model("resnet34", "resnet", 21797672, 3.664, ("resnet34-b627a593.pth", 73.314, PLAIN)),
    _model(
        "resnet50", "resnet", 25557032, 4.089, ("resnet50-0676ba61.pth", 76.13, PLAIN),
        ("resnet50-11ad3fa6.pth", 80.858, NEWER),
    ),
    _model(
        "resnet101", "resnet", 44549160, 7.801, ("resnet101-63fe2227.pth", 77.374, PLAIN),
        ("resnet101-cd907fc2.pth", 81.886, NEWER),
    ),
    _model(
        "resnet152", "resnet", 60192808, 11.514, ("resnet152-394f9c45.pth", 78.312, PLAIN),
        ("resnet152-f82ba261.pth", 82.284, NEWER),
    ),
    _model(
        "resnext50_32x4d", "resnext", 25028904, 4.23, ("resnext50_32x4d-7cdf4587.pth", 77.618, PLAIN),
        ("resnext50_32x4d-1a0047aa.pth", 81.198, NEWER),
    ),
    _model(
        "resnext101_64x4d", "resnext", 83455272, 15.46, ("resnext101_64x4d-173b62eb.pth", 83.246, NEWER),
        more=(weights_of_cadene("resnext101_64x4d-e77a0586.pth", 78.956, PLAIN),),
    ),
    _model(
        "convnext_tiny", "convnext", 28589128, 4.456, ("convnext_tiny-983f1562.pth", 82.52, Preprocessing(resize=236)),
    ),
    _model(
        "convnext_small", "convnext", 50223688, 8.684,
        ("convnext_small-0c510722.pth", 83.616, Preprocessing(resize=230)),
    ),
    _model("convnext_base", "convnext", 88591464, 15.355, ("convnext_base-6075fbad.pth", 84.062, NEWER)),
    _model(
        "efficientnet_b0", "efficientnet", 5288548, 0.386,
        ("efficientnet_b0_rwightman-7f5810bc.pth", 77.692, bicubic(224, 256)),
    ),
    _model(
        "efficientnet_b1", "efficientnet", 7794184, 0.687,
        ("efficientnet_b1_rwightman-bac287d4.pth", 78.642, bicubic(240, 256)),
        ("efficientnet_b1-c27df63c.pth", 79.838, Preprocessing(240, 255)),
    ),
    _model(
        "efficientnet_b2", "efficientnet", 9109994, 1.088,
        ("efficientnet_b2_rwightman-c35c1473.pth", 80.608, bicubic(288, 288)),
    ),
    _model(
        "efficientnet_b3", "efficientnet", 12233232, 1.827,
        ("efficientnet_b3_rwightman-b3899882.pth", 82.008, bicubic(300, 320)),
    ),
    _model(
        "efficientnet_b4", "efficientnet", 19341616, 4.394,
        ("efficientnet_b4_rwightman-23ab8bcd.pth", 83.384, bicubic(380, 384)),
    ),
    _model(
        "mobilenetv3_large", "mobilenetv3", 5483032, 0.217, ("mobilenet_v3_large-8738ca79.pth", 74.042, PLAIN),
        ("mobilenet_v3_large-5c1a4163.pth", 75.274, NEWER), builder="mobilenet_v3_large",
    ),
    _model(
        "regnety_016", "regnet", 11202430, 1.612, ("regnet_y_1_6gf-b11a554e.pth", 77.95, PLAIN),
        ("regnet_y_1_6gf-0d7bc02a.pth", 80.876, NEWER), builder="regnet_y_1_6gf",
    ),
    _model(
        "regnety_032", "regnet", 19436338, 3.176, ("regnet_y_3_2gf-b5a9779c.pth", 78.948, PLAIN),
        ("regnet_y_3_2gf-9180c971.pth", 81.982, NEWER), builder="regnet_y_3_2gf",
    ),
    _model("swin_tiny", "swin", 28288354, 4.491, ("swin_t-704ceda3.pth", 81.474, bicubic(224, 232)), builder="swin_t"),
)
# fmt: on
