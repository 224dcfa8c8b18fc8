from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader


def test_evaluate_is_the_mean_over_samples_and_leaves_modes(net, two_moons, make):
    trainer = make(net)
    net.train()
    net[3].eval()
    values = trainer.evaluate(DataLoader(two_moons, 100))
    assert [module.training for module in net] == [True, True, True, False, True]
    net.eval()
    inputs, labels = two_moons.tensors
    assert values["val/loss"] == pytest.approx(nn.functional.cross_entropy(net(inputs), labels).item(), rel=1e-5)


def test_predict_is_in_order(net, two_moons, make):
    outputs = make(net).predict(DataLoader(two_moons, 100))
    net.eval()
    assert torch.allclose(outputs, net(two_moons.tensors[0]), atol=1e-6)
    assert not outputs.requires_grad
