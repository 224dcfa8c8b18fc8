from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import model_zoo


def test_a_picture_becomes_an_input_of_the_weights():
    picture = Image.new("RGB", (300, 200), (255, 0, 0))
    for name, size in (("inceptionresnetv2", 299), ("resnet50", 224)):
        out = model_zoo.preprocess(name)(picture)
        assert out.shape == (3, size, size)
        assert out.dtype == torch.float32
    assert out[0].mean() == pytest.approx((1 - 0.485) / 0.229, rel=1e-4)
    assert model_zoo.preprocess(name, train=True, size=96)(picture).shape == (3, 96, 96)


def test_it_follows_the_weights_of_the_network():
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
    with pytest.raises(ValueError, match="a network of 5 channels"):
        model_zoo.preprocess(model_zoo.resnet10t(in_channels=5))
    for wrong in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match="size: got"):
            model_zoo.preprocess("resnet18", size=wrong)
        with pytest.raises(ValueError, match="size: got"):
            model_zoo.fuse(model_zoo.resnet10t(), size=wrong)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        model_zoo.preprocess("resnet_18")


def noise(mode="RGB", size=(90, 70)):
    """A picture of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(90, 70), (60, 130), (224, 224)])
def test_every_crop_mode_equals_that_of_timm(crop_mode, size):
    from timm.data import create_transform

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    ours = model_zoo.Preprocessing(96, 106, "bicubic", mean, std, crop_mode=crop_mode).transforms()
    theirs = create_transform(
        96, mean=mean, std=std, crop_mode=crop_mode, crop_pct=0.9, interpolation="bicubic", is_training=False
    )
    assert torch.allclose(ours(noise(size=size)), theirs(noise(size=size)), atol=1e-5)


def test_the_crop_mode_follows_the_weights():
    assert model_zoo.info("timm/tf_efficientnetv2_b3.in21k_ft_in1k").preprocessing.crop_mode == "squash"
    assert model_zoo.info("timm/resnet10t").preprocessing.crop_mode == "center"
    with pytest.raises(ValueError, match="crop_mode: got 'centre'"):
        model_zoo.Preprocessing(crop_mode="centre").transforms()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1", "YCbCr", "HSV"])
@pytest.mark.parametrize("train", [False, True])
def test_pictures_of_any_mode_become_rgb(mode, train):
    """Pictures are converted as the data sets of torchvision and timm do."""
    transform = model_zoo.preprocess("resnet10t", size=32, train=train)
    for each in (transform, copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        found, expected = [], []
        for results, picture in ((found, noise(mode)), (expected, noise(mode).convert("RGB"))):
            torch.manual_seed(0)
            results.append(each(picture))
        assert torch.equal(found[0], expected[0])
        assert found[0].shape == (3, 32, 32)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pictures_with_more_than_8_bits_are_refused(kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (70, 90)).astype(kind))
    with pytest.raises(ValueError, match="more than 8 bits a pixel"):
        model_zoo.preprocess("resnet10t")(picture)
