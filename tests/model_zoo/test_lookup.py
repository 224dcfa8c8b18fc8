from __future__ import annotations

import pytest

import model_zoo


def test_lists():
    names = model_zoo.list_models()
    assert len(names) == 62
    assert model_zoo.list_models("resnext*") == ["resnext50_32x4d", "resnext101_64x4d", "resnext101_32x4d"]
    assert model_zoo.list_models(pretrained=True, licence="commercial") == names, "every default may be used"
    bsd = model_zoo.list_models(licence="BSD-3-Clause")
    assert "resnet50" in bsd
    assert "senet154" not in bsd
    assert "timm/resnet50" in model_zoo.list_models("timm/resnet5*")
    with pytest.raises(ValueError, match=r"licence: got 'GPL'; give 'commercial' or one of Apache-2\.0, BSD-3-Clause"):
        model_zoo.list_models(licence="GPL")


def test_non_commercial_defaults_are_left_out(pin):
    pin("resnet10t", licence="CC-BY-NC-4.0")
    assert "resnet10t" not in model_zoo.list_models("resnet*", licence="commercial")
    assert model_zoo.list_models(licence="CC-BY-NC-4.0") == ["resnet10t"]


@pytest.mark.parametrize(
    ("licence", "commercial"),
    [
        ("Apache-2.0", True),
        ("mit", True),
        ("cc-by-nc-4.0", False),
        ("fair-noncommercial-research-license", False),
        ("unknown", False),
    ],
)
def test_licences(licence, commercial):
    assert model_zoo.Weights("x", (), licence).commercial == commercial


def test_cards():
    card = model_zoo.info("resnet50")
    text = str(card)
    for part in ("25.56 M parameters", "4.09 GMACs at 224", "torchvision", "IMAGENET1K_V2", "80.86 %", "11ad3fa6"):
        assert part in text
    assert card.weights[0].measured_by == "torchvision"


def test_cards_of_other_models_of_timm():
    card = model_zoo.info("timm/resnet26d")
    assert card.parameters == 16_014_408
    assert card.gmacs == pytest.approx(2.58, abs=0.01)
    assert card.weights[0].tag == "bt_in1k"
    assert card.weights[0].files[0].sha256 == "69e92c46"
    assert card.weights[0].files[1].hub == "timm/resnet26d.bt_in1k"
    named = model_zoo.info("timm/resnet50.tv_in1k")
    assert named.weights[0].tag == "tv_in1k"


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        model_zoo.info("resnet5O")
    with pytest.raises(ValueError, match="did you mean 'timm/resnet26d'"):
        model_zoo.info("timm/resnet26dd")
    with pytest.raises(ValueError, match="timm has weights"):
        model_zoo.info("timm/resnet50.tv2_in2k")
    with pytest.raises(TypeError, match="give a name"):
        model_zoo.info(50)
