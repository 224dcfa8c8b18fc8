from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import model_zoo
from model_zoo import builders


def test_the_package_has_real_weights(monkeypatch):
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    net = model_zoo.efficientnet_lite0(pretrained=True).eval()
    assert net.zoo_weights == "in1k"
    assert float(net.bn1.running_mean.abs().max()) > 0.01, "a fresh network has zeros here"
    small = model_zoo.efficientnet_lite0(pretrained="in1k", num_classes=5)
    assert small.fc.out_features == 5
    assert torch.equal(small.conv_stem.weight, net.conv_stem.weight)


def test_other_channels_keep_the_weights():
    colour = model_zoo.efficientnet_lite0(pretrained=True).eval()
    grey = model_zoo.efficientnet_lite0(pretrained=True, in_channels=1).eval()
    six = model_zoo.efficientnet_lite0(pretrained=True, in_channels=6).eval()
    picture = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = colour(picture.expand(1, 3, 64, 64))
        assert torch.allclose(grey(picture), expected, atol=1e-4)
        assert torch.allclose(six(picture.expand(1, 6, 64, 64)), expected, atol=1e-4)
    assert (grey.conv_stem.in_channels, six.conv_stem.in_channels) == (1, 6)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "swin_tiny", "vit_small", "dpn68", "senet154", "polynet"])
def test_channels_of_every_kind_of_network(name):
    with torch.device("meta"):
        net = model_zoo.create(name, in_channels=2).eval()
        size = model_zoo.info(name).preprocessing.size
        assert net(torch.empty(1, 2, size, size)).shape == (1, 1000)


def test_any_model_of_timm():
    net = model_zoo.create("timm/mobilenetv2_050", num_classes=3, in_channels=1).eval()
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    assert net.fc.out_features == 3
    assert net.zoo_name == "timm/mobilenetv2_050"


def test_any_weights_of_timm(tmp_path, monkeypatch, agree):
    import timm
    from safetensors.torch import save_file

    monkeypatch.setenv("MXTORCH_WEIGHTS_MIRROR", str(tmp_path))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    theirs = timm.create_model("resnet10t")
    save_file(theirs.state_dict(), tmp_path / "resnet10t.c3_in1k.safetensors")
    with pytest.warns(UserWarning, match="no published hash"):
        net = model_zoo.create("timm/resnet10t.c3_in1k", pretrained=True)
    assert agree(net, theirs)
    assert (net.zoo_weights, net.classes[1]) == ("c3_in1k", "goldfish")
    few = model_zoo.create("timm/resnet10t", pretrained="c3_in1k", num_classes=4)
    assert torch.equal(few.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    assert (few.fc.out_features, few.classes) == (4, None)
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    assert agree(model_zoo.create("timm/resnet10t", weights=tmp_path / "own.pth"), theirs)


def test_non_commercial_weights_warn(published, pin, sha256):
    served, _ = published
    path = served.folder / "resnet10t-test.pth"
    file = model_zoo.WeightFile(path.name, f"{served.address}/{path.name}", sha256(path))
    pin("resnet10t", file, licence="CC-BY-NC-4.0")
    with pytest.warns(UserWarning, match=r"resnet10t: the weights c3_in1k have the licence CC-BY-NC-4\.0"):
        model_zoo.resnet10t(pretrained=True)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        model_zoo.create("resnet5O")
    with pytest.raises(ValueError, match=r"did you mean 'IMAGENET1K_V2'\? resnet50 has IMAGENET1K_V1, IMAGENET1K_V2"):
        model_zoo.resnet50(pretrained="IMAGENET1K")
    with pytest.raises(TypeError, match="pretrained: got 1"):
        model_zoo.resnet18(pretrained=1)
    for wrong in (0, -1, True, 2.0, "7", np.float64(3), np.bool_(True)):
        with pytest.raises(ValueError, match="num_classes: got"):
            model_zoo.resnet18(num_classes=wrong)
        with pytest.raises(ValueError, match="in_channels: got"):
            model_zoo.resnet18(in_channels=wrong)
    with pytest.raises(ValueError, match="give only one of the two"):
        model_zoo.resnet18(pretrained=True, weights="a.pth")
    with pytest.raises(ValueError, match="several classifiers"):
        model_zoo.create("timm/deit_tiny_distilled_patch16_224")


def test_integers_of_numpy():
    net = model_zoo.create("resnet10t", num_classes=np.int64(7), in_channels=np.int32(1))
    assert (net.fc.out_features, type(net.zoo_in_channels)) == (7, int)
    assert model_zoo.preprocess(net, size=np.uint8(64)).transforms[1].size == (64, 64)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pretrainedmodels", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mxtorch\[cadene\]"'):
        model_zoo.polynet()


def test_padding_is_not_counted_in_the_mean():
    from timm.layers import AvgPool2dSame

    maps = torch.rand(1, 2, 7, 7)
    pool = builders.AveragePoolWithoutPadding(AvgPool2dSame(3, stride=2))
    expected = torch.nn.functional.avg_pool2d(maps, 3, stride=2, padding=1, count_include_pad=False)
    assert torch.allclose(pool(maps), expected)
    assert not torch.allclose(pool.pool(maps), expected)


def test_the_import_is_light():
    """Large libraries are imported when they are needed."""
    script = """
import torch, sys
before = set(sys.modules)
import model_zoo
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new & {"torchvision", "timm", "safetensors", "huggingface_hub", "tqdm", "filelock", "PIL"}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_building_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("inception_v3", "squeezenet1_0", "nasnetamobile"):
            model_zoo.create(name)
