"""Features are computed by several threads, with normalisation folded, and are what the network gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import model_zoo
from mxtorch.fine_tuning import FeatureCache
from mxtorch.fine_tuning.frozen_pass import FrozenPass


@pytest.fixture
def threads():
    """Two threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dataset():
    return TensorDataset(torch.randn(22, 3, 8, 8), torch.arange(22) % 2)


def features(trainer, dataset, told=None, **options):
    cache = FeatureCache(trainer, tell=(told if told is not None else []).append, **options)
    bank = cache.loader(DataLoader(dataset, 5)).dataset.bank
    expected = cache.cut.features(dataset.tensors[0])
    return bank, expected


def test_several_threads_give_each_sample_its_own_row(threads, frozen, make, dataset):
    bank, expected = features(make(frozen, channels_last=False), dataset)
    assert torch.allclose(bank.features, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.stack(bank.rest), dataset.tensors[1])
    assert torch.get_num_threads() == 2


class Remembers(nn.Module):
    """Keeps its input for the next module, as some networks do: threads that share it would mix up their batches."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, inputs):
        self.kept = inputs
        return self.layer(torch.relu(self.layer(inputs))) + self.kept


def test_what_modules_keep_is_of_one_thread(threads, make):
    torch.manual_seed(0)
    body = nn.Sequential(Remembers(), nn.Linear(64, 32))
    net = nn.Sequential(body, nn.Linear(32, 2))
    body.requires_grad_(False)
    dataset = TensorDataset(torch.randn(400, 64), torch.arange(400) % 2)
    bank, expected = features(make(net), dataset)
    assert torch.allclose(bank.features, expected, atol=1e-5)


class NotCopied(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("there is one of it")


def test_a_network_that_cannot_be_copied(threads, make):
    net = nn.Sequential(NotCopied(64, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    bank, expected = features(make(net), TensorDataset(torch.randn(12, 64), torch.arange(12) % 2))
    assert torch.allclose(bank.features, expected, atol=1e-6)


def test_an_error_in_a_thread_is_raised(threads, frozen, make, dataset, monkeypatch):
    def fails(self, inputs):
        raise RuntimeError("no more")

    trainer = make(frozen, channels_last=False)
    cache = FeatureCache(trainer, tell=[].append)
    monkeypatch.setattr(FrozenPass, "_computed", lambda self, compute, inputs: fails(self, inputs))
    bank = cache.loader(DataLoader(dataset, 5)).dataset.bank
    assert torch.allclose(bank.features, cache.cut.features(dataset.tensors[0]), atol=1e-6), "the network itself"
    monkeypatch.setattr(type(cache), "_features", fails)
    with pytest.raises(RuntimeError, match="no more"):
        cache.loader(DataLoader(TensorDataset(*dataset.tensors), 5))


def zoo_network():
    torch.manual_seed(0)
    net = model_zoo.resnet18()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.requires_grad_(False)
    net.fc = nn.Linear(net.fc.in_features, 2)
    return net


@pytest.mark.parametrize("exact", [False, True])
def test_normalisation_of_the_zoo_is_folded(make, exact):
    net = zoo_network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dataset = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
    told: list[str] = []
    bank, expected = features(make(net, channels_last=False), dataset, told, exact=exact)
    assert torch.allclose(bank.features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert ("folded" in told[-1]) is not exact
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_layers_are_folded_once_for_all_data_sets_until_they_change(make, monkeypatch):
    net = zoo_network()
    folded = []
    fuse = model_zoo.fuse
    monkeypatch.setattr(model_zoo, "fuse", lambda model: folded.append(1) or fuse(model))
    cache = FeatureCache(make(net, channels_last=False), tell=[].append)

    def are_right():
        dataset = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
        bank = cache.loader(DataLoader(dataset, 3)).dataset.bank
        expected = cache.cut.features(dataset.tensors[0])
        return torch.allclose(bank.features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    assert are_right()
    assert are_right()
    assert len(folded) == 1
    with torch.no_grad():
        net.conv1.weight.copy_(net.conv1.weight.flip(0))  # the sum of its elements stays
    assert are_right()
    assert len(folded) == 2


def test_a_folding_that_is_wrong_is_not_used(make, monkeypatch):
    def wrong(net):
        folded = zoo_network()
        with torch.no_grad():
            folded.conv1.weight.mul_(2)
        return folded

    monkeypatch.setattr(model_zoo, "fuse", wrong)
    dataset = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
    told: list[str] = []
    bank, expected = features(make(zoo_network(), channels_last=False), dataset, told)
    assert "folded" not in told[-1]
    assert torch.allclose(bank.features, expected, atol=1e-5)


def test_a_small_head_is_trained_by_one_thread(threads, frozen, make, dataset):
    cache = FeatureCache(make(frozen, channels_last=False), tell=[].append)
    cache.loader(DataLoader(dataset, 5))
    with cache.in_force():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
