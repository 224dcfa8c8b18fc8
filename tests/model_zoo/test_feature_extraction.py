from __future__ import annotations

import pytest
import torch
from torch import nn

import model_zoo


@pytest.mark.parametrize("name", ["resnet18", "vit_small", "convnext_tiny", "densenet121"])
def test_features_are_the_input_of_the_head(name):
    net = model_zoo.create(name, num_classes=4).eval()
    pictures = torch.randn(2, 3, 224 if name == "vit_small" else 64, 224 if name == "vit_small" else 64)
    with torch.no_grad():
        assert torch.allclose(net.fc(model_zoo.features(net)(pictures)), net(pictures), atol=1e-5)


def test_features_do_not_depend_on_the_head():
    net = model_zoo.squeezenet1_1().eval()
    pictures = torch.randn(2, 3, 64, 64)
    extract = model_zoo.features(net)
    before = extract(pictures)
    assert torch.allclose(before, net.features(pictures).mean((2, 3)), atol=1e-6)
    net.fc = nn.Linear(512, 2)
    assert torch.equal(extract(pictures), before)
    assert len(net.fc._forward_pre_hooks) == 1, "that which lets a linear head take maps, and no other"


def test_taps_return_the_maps():
    net = model_zoo.resnet18().eval()
    pictures = torch.randn(1, 3, 64, 64)
    maps = model_zoo.taps(net)(pictures)
    low = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(pictures))))))
    assert torch.equal(maps["low"], low)
    assert [tap.shape[-1] for tap in maps.values()] == [16, 8, 4, 2]
    maps["high"].sum().backward()
    assert net.conv1.weight.grad is not None
    assert not any(module._forward_hooks for module in net.modules()), "hooks are gone"


def test_maps_of_transformers_are_in_the_usual_order():
    net = model_zoo.vit_small().eval()
    pictures = torch.zeros(1, 3, 224, 224)
    pictures[..., :16, -16:] = 5  # the patch at the upper right differs from the others
    net.pos_embed.data.zero_()
    stem = model_zoo.taps(net)(pictures)["stem"]
    unlike = (stem - stem[..., -1:, :1]).abs().sum(1)[0] > 1e-4
    assert unlike.nonzero().tolist() == [[0, 13]]


def test_taps_of_other_models_of_timm():
    net = model_zoo.create("timm/resnet26d", num_classes=2).eval()
    maps = model_zoo.taps(net)(torch.randn(1, 3, 64, 64))
    assert [tap.shape[-1] for tap in maps.values()] == [16, 8, 4, 2]
    assert list(maps) == ["stem", "low", "mid", "high"]
