from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, IterableDataset

from mxtorch import Callback
from mxtorch.callbacks import EMA, SWA


class Feed(Callback):
    """Updates torch's own average in each step, or in each of the last epochs."""

    def __init__(self, averaged, *, steps=False, after=0):
        self.averaged, self.steps, self.after = averaged, steps, after

    def on_step(self, trainer):
        if self.steps:
            self.averaged.update_parameters(trainer.model)

    def on_epoch_end(self, trainer):
        if not self.steps and trainer.run.epoch >= self.after:
            self.averaged.update_parameters(trainer.model)


def test_ema_equals_torch_and_is_validated(net, loader, make):
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    trainer = make(net, callbacks=[Feed(averaged, steps=True), EMA(0.9)])
    history = trainer.fit(loader, loader, epochs=2)
    for mine, theirs in zip(net.parameters(), averaged.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(net[1].running_var, averaged.module[1].running_var, atol=1e-6)
    assert history["val/loss"][-1] == pytest.approx(trainer.evaluate(loader)["val/loss"], rel=1e-5)


def test_ema_does_not_change_training(two_moons, make, weights):
    results = []
    for callbacks in ([], [EMA(0.9)]):
        torch.manual_seed(0)
        net = nn.Linear(8, 2)
        seen = []

        class See(Callback):
            def on_epoch_complete(self, trainer, row, seen=seen, net=net):
                seen += weights(net)

        make(net, callbacks=[*callbacks, See()]).fit(DataLoader(two_moons, 32), DataLoader(two_moons, 32), epochs=3)
        results.append(seen)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_swa_equals_torch_with_its_own_statistics(net, loader, make):
    averaged = AveragedModel(net)
    trainer = make(net, callbacks=[Feed(averaged, after=2), SWA(loader, start=0.5)])
    trainer.fit(loader, loader, epochs=4)
    update_bn(loader, averaged)
    for mine, theirs in zip(net.parameters(), averaged.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(net[1].running_mean, averaged.module[1].running_mean, atol=1e-4)
    assert net[1].momentum == 0.1
    assert net.training


class Unmeasured(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize(
    ("has_length", "options", "count"),
    [
        (True, {"max_steps": 80}, 5),  # 8 steps an epoch
        (False, {"max_steps": 80}, 5),
        (False, {"max_steps": 80, "epochs": 1000}, 5),
        (False, {"max_steps": 8000, "epochs": 10}, 5),
        (True, {"max_steps": 4}, 1),
        (True, {"epochs": 1000, "max_time": 25}, 2),  # 5 s an epoch: it ends after the fifth one
        (True, {"epochs": 4, "max_time": 1000}, 2),
    ],
    ids=str,
)
def test_swa_starts_in_the_part_of_the_run_that_ends_first(
    loader, two_moons, make, monkeypatch, has_length, options, count
):
    now = [0.0]
    monkeypatch.setattr("mxtorch.training.run.time.perf_counter", lambda: now[0])

    class Clock(Callback):
        def on_epoch_complete(self, trainer, row):
            now[0] += 5.0

    data = loader if has_length else DataLoader(Unmeasured(two_moons), batch_size=loader.batch_size)
    swa = SWA(loader, start=0.5)
    make(nn.Linear(8, 2), callbacks=[swa, Clock()]).fit(data, **options)
    assert swa.count == count


def test_a_run_that_is_stopped_before_averaging_starts_is_warned_of(loader, make):
    class Stop(Callback):
        def on_epoch_complete(self, trainer, row):
            trainer.stop()

    with pytest.warns(UserWarning, match="SWA: the run was stopped after epoch 1, before averaging started"):
        make(nn.Linear(8, 2), callbacks=[SWA(loader), Stop()]).fit(loader, epochs=9)


def test_swa_does_not_change_frozen_statistics(net, loader, make):
    net[1].requires_grad_(False)
    before = net[1].running_mean.clone()
    make(net, callbacks=[SWA(loader)]).fit(loader, epochs=2)
    assert torch.equal(net[1].running_mean, before)
    assert net[1].momentum == 0.1


@pytest.mark.parametrize("build", [lambda loader: EMA(0.5), lambda loader: SWA(loader, start=0.0)])
def test_averaging_continues_from_a_saved_state(net, loader, make, build):
    first, second = build(loader), build(loader)
    make(net, callbacks=[first]).fit(loader, epochs=1)
    saved = {**first.state_dict(), "average": {n: v.clone() for n, v in first.state_dict()["average"].items()}}
    second.load_state_dict(saved)
    count = second.count
    make(net, callbacks=[second]).fit(loader, epochs=1)
    assert second.count > count


@pytest.mark.parametrize(
    ("build", "message"), [(lambda: EMA(1.0), "decay: got 1.0"), (lambda: SWA([], start=1), "start: got 1")]
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
