from __future__ import annotations

import os
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import model_zoo

# The original name, the zoo's name, the side of the pictures, the rows of the original classifier.
ORIGINALS = [
    ("alexnet", "alexnet", 224, 1000),
    ("vgg16", "vgg16", 224, 1000),
    ("squeezenet1_1", "squeezenet1_1", 64, 1000),
    ("densenet121", "densenet121", 224, 1000),
    ("inceptionv3", "inception_v3", 299, 1000),
    ("resnet50", "resnet50", 64, 1000),
    ("resnext101_32x4d", "resnext101_32x4d", 224, 1000),
    ("resnext101_64x4d", "resnext101_64x4d", 224, 1000),
    ("se_resnet50", "se_resnet50", 224, 1000),
    ("se_resnext50_32x4d", "se_resnext50_32x4d", 224, 1000),
    ("senet154", "senet154", 224, 1000),
    ("inceptionv4", "inceptionv4", 299, 1001),
    ("inceptionresnetv2", "inceptionresnetv2", 299, 1001),
    ("nasnetalarge", "nasnetalarge", 331, 1001),
    ("pnasnet5large", "pnasnet5large", 331, 1001),
    ("xception", "xception", 299, 1000),
    ("dpn68", "dpn68", 224, 1000),
    ("nasnetamobile", "nasnetamobile", 224, 1000),
    ("fbresnet152", "fbresnet152", 224, 1000),
    ("bninception", "bninception", 224, 1000),
    ("cafferesnet101", "cafferesnet101", 224, 1000),
    ("polynet", "polynet", 331, 1000),
]


def original(name, rows):
    """A network of pretrainedmodels with unusual statistics, because those of a new network would hide errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pretrainedmodels

        net = getattr(pretrainedmodels, name)(num_classes=rows, pretrained=None).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.05)
                module.running_var.uniform_(0.8, 1.25)
    return net


@pytest.mark.parametrize(("theirs", "ours", "side", "rows"), ORIGINALS, ids=[row[1] for row in ORIGINALS])
def test_the_same_function_as_the_original(theirs, ours, side, rows, tmp_path):
    net = original(theirs, rows)
    pictures = torch.randn(1, 3, side, side)
    torch.save(net.state_dict(), tmp_path / "original.pth")
    with torch.no_grad():
        expected = net(pictures).flatten(1)[:, rows - 1000 :]
        output = model_zoo.create(ours, weights=tmp_path / "original.pth").eval()(pictures)
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((output - expected).abs().max()) <= 2e-6 * scale


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_the_user(tmp_path, monkeypatch, agree, suffix):
    monkeypatch.chdir(tmp_path)
    net = model_zoo.resnet10t(num_classes=4, in_channels=2)
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, "mine.pth")
    else:
        save_file(net.state_dict(), "mine.safetensors")
    loaded = model_zoo.resnet10t(num_classes=4, in_channels=2, weights=f"mine{suffix}")
    assert agree(loaded, net)
    assert (loaded.zoo_weights, loaded.classes) == (None, None)


def test_torchvisions_own_files_of_densenet(tmp_path, agree):
    import re

    net = model_zoo.densenet121()
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): tensor for name, tensor in net.state_dict().items()}
    assert old.keys() != net.state_dict().keys()
    torch.save(old, tmp_path / "old.pth")
    assert agree(model_zoo.densenet121(weights=tmp_path / "old.pth"), net)


def test_class_counts(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(model_zoo.resnet10t(num_classes=5).state_dict(), path)
    with pytest.raises(ValueError, match="has 5 classes, but num_classes is 7; give num_classes=5"):
        model_zoo.resnet10t(num_classes=7, weights=path)
    with pytest.raises(ValueError, match="num_classes is 1000; give num_classes=5"):
        model_zoo.resnet10t(weights=path)
    thousand = model_zoo.resnet10t()
    torch.save(thousand.state_dict(), path)
    net = model_zoo.resnet10t(num_classes=7, weights=path)
    assert torch.equal(net.layer4[0].conv1.weight, thousand.layer4[0].conv1.weight)
    assert net.fc.out_features == 7


class Planted:
    def __reduce__(self):
        return os.system, ("touch planted",)


def test_wrong_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = model_zoo.resnet10t()
    state = net.state_dict()
    torch.save(state, "good.pth")
    with pytest.raises(ValueError, match=r"for another model: \d+ of 122 tensors do not fit .*conv1"):
        model_zoo.resnet18(weights="good.pth")
    torch.save({**state, "extra": torch.zeros(1)}, "extra.pth")
    with pytest.raises(ValueError, match="1 are unexpected"):
        model_zoo.resnet10t(weights="extra.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        model_zoo.resnet10t(weights="absent.pth")
    for planted in ({"conv1.weight": Planted()}, Planted(), net):
        torch.save(planted, "planted.pth")
        with pytest.raises(ValueError, match="refused; open it with the program that made it"):
            model_zoo.resnet10t(weights="planted.pth")
    assert not (tmp_path / "planted").exists()
    torch.save([1, 2], "list.pth")
    with pytest.raises(ValueError, match="does not hold a state_dict"):
        model_zoo.resnet10t(weights="list.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    for name, content in {
        "half.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "page.pth": b"<html>Not found</html>",
        "page.safetensors": b"<html>Not found</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|not a safetensors file"):
            model_zoo.resnet10t(weights=name)
