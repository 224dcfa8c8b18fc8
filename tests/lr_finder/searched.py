"""Trainers for the tests of a search."""

from __future__ import annotations

import torch
from torch import nn


def make_network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4))


def make_own(kind, network, loss=None, **options):
    """A trainer of a class of one's own."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return kind(network, loss, optimizer, device="cpu", progress=False, **options)
