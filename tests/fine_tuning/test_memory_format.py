"""Fine-tuning of networks that can, and that can't, be in the channels-last memory format."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Flat(nn.Module):
    def forward(self, maps):
        return maps.flatten(1)


class ByView(nn.Module):
    def forward(self, maps):
        return maps.view(maps.size(0), -1)


@pytest.mark.parametrize("flat", [Flat, ByView])
@pytest.mark.parametrize("cache", ["memory", False])
def test_both_phases_train(make, flat, cache):
    labels = torch.arange(24) % 2
    data = TensorDataset(torch.randn(24, 3, 6, 6) + labels[:, None, None, None], labels)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), flat(), nn.Linear(64, 8), nn.Linear(8, 2)
    trainer = make(nn.Sequential(*layers))
    options = {"epochs": 1, "freeze_epochs": 2, "lr": 0.01, "head": "5"}
    trainer.fine_tune(DataLoader(data, 8), DataLoader(data, 8), cache=cache, **options)
    assert len(trainer.history["train/loss"]) == 3
    assert trainer.engine.memory_format is (torch.channels_last if flat is Flat else None)
    assert trainer.predict(DataLoader(data, 8)).shape == (24, 2)
