from __future__ import annotations

import math

import pytest
import torch

from mxtorch.training.metrics import LossMeter


def test_means_are_over_samples():
    meter = LossMeter(first_step=1)
    meter.add(torch.tensor(1.0), 30)
    meter.add(torch.tensor(2.0), 10)
    assert meter.read()[0]["train/loss"] == pytest.approx(1.25)
    meter.add(torch.tensor(5.0), 40)
    meter.read()
    figures = meter.finish()
    assert figures["train/loss"] == pytest.approx((30 + 20 + 200) / 80)
    assert figures["samples_per_second"] > 0
    assert meter.count == 3
    assert not meter.unread


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_step_of_a_bad_loss_is_named(value):
    meter = LossMeter(first_step=11)
    for loss in (1.0, value, 2.0):
        meter.add(torch.tensor(loss), 1)
    with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
        meter.read()
    assert meter.bad_step == 12


def test_bad_steps_are_left_out_of_the_mean():
    meter = LossMeter(first_step=1)
    for loss, bad in ((1.0, 0.0), (9.0, 1.0), (3.0, 0.0)):
        meter.add(torch.tensor(loss), 5, torch.tensor(bad))
    figures, bad_steps = meter.read(skips=True)
    assert figures["train/loss"] == 2.0
    assert bad_steps == 1


def test_it_goes_on_where_it_was_saved():
    def feed(meter, losses):
        for loss in losses:
            meter.add(torch.tensor(loss), 3)

    whole, first, second = (LossMeter(first_step=1) for _ in range(3))
    feed(whole, [1.0, 2.0, 4.0])
    feed(first, [1.0, 2.0])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    feed(second, [4.0])
    for meter in (whole, second):
        meter.read()
    assert second.finish()["train/loss"] == whole.finish()["train/loss"]
    assert second.count == 3
