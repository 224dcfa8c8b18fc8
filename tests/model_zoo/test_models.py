"""Properties of every model of the list. Most are built on the meta device, where nothing is computed."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model_zoo
from model_zoo.families import GROUPS


@pytest.mark.parametrize("name", model_zoo.list_models())
def test_the_interface_of_every_model(name):
    build, card = getattr(model_zoo, name), model_zoo.info(name)
    size = card.preprocessing.size
    with torch.device("meta"):
        pictures = torch.empty(2, 3, size, size)
        net = build(num_classes=7)
        assert net(pictures).shape == (2, 7), "one tensor, also in training mode"
        net.eval()
        width, keys = net.fc.in_features, list(net.state_dict())
        assert net.fc.out_features == 7
        net.fc = nn.Linear(width, 1000)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(pictures[:1])
        assert sum(parameter.numel() for parameter in net.parameters()) == card.parameters
        assert counter.get_total_flops() / 2e9 == pytest.approx(card.gmacs, abs=6e-4)
        head = nn.Linear(width, 5)
        net.fc = head
        assert net.fc is head
        assert list(net.state_dict()) == keys
        with torch.no_grad():
            assert net(pictures).shape == (2, 5)
        assert model_zoo.features(net)(pictures).shape == (2, width)

        members = model_zoo.groups(net)
        assert list(members) == list(GROUPS)
        assert all(members.values())
        named = [parameter for group in members.values() for parameter in group]
        assert sorted(named) == sorted(parameter for parameter, _ in net.named_parameters())
        assert {id(parameter) for parameter in members["head"].values()} == {id(p) for p in head.parameters()}

        maps = model_zoo.taps(net)(pictures)
        assert list(maps) == list(GROUPS[:-1])
        sides = [tap.shape[-1] for tap in maps.values()]
        assert all(tap.ndim == 4 and len(tap) == 2 for tap in maps.values())
        assert sides == sorted(sides, reverse=True)

        model_zoo.freeze(net)
        assert {name for name, p in net.named_parameters() if p.requires_grad} == set(members["head"])
        torch.optim.SGD(model_zoo.param_groups(model_zoo.unfreeze(net), lr=0.1))
    assert model_zoo.preprocess(net, size=32) is not None


def test_functions_have_names_docstrings_and_signatures():
    assert (model_zoo.resnet50.__module__, model_zoo.resnet50.__qualname__) == ("model_zoo", "resnet50")
    assert "arXiv 1512.03385" in model_zoo.resnet50.__doc__
    of_create = inspect.signature(model_zoo.create).parameters
    of_model = inspect.signature(model_zoo.vit_small).parameters
    assert list(of_model) == ["pretrained", "num_classes", "in_channels", "weights"]
    assert all(of_model[name] == of_create[name] for name in of_model)
    with pytest.raises(TypeError, match="unexpected keyword argument 'classes'"):
        model_zoo.resnet18(classes=3)


# One model of each kind; `python benchmarks/modes.py` runs all models.
MODES = {
    "squeezenet1_1": 64,
    "resnet18": 64,
    "dpn68": 64,
    "convnext_tiny": 64,
    "efficientnet_lite0": 64,
    "swin_tiny": 64,
    "vit_small": 224,
}


@pytest.mark.parametrize("name", MODES)
def test_compiled_channels_last_and_exported(name):
    if name == "swin_tiny" and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 warns while it exports attention masks")
    torch._dynamo.reset()
    net = model_zoo.create(name, num_classes=5).eval()
    pictures = torch.randn(1, 3, MODES[name], MODES[name])
    with torch.no_grad():
        expected = net(pictures)
        compiled = torch.compile(net, backend="eager", fullgraph=True)(pictures)
        exported = torch.export.export(net, (pictures,)).module()(pictures)
        last = net.to(memory_format=torch.channels_last)(pictures.to(memory_format=torch.channels_last))
    for output in (compiled, exported, last):
        assert torch.allclose(output, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
