from __future__ import annotations

import math

import pytest
import torch

from mxtorch.meters import LossMeter


def test_means_are_over_samples():
    meter = LossMeter(first_step=1)
    meter.add(torch.tensor(1.0), 30)
    meter.add(torch.tensor(2.0), 10)
    assert meter.read()["train/loss"] == pytest.approx(1.25)
    meter.add(torch.tensor(5.0), 40)
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
    with pytest.raises(FloatingPointError, match=f"step 12 is {value}"):
        meter.read()
