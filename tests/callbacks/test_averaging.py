from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

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
