from __future__ import annotations

import pytest
import torch
from torch import nn

import model_zoo
from mxtorch import ScheduledOptim


def norms(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_frozen_normalisation_stays_in_evaluation_mode():
    net = model_zoo.freeze_to(model_zoo.resnet18(), "mid")
    net.train()
    modes = {name: module.training for name, module in norms(net).items()}
    assert all(training == name.startswith(("layer3", "layer4")) for name, training in modes.items())
    before = {name: module.running_mean.clone() for name, module in norms(net).items()}
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    for name, module in norms(net).items():
        assert torch.equal(module.running_mean, before[name]) != modes[name]
    assert net.conv1.weight.grad is None
    assert net.layer3[0].conv1.weight.grad is not None
    model_zoo.unfreeze(net)
    assert all(module.training for module in norms(net).values())
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.eval()
    model_zoo.freeze(net)
    assert not net.training


def test_rates_fall_towards_the_input():
    net = model_zoo.freeze_to(model_zoo.efficientnet_lite0(), "low")
    found = model_zoo.param_groups(net, lr=0.1, decay=0.5)
    assert [group["name"] for group in found] == ["low", "mid", "high", "head"]
    assert [group["lr"] for group in found] == pytest.approx([0.0125, 0.025, 0.05, 0.1])
    listed = [parameter for group in found for parameter in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in net.parameters() if p.requires_grad}
    optimizer = ScheduledOptim(torch.optim.SGD(found, momentum=0.9))
    optimizer.set_learning_rate(1.25)
    assert optimizer.learning_rates == pytest.approx([1.25, 2.5, 5.0, 10.0])


def test_groups_of_other_models_of_timm():
    net = model_zoo.create("timm/vit_tiny_patch16_224", num_classes=3)
    found = model_zoo.groups(net)
    assert list(found["head"]) == ["head.weight", "head.bias"]
    assert {name.split(".")[1] for name in found["low"]} == {"0", "1", "2", "3"}
    assert "pos_embed" in found["stem"]
    assert sum(len(members) for members in found.values()) == len(list(net.parameters()))


def test_wrong_values_change_nothing():
    net = model_zoo.resnet10t()
    with pytest.raises(ValueError, match="group: got 'layer3'; give one of stem, low, mid, high, head"):
        model_zoo.freeze_to(net, "layer3")
    assert all(parameter.requires_grad for parameter in net.parameters())
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"lr": 1.0, "decay": 0.0}, {"lr": 1.0, "decay": 2.0}):
        with pytest.raises(ValueError, match=r"lr|decay"):
            model_zoo.param_groups(net, **wrong)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        model_zoo.param_groups(net.requires_grad_(False), 0.1)
    for function in (model_zoo.groups, model_zoo.freeze, model_zoo.features, model_zoo.taps, model_zoo.fuse):
        with pytest.raises(ValueError, match="not built by the zoo"):
            function(nn.Linear(1, 1))
