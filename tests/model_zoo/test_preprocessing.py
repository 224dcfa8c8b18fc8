from __future__ import annotations

import pytest
import torch
from PIL import Image

import model_zoo


def test_a_picture_becomes_what_the_weights_know():
    picture = Image.new("RGB", (300, 200), (255, 0, 0))
    for name, size in (("inceptionresnetv2", 299), ("resnet50", 224)):
        out = model_zoo.preprocess(name)(picture)
        assert out.shape == (3, size, size)
        assert out.dtype == torch.float32
    assert out[0].mean() == pytest.approx((1 - 0.485) / 0.229, rel=1e-4)
    assert model_zoo.preprocess(name, train=True, size=96)(picture).shape == (3, 96, 96)


def test_it_follows_the_weights_in_use():
    steps = model_zoo.preprocess("efficientnet_b1").transforms
    assert (steps[0].size, steps[0].interpolation.value, steps[1].size) == ([256], "bicubic", (240, 240))
    net = model_zoo.resnet50()
    net.zoo_weights = "IMAGENET1K_V2"
    assert model_zoo.preprocess(net).transforms[0].size == [232]
    assert model_zoo.preprocess(net, size=112).transforms[0].size == [116]


def test_networks_from_caffe_take_bgr_up_to_255():
    out = model_zoo.preprocess("bninception")(Image.new("RGB", (256, 256), (255, 0, 10)))
    assert out.mean((1, 2)).tolist() == pytest.approx([10 - 104, 0 - 117, 255 - 128], abs=1e-3)


def test_one_channel():
    net = model_zoo.resnet10t(in_channels=1)
    out = model_zoo.preprocess(net)(Image.new("RGB", (200, 200), (128, 128, 128)))
    assert out.shape == (1, 176, 176)
    assert net.eval()(out[None]).shape == (1, 1000)


def test_wrong_values():
    with pytest.raises(ValueError, match="not built by the zoo"):
        model_zoo.preprocess(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="takes 5 channels"):
        model_zoo.preprocess(model_zoo.resnet10t(in_channels=5))
    for wrong in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match="size: got"):
            model_zoo.preprocess("resnet18", size=wrong)
        with pytest.raises(ValueError, match="size: got"):
            model_zoo.fuse(model_zoo.resnet10t(), size=wrong)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        model_zoo.preprocess("resnet_18")
