"""The data and the network of the tests of a search."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from searched import make_network
from torch.utils.data import DataLoader, Subset, TensorDataset

from mxtorch.lr_finder import budget
from mxtorch.lr_finder.runner import SearchRunner


@pytest.fixture
def blobs():
    """Four classes of points around centres of their own, some of them mislabelled."""
    torch.manual_seed(4)
    labels = torch.randint(4, (512,))
    inputs = torch.randn(512, 8) + 1.5 * torch.randn(4, 8)[labels]
    labels = torch.where(torch.rand(512) < 0.1, labels.roll(1), labels)
    return TensorDataset(inputs, labels)


@pytest.fixture
def train_data(blobs):
    return DataLoader(Subset(blobs, range(384)), 16, shuffle=True)


@pytest.fixture
def val_data(blobs):
    return DataLoader(Subset(blobs, range(384, 512)), 32)


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def quick(monkeypatch):
    """Lets a search without a budget take 300 steps, as if each took ten milliseconds."""
    numbers = dataclasses.replace(budget.NUMBERS, seconds=3.0)
    monkeypatch.setattr(budget, "NUMBERS", numbers)
    measured = SearchRunner.seconds_per_step

    def seconds_per_step(runner, rate):
        assert measured(runner, rate) > 0
        return 0.01

    monkeypatch.setattr(SearchRunner, "seconds_per_step", seconds_per_step)
