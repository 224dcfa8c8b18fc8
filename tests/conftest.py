"""Small networks and data that the tests share."""

from __future__ import annotations

import random

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def two_moons() -> TensorDataset:
    """256 points of two classes that a line does not quite separate."""
    inputs = torch.randn(256, 8)
    labels = (inputs[:, 0] + inputs[:, 1] ** 2 > 0.5).long()
    return TensorDataset(inputs, labels)


@pytest.fixture
def loader(two_moons) -> DataLoader:
    return DataLoader(two_moons, batch_size=32, shuffle=True)


@pytest.fixture
def net() -> nn.Module:
    """Batch normalisation and dropout: state besides the parameters, randomness in the step."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
