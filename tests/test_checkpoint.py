from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import schedules


def test_save_and_load_go_on_bit_for_bit(two_moons, tmp_path, make, weights):
    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 2))
        return make(net, precision="fp16"), DataLoader(two_moons, 32, shuffle=True)

    trainer, loader = build()
    trainer.fit(loader, epochs=2, lr=0.1, schedule=schedules.OneCycle(40))
    trainer.save(tmp_path / "model.pt")
    trainer.fit(loader, epochs=1)
    again, loader = build()
    again.load(tmp_path / "model.pt")
    again.fit(loader, epochs=1)
    for a, b in zip(weights(again.model), weights(trainer.model), strict=True):
        assert torch.equal(a, b)
    assert again.step == trainer.step
    assert again.history["train/loss"] == trainer.history["train/loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_checkpoints_of_others_are_refused(net, tmp_path, make, weights):
    make(nn.Linear(8, 3)).save(tmp_path / "other.pt")
    before = weights(net)
    with pytest.raises(ValueError, match="another model"):
        make(net).load(tmp_path / "other.pt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        make(net).load(tmp_path / "plain.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))
