from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model_zoo
from mxtorch.fine_tuning import CutError, find_cut


class Block(nn.Module):
    """A residual block, with a dropout in its own forward."""

    def __init__(self, width: int = 6, rate: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.rate = nn.Linear(width, width), nn.Linear(width, width), rate

    def forward(self, inputs):
        inner = F.dropout(F.relu(self.first(inputs)), self.rate, self.training)
        return inputs + self.second(inner)


class Network(nn.Module):
    """Parameters of its own, functions between the layers, a dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 2.0))
        self.stem, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.body = nn.Sequential(Block(), Block())
        self.pool, self.head = nn.Identity(), nn.Sequential(nn.Dropout(0.4), nn.Linear(6, 3))

    def forward(self, inputs):
        x = self.body(F.relu(self.norm(self.stem(inputs))) * self.scale)
        return self.head(F.dropout(self.pool(x), 0.3, self.training)) * 2


def trained(net, *names):
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(names))
    return net


def check(net, cut, inputs):
    """In two parts as in one, in both modes, with the same random numbers and gradients."""
    from mxtorch.training.modes import set_training_mode

    features = cut.features(inputs)
    assert not features.requires_grad
    for train in (True, False):
        results = []
        for parts in (False, True):
            torch.manual_seed(5)
            set_training_mode(net) if train else net.eval()
            net.zero_grad()
            outputs = cut.outputs(features) if parts else net(inputs)
            outputs.square().sum().backward()
            gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
            results.append((outputs, *gradients, torch.rand(1)))
        assert len(results[0]) == len(results[1])
        for whole, two in zip(*results, strict=True):
            assert torch.allclose(whole, two, rtol=1e-4, atol=1e-5)
    with cut.in_force():
        assert torch.allclose(net(features), net(inputs), rtol=1e-4, atol=1e-5)  # it takes inputs as well
    assert torch.allclose(net(inputs), cut.outputs(features), rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(net)


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("head",), "the output of 'pool'"),  # the dropout between pool and head must go on
        (("head", "body.1"), "the input of 'body.1'"),
        (("head", "body.1.second"), "the input of 'body.1'"),  # its first layer is in a residual branch
        (("head", "body"), "the input of 'body.0'"),
    ],
)
def test_a_network_is_cut_as_late_as_can_be(names, place):
    net = trained(Network(), *names)
    inputs = torch.randn(8, 4)
    cut = find_cut(net, inputs)
    assert str(cut) == place
    check(net, cut, inputs)


def test_finding_a_cut_leaves_no_trace():
    net = trained(Network(), "head", "body.1").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, random = [module.training for module in net.modules()], torch.get_rng_state()
    find_cut(net, torch.randn(8, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any("forward" in vars(module) for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Mixing(nn.Module):
    """Samples that depend on the others of their batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, inputs):
        x = self.inner(inputs)
        return x - x.mean(0)


class Pair(NamedTuple):
    hidden: torch.Tensor
    nothing: None


@dataclass
class Record:
    hidden: torch.Tensor


class Wrapping(nn.Module):
    """Gives its output inside another object, as the networks of transformers do."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(4, 6), wrap

    def forward(self, inputs):
        return self.wrap(self.inner(inputs))


class Structured(nn.Module):
    """The output of its body is a structure, which `read` opens; with `past` it also goes past the head."""

    def __init__(self, wrap, read, past) -> None:
        super().__init__()
        self.body, self.between, self.head = Wrapping(wrap), nn.Linear(6, 6), nn.Linear(6, 6)
        self.read, self.past = read, past

    def forward(self, inputs):
        hidden = self.read(self.body(inputs))
        assert len(hidden) == len(inputs)
        logits = self.head(self.between(hidden))
        return {"logits": logits + hidden if self.past else logits, "state": UserDict(hidden=None)}


STRUCTURES = {
    "dict": (lambda x: {"hidden": x, "nothing": None}, lambda output: output["hidden"]),
    "UserDict": (lambda x: UserDict(hidden=[x], nothing=None), lambda output: output.data["hidden"][0]),
    "named tuple": (lambda x: Pair(x, None), lambda output: output.hidden),
    "dataclass": (lambda x: Record(x), lambda output: output.hidden),
}


@pytest.mark.parametrize("kind", ["dict", "UserDict", "named tuple"])
def test_modules_that_give_structures(kind):
    net = trained(Structured(*STRUCTURES[kind], past=False), "head")
    inputs = torch.randn(8, 4)
    cut = find_cut(net, inputs, at="head")
    assert str(cut) == "the input of 'head'"
    for count in (8, 3):
        logits = cut.outputs(cut.features(inputs[:count]))["logits"]
        assert torch.allclose(logits, net(inputs[:count])["logits"], atol=1e-6)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_what_goes_past_the_cut_in_a_structure_is_found(kind):
    net = trained(Structured(*STRUCTURES[kind], past=True), "head")
    with pytest.raises(CutError, match="a residual connection goes past it"):
        find_cut(net, torch.randn(8, 4), at="head")


class Counting(nn.Linear):
    """Becomes stronger with each call in training mode."""

    calls = 1

    def forward(self, inputs):
        self.calls += self.training
        return super().forward(inputs) * self.calls


def test_finding_a_cut_leaves_attributes_alone():
    net = nn.Sequential(nn.Linear(4, 6), Counting(6, 3))
    net[0].requires_grad_(False)
    assert str(find_cut(net, torch.randn(8, 4))) == "the input of '1'"
    assert net[1].calls == 1


class Between(nn.Module):
    """What is frozen is used beside the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, inputs):
        x = self.body(inputs)
        return x + self.head(F.relu(x))


def test_features_that_are_used_twice():
    net, inputs = trained(Between(), "head"), torch.randn(8, 4)
    cut = find_cut(net, inputs)
    assert str(cut) == "the output of 'body'"
    check(net, cut, inputs)


@pytest.mark.parametrize(
    ("build", "names", "at", "message"),
    [
        (Network, (), None, "nothing is left to train"),
        (Network, ("",), None, "nothing is frozen"),
        (Network, ("scale",), None, "belongs to the network itself"),
        (Network, ("head", "body.1"), "body.1.second", "'body.1.first', which comes before it, is trained"),
        (Network, ("head", "body.1.second"), "body.1.second", "a residual connection goes past it.*try 'body.1'"),
        (Network, ("head", "stem"), "head", "'stem', which comes before it, is trained"),
        (Network, ("head",), "heap", "did you mean 'head'"),
        (lambda: nn.Sequential(Mixing(), nn.Linear(6, 3)), ("1",), None, "depends on the other samples"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), ("1",), None, "the shape of the inputs"),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), ("0",), None, "the shape of the inputs"),
    ],
)
def test_where_a_network_can_not_be_cut(build, names, at, message):
    net = trained(build(), *names) if names != ("",) else build()
    with pytest.raises(ValueError, match=message) as error:
        find_cut(net, torch.randn(8, 4), at)
    assert isinstance(error.value, CutError) or at == "heap"


def test_an_earlier_place_can_be_asked_for():
    net = trained(Network(), "head")
    inputs = torch.randn(8, 4)
    cut = find_cut(net, inputs, at="body.1")
    assert str(cut) == "the input of 'body.1'"
    assert "body.0.first.weight" in cut.frozen
    assert "norm.running_mean" in cut.frozen
    assert "scale" in cut.frozen
    assert not any(name.startswith(("body.1", "head")) for name in cut.frozen)
    check(net, cut, inputs)


@pytest.mark.parametrize(
    ("name", "group", "size"),
    [
        ("resnet18", "head", 64),
        ("resnet18", "high", 64),
        ("efficientnet_lite0", "head", 64),
        ("efficientnet_b0", "high", 64),  # stochastic depth
        ("squeezenet1_1", "head", 64),  # a convolution as the head, and layers after it
        ("densenet121", "head", 64),  # functions between its body and its head
        ("se_resnet50", "head", 64),  # a dropout in its own forward
        ("se_resnet152", "head", 64),  # so deep that rounding grows to whole digits
        ("inception_v3", "head", 128),
        ("vit_small", "high", 224),
    ],
)
def test_networks_of_the_zoo(name, group, size):
    torch.manual_seed(0)
    net = model_zoo.create(name, num_classes=5)
    model_zoo.freeze_to(net, group)
    inputs = torch.randn(2, 3, size, size)
    if name == "vit_small":
        net.train()
    cut = find_cut(net, inputs)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen <= set(cut.frozen) or group == "high"
    features = cut.features(inputs)
    net.eval()
    with torch.no_grad():
        assert torch.allclose(cut.outputs(features), net(inputs), rtol=1e-3, atol=1e-4)
