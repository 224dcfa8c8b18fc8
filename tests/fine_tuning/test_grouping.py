from __future__ import annotations

import pytest
import torch
from torch import nn

import model_zoo
from mxtorch.fine_tuning import layer_groups, layer_wise_groups
from mxtorch.fine_tuning.grouping import blocks


def test_groups_of_the_zoo_and_of_others():
    net = model_zoo.create("resnet18")
    assert {name: set(group) for name, group in layer_groups(net).items()} == {
        name: set(group) for name, group in model_zoo.groups(net).items()
    }
    own = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    found = layer_groups(own, head="6")
    assert list(found) == ["low", "mid", "high", "head"]
    assert [len(group) for group in found.values()] == [4, 4, 4, 2]
    assert list(found["low"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_blocks_go_into_sequentials():
    assert blocks(model_zoo.create("resnet18"))[:4] == ["conv1", "bn1", "layer1.0", "layer1.1"]
    assert blocks(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(1, 1), nn.ReLU()))) == ["1.0"]


@pytest.mark.parametrize("name", ["resnet18", "vit_small"])
def test_layer_wise_rates_fall_towards_the_input(name):
    net = model_zoo.create(name)
    groups = layer_wise_groups(net, lr=0.1, decay=0.5)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.1
    assert len(groups) >= 10
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())
    assert id(net.fc.weight) in {id(parameter) for parameter in groups[0]["params"]}
    torch.optim.SGD(groups)
    net.fc.requires_grad_(False)
    rest = layer_wise_groups(net, lr=0.1, decay=0.5)
    assert id(net.fc.weight) not in {id(parameter) for group in rest for parameter in group["params"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": float("nan")}, "lr: got nan"),
        ({"lr": 0}, "lr: got 0"),
        ({"lr": 1, "decay": 2}, "decay: got 2"),
        ({"lr": 1, "frozen": True}, "is frozen"),
    ],
)
def test_arguments_that_are_off(options, message):
    net = nn.Linear(2, 2).requires_grad_(not options.pop("frozen", False))
    with pytest.raises(ValueError, match=message):
        layer_wise_groups(net, **options)
