"""`Trainer.summary` and `Trainer.profile`."""

import builtins
import copy
import json
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mxtorch import ScheduledOptim, Trainer, schedules


class Slow(Dataset):
    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.randn(8), index % 2


def made(net, loss=None, **options):
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), schedules.OneCycle(50))
    return Trainer(net, loss or nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, **options)


def test_summary():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    net[0].requires_grad_(False)
    trainer = made(net)
    net.train()
    before = copy.deepcopy(net.state_dict())
    batch = torch.randn(5, 3, 8, 8), torch.zeros(5)
    random = torch.get_rng_state()
    found = trainer.summary(batch)
    assert found.total_params == sum(p.numel() for p in net.parameters())
    assert found.trainable_params == sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert found.total_mult_adds >= 5 * 4 * 36 * 3 * 9, "those of the convolution"
    assert "[5, 4, 6, 6]" in str(found)
    assert net.training
    assert net[1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_summary_of_batches_of_other_kinds():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2)

        def forward(self, first, second):
            return self.net(first + second)

    for batch in (
        {"first": torch.ones(3, 4), "second": torch.ones(3, 4), "labels": torch.zeros(3)},
        (torch.ones(3, 4), torch.ones(3, 4), torch.zeros(3)),
    ):
        assert made(Named()).summary(batch).total_params == 10


def test_what_summary_can_not_take(monkeypatch):
    trainer = made(nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"could not take the first batch.*\[3, 4\]"):
        trainer.summary((torch.ones(3, 4), torch.zeros(3)))
    with pytest.raises(TypeError, match="give one batch of it"):
        trainer.summary(DataLoader(Slow(0)))
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "torchinfo":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"mxtorch\[summary\]"):
        trainer.summary(torch.ones(3, 8))


def test_profile_names_slow_data(tmp_path):
    trainer = made(nn.Linear(8, 2))
    found = trainer.profile(DataLoader(Slow(0.002), batch_size=8), steps=4, warmup=1, trace=tmp_path / "step.json")
    assert found.slow == "data"
    assert 0.016 < found.data_seconds <= found.seconds
    assert "reading the data is what is slow" in str(found)
    assert found.device_seconds is None
    assert any("addmm" in row["name"] for row in found.operators)
    assert json.loads((tmp_path / "step.json").read_text())["traceEvents"]


def test_profile_names_slow_computing():
    net = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 2))
    found = made(net).profile([(torch.randn(256, 8), torch.randint(2, (256,)))], steps=3, warmup=1)
    assert found.slow == "processor"
    assert "computing is what is slow" in found.advice
    assert found.samples_per_second == pytest.approx(256 / found.seconds, rel=0.05)
    assert found.host_seconds <= found.seconds


def test_profile_changes_nothing(net, loader):
    trainer = made(net, accumulate=2)
    trainer.fit(loader, epochs=1)
    twin = copy.deepcopy(trainer)
    before = copy.deepcopy(net.state_dict())
    random = torch.get_rng_state()
    trainer.profile(loader, steps=2, warmup=0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.optimizer.current_steps == twin.optimizer.current_steps
    assert trainer.step == twin.step
    trainer.fit(loader, epochs=1)
    torch.set_rng_state(random)
    twin.fit(loader, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [([], {}, "no batches"), (None, {"steps": 0}, "steps: got 0"), (None, {"warmup": -1}, "warmup: got -1")],
)
def test_arguments_of_profile(loader, data, options, message):
    with pytest.raises(ValueError, match=message):
        made(nn.Linear(8, 2)).profile(loader if data is None else data, **options)
