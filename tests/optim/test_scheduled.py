"""The rates of a ScheduledOptim: reading them, setting them, and its schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_optimizers import give_gradients, make
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import ScheduledOptim, schedules


def test_is_an_optimizer_that_shares_groups_and_state():
    optimizer = make(0.1, momentum=0.9)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    give_gradients(optimizer)
    optimizer.step()
    assert optimizer.state is optimizer.optimizer.state
    assert len(optimizer.state) == 1


def test_set_learning_rate_keeps_the_ratios():
    optimizer = make(0.1, 0.01)
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rate == 0.5
    assert optimizer.learning_rates == pytest.approx([0.5, 0.05], rel=1e-12)
    optimizer.scale_learning_rate(2)
    assert optimizer.learning_rates == pytest.approx([1.0, 0.1], rel=1e-12)
    assert optimizer.base_learning_rate == optimizer.learning_rate


NO_RATES = [0, -1, float("nan"), float("inf"), 10**400, "0.1", b"1", None, True, [0.1], 1j]
NO_RATES += [np.array([0.1, 0.2]), np.bool_(True), torch.tensor(True), torch.ones(2), torch.ones(1)]


@pytest.mark.parametrize("rate", NO_RATES, ids=repr)
def test_rates_that_are_none(rate):
    optimizer = make(0.1, 0.01)
    with pytest.raises((ValueError, TypeError), match=r"lr: got .*finite positive number"):
        optimizer.set_learning_rate(rate)
    with pytest.raises((ValueError, TypeError), match=r"factor: got .*finite positive number"):
        optimizer.scale_learning_rate(rate)
    assert optimizer.learning_rates == [0.1, 0.01]


@pytest.mark.parametrize("rate", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 1])
def test_rates_of_other_kinds(rate):
    optimizer = make(0.1)
    optimizer.set_learning_rate(rate)
    assert optimizer.learning_rate == float(rate)


def test_wrapping_what_can_not_be_wrapped():
    with pytest.raises(TypeError, match="wrapped already"):
        ScheduledOptim(make(0.1))
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        ScheduledOptim(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="parameter group 1"):
        make(0.1, -0.1)

    class WithoutRate(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

    with pytest.raises(ValueError, match="group 0 has no 'lr'"):
        ScheduledOptim(WithoutRate([nn.Parameter(torch.ones(1))]))


def test_a_schedule_that_can_not_start_leaves_the_optimizer_alone():
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="OneCycle does not know its total_steps"):
        ScheduledOptim(plain, schedules.OneCycle())
    assert plain.param_groups[0]["lr"] == 0.1
    assert "base_lr" not in plain.param_groups[0]


@settings(max_examples=25, deadline=None)
@given(rates=st.lists(st.floats(1e-6, 10), min_size=1, max_size=3), data=st.data())
@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (schedules.Step(3, 0.5), lambda o, rates: lr_scheduler.StepLR(o, 3, 0.5)),
        (schedules.Polynomial(10, 2.0), lambda o, rates: lr_scheduler.PolynomialLR(o, 10, 2.0)),
        (schedules.CosineAnnealing(12), lambda o, rates: lr_scheduler.CosineAnnealingLR(o, 12)),
        (schedules.OneCycle(13), lambda o, rates: lr_scheduler.OneCycleLR(o, rates, total_steps=13)),
        (
            schedules.Triangular2(3, low=0.1),
            lambda o, rates: lr_scheduler.CyclicLR(
                o, [rate * 0.1 for rate in rates], rates, 3, mode="triangular2", cycle_momentum=False
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_groups_follow_torchs_schedulers(schedule, theirs, rates, data):
    ours = make(*rates, schedule=schedule, momentum=0.9)
    plain = make(*rates, momentum=0.9).optimizer
    scheduler = theirs(plain, rates)
    for _ in range(data.draw(st.integers(1, 12))):
        before = [group["lr"] for group in plain.param_groups]
        ours.step()
        plain.step()
        scheduler.step()
        assert ours.learning_rates == pytest.approx(before, rel=1e-6, abs=1e-15)
    assert ours.base_learning_rates == rates


def test_set_learning_rate_under_a_schedule_sets_the_base():
    optimizer = make(1.0, 0.1, schedule=schedules.Polynomial(4))
    optimizer.current_steps = 2
    assert optimizer.learning_rates == pytest.approx([0.5, 0.05])
    optimizer.set_learning_rate(4.0)
    assert optimizer.base_learning_rates == pytest.approx([4.0, 0.4])
    assert optimizer.learning_rates == pytest.approx([2.0, 0.2])
    optimizer.current_steps = 4
    assert optimizer.learning_rate == 0
    optimizer.scale_learning_rate(0.5)
    optimizer.schedule = None
    assert optimizer.learning_rates == optimizer.base_learning_rates == pytest.approx([2.0, 0.2])
    assert "base_lr" not in optimizer.param_groups[0]


def test_step_applies_the_rate_of_its_step_then_counts():
    optimizer = make(1.0, 0.1, schedule=schedules.Polynomial(4))
    rates = []
    for _ in range(4):
        before = [p.clone() for g in optimizer.param_groups for p in g["params"]]
        give_gradients(optimizer)
        optimizer.step()
        after = [p for g in optimizer.param_groups for p in g["params"]]
        rates.append([(b - a)[0].item() for b, a in zip(before, after, strict=True)])
    assert torch.tensor(rates) == pytest.approx(torch.tensor([[1, 0.1], [0.75, 0.075], [0.5, 0.05], [0.25, 0.025]]))
    assert optimizer.current_steps == 4
    assert optimizer.base_learning_rates == [1.0, 0.1]


def test_without_a_schedule_the_groups_belong_to_the_user():
    optimizer = make(1.0)
    optimizer.param_groups[0]["lr"] = 0.25
    give_gradients(optimizer)
    optimizer.step()
    assert optimizer.learning_rate == 0.25
    optimizer.schedule = lambda step: 0.5
    assert (optimizer.learning_rate, optimizer.base_learning_rate) == (0.125, 0.25)
    optimizer.schedule = None
    assert optimizer.learning_rate == 0.25


def test_a_schedule_may_not_give_nonsense():
    optimizer = make(1.0)
    with pytest.raises(TypeError, match="function of the step"):
        optimizer.schedule = 0.5
    with pytest.raises(ValueError, match="not negative"):
        optimizer.schedule = lambda step: -1.0
    assert optimizer.schedule is None
    for steps in (-1, 1.0, True, None, "1"):
        with pytest.raises(ValueError, match="current_steps"):
            optimizer.current_steps = steps
    optimizer.current_steps = np.int64(3)
    assert type(optimizer.current_steps) is int


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_a_bad_multiplier_in_mid_run_stops_before_the_step(value):
    optimizer = make(1.0, schedule=lambda step: 1.0 if step == 0 else value)
    give_gradients(optimizer)
    optimizer.step()
    before = optimizer.param_groups[0]["params"][0].clone()
    with pytest.raises(ValueError, match="for step 1"):
        optimizer.step()
    assert torch.equal(before, optimizer.param_groups[0]["params"][0])
    assert optimizer.current_steps == 1


def test_a_tensor_rate_is_filled_in_place():
    parameter = nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1)
    optimizer = ScheduledOptim(torch.optim.Adam([parameter], lr=rate), lambda step: 0.5)
    assert float(rate) == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # of torch's default, that very tensor
    assert optimizer.base_learning_rates == pytest.approx([0.1, 0.1])
    assert optimizer.learning_rates == pytest.approx([0.05, 0.05])


def test_a_step_does_not_read_a_tensor_rate(monkeypatch):
    """Reading it would wait for its device."""

    class Rate(torch.Tensor):
        def __float__(self):
            pytest.fail("the rate was read")

    parameter = nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1)
    optimizer = ScheduledOptim(torch.optim.Adam([parameter], lr=rate), schedules.Polynomial(4))
    optimizer.param_groups[0]["lr"] = rate.as_subclass(Rate)
    monkeypatch.setattr(optimizer.optimizer, "step", lambda: None)
    for _ in range(3):
        optimizer.step()
    assert rate.item() == pytest.approx(0.05)


def test_other_attributes_are_those_of_the_wrapped():
    class ScheduleFree(torch.optim.SGD):
        mode = "train"

        def eval(self):
            self.mode = "eval"

    optimizer = make(0.1, kind=ScheduleFree)
    optimizer.eval()
    assert optimizer.optimizer.mode == optimizer.mode == "eval"
    with pytest.raises(AttributeError):
        _ = optimizer.never_heard_of
    assert not hasattr(ScheduledOptim.__new__(ScheduledOptim), "anything"), "as while it is being unpickled"
    assert "current_steps=0" in repr(optimizer)


def test_add_param_group_under_a_schedule():
    optimizer = make(1.0, schedule=lambda step: 0.5)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.2})
    assert optimizer.learning_rates == [0.5, 0.1]
    with pytest.raises(ValueError, match="new parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1})


def test_a_rate_of_zero_keeps_what_ratios_are_known():
    optimizer = make(0.1, 0.0)
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == [0.2, 0.0]
    optimizer = make(0.1, 0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    assert optimizer.learning_rates == [0.0, 0.0]
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == pytest.approx([0.2, 0.02])
    optimizer = make(0.0, 0.0)
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == [0.2, 0.2]
    with pytest.raises(ValueError, match="ratios between groups are unknown"):
        make(0.0, 0.1).set_learning_rate(0.2)
