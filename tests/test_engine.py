from __future__ import annotations

import pytest
import torch
from torch import nn

from mxtorch import Trainer


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(net, loader, precision, make):
    history = make(net, precision=precision).fit(loader, epochs=4)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_channels_last_for_convolutions(two_moons, make):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    seen = []

    class Watching(Trainer):
        def training_step(self, batch):
            seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
            return super().training_step(batch)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Watching(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    trainer.fit([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))])
    assert seen == [True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert make(nn.Linear(8, 2)).engine.memory_format is None


def test_compile_keeps_names(loader, net, make):
    names = list(net.state_dict())
    make(net, compile={"backend": "eager"}).fit(loader)
    assert list(net.state_dict()) == names
