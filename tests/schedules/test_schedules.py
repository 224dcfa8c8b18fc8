import io
import itertools
import math
import pickle
import typing

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import schedules

few = settings(max_examples=25, deadline=None)
EVERY = [schedules.get(name) for name in typing.get_args(schedules.ScheduleName)]


def torch_multipliers(make, steps, base=0.8):
    """What a torch scheduler makes of a base rate, as multiples of it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base, momentum=0.9)
    scheduler = make(optimizer)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"] / base)
        optimizer.step()
        scheduler.step()
    return result


def loaded(content):
    """What a checkpoint gives back of it."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def agree(schedule, make, steps):
    ours = [schedule(step) for step in range(steps)]
    assert ours == pytest.approx(torch_multipliers(make, steps), rel=1e-6, abs=1e-12)


@few
@given(factor=st.floats(0.1, 1), total=st.integers(1, 12))
def test_constant(factor, total):
    agree(schedules.Constant(factor, total), lambda o: lr_scheduler.ConstantLR(o, factor=factor, total_iters=total), 20)


@few
@given(size=st.integers(1, 9), gamma=st.floats(0.05, 1))
def test_step(size, gamma):
    agree(schedules.Step(size, gamma), lambda o: lr_scheduler.StepLR(o, size, gamma), 30)


@few
@given(milestones=st.lists(st.integers(1, 25), max_size=5), gamma=st.floats(0.05, 1))
def test_multi_step(milestones, gamma):
    agree(schedules.MultiStep(milestones, gamma), lambda o: lr_scheduler.MultiStepLR(o, sorted(milestones), gamma), 30)


@few
@given(gamma=st.floats(0.5, 1))
def test_exponential(gamma):
    agree(schedules.Exponential(gamma), lambda o: lr_scheduler.ExponentialLR(o, gamma), 30)


@few
@given(total=st.integers(1, 30), power=st.floats(0.5, 3))
def test_polynomial(total, power):
    agree(schedules.Polynomial(total, power), lambda o: lr_scheduler.PolynomialLR(o, total, power), total + 5)


@few
@given(total=st.integers(1, 40), end=st.floats(0, 0.9))
def test_cosine_annealing(total, end):
    agree(
        schedules.CosineAnnealing(total, end), lambda o: lr_scheduler.CosineAnnealingLR(o, total, end * 0.8), total + 1
    )


@few
@given(warmup=st.integers(1, 10), cosine=st.integers(1, 30), start=st.floats(0.01, 1), end=st.floats(0, 0.5))
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own SequentialLR uses it
def test_warmup_cosine(warmup, cosine, start, end):
    def make(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=warmup),
            lr_scheduler.CosineAnnealingLR(optimizer, cosine, end * 0.8),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [warmup])

    agree(schedules.WarmupCosine(warmup + cosine, warmup, start, end), make, warmup + cosine)


@few
@given(
    total=st.integers(8, 60),
    start=st.floats(0.2, 0.45),
    strategy=st.sampled_from(["cos", "linear"]),
    div=st.floats(2, 50),
    final=st.floats(2, 1e4),
    three=st.booleans(),
)
def test_one_cycle(total, start, strategy, div, final, three):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=0.8,
            total_steps=total + 1,
            pct_start=start,
            anneal_strategy=strategy,
            div_factor=div,
            final_div_factor=final,
            three_phase=three,
        )

    ours = schedules.OneCycle(total + 1, start, strategy, div, final, three)
    agree(ours, make, total)
    assert ours(total + 100) == pytest.approx(1 / div / final)


@few
@given(
    total=st.integers(1, 40),
    start=st.floats(0, 1),
    strategy=st.sampled_from(["cos", "linear"]),
    three=st.booleans(),
)
def test_one_cycle_at_its_limits(total, start, strategy, three):
    """Peaks at either end, and the last value is held."""
    rise_end = start * total - 1
    ends = [0, rise_end, 2 * rise_end, total - 1] if three else [0, rise_end, total - 1]
    # Torch divides by the length of a phase.
    assume(all(abs(end - begin) > 1e-6 for begin, end in itertools.pairwise(ends)))

    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer, 0.8, total_steps=total, pct_start=start, anneal_strategy=strategy, three_phase=three
        )

    ours = schedules.OneCycle(total, start, strategy, three_phase=three)
    expected = torch_multipliers(make, total - 1)
    assert [ours(step) for step in range(total - 1)] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert ours(total) == ours(total + 100) == ours(total - 1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (schedules.Triangular, "triangular"),
        (schedules.Triangular2, "triangular2"),
        (schedules.ExpRange, "exp_range"),
    ],
)
@few
@given(size=st.integers(1, 12), low=st.floats(0.05, 0.9), gamma=st.floats(0.8, 1))
def test_cyclic(kind, mode, size, low, gamma):
    extra = {"gamma": gamma} if mode == "exp_range" else {}

    def make(optimizer):
        return lr_scheduler.CyclicLR(
            optimizer, 0.8 * low, 0.8, step_size_up=size, mode=mode, cycle_momentum=False, **extra
        )

    schedule = kind(step_size=size, low=low, **extra)
    agree(schedule, make, 40)
    for step in range(40):  # the formulas of the paper
        cycle = math.floor(1 + step / (2 * size))
        height = max(0.0, 1 - abs(step / size - 2 * cycle + 1))
        scale = {"triangular": 1.0, "triangular2": 1 / 2 ** (cycle - 1), "exp_range": gamma**step}[mode]
        assert schedule(step) == pytest.approx(low + (1 - low) * height * scale, rel=1e-6)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_every_schedule_is_a_value(schedule):
    filled = schedule.for_steps(50)
    assert all(0 <= filled(step) <= 1 for step in range(60))
    assert schedules.from_dict(loaded(filled.to_dict())) == filled
    assert schedules.is_savable(filled)
    assert hash(filled) == hash(schedule.for_steps(50))
    assert pickle.loads(pickle.dumps(filled)) == filled
    assert filled.for_steps(99) == filled, "lengths that were given stay"
    assert type(filled).__name__ in repr(filled)
    assert len(schedules.plot(schedule, 50).lines[0].get_xdata()) == 50


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_very_short_runs(schedule, total):
    assert all(0 <= schedule.for_steps(total)(step) <= 1 for step in range(total))


def test_the_default_milestones_of_a_very_short_run_are_not_its_first_step():
    assert [schedules.MultiStep().for_steps(total)(0) for total in (1, 2, 3)] == [1, 1, 1]
    assert schedules.MultiStep().for_steps(100).milestones == (50, 75)


@pytest.mark.parametrize("schedule", [schedules.Polynomial(10), schedules.CosineAnnealing(10, 0.1)], ids=str)
def test_the_last_value_is_held(schedule):
    assert schedule(10) == schedule(11) == schedule(1000)


def test_the_last_value_of_a_warmup_cosine_is_held():
    schedule = schedules.WarmupCosine(10, 2, end_factor=0.1)
    assert schedule(10) == schedule(11) == schedule(1000) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="fewer than total_steps"):
        schedules.WarmupCosine(warmup_steps=20).for_steps(20)


def test_numpy_fields_become_plain_values():
    given_values = schedules.OneCycle(
        np.int64(10), np.float64(0.3), np.str_("cos"), np.float32(25), three_phase=np.bool_(True)
    )
    plain = schedules.OneCycle(10, 0.3, "cos", 25, three_phase=True)
    assert given_values == plain
    assert schedules.from_dict(loaded(given_values.to_dict())) == plain
    assert schedules.MultiStep(np.array([4, 2])).milestones == (2, 4)
    assert schedules.OneCycle().for_steps(np.int64(7)) == schedules.OneCycle(7)


def test_a_schedule_of_ones_own_keeps_what_it_was_made_of():
    class Halves(schedules.Schedule):
        def __init__(self, after):
            object.__setattr__(self, "after", after)

        def __call__(self, step):
            return 1.0 if step < self.after else 0.5

    assert Halves(3).for_steps(10)(3) == 0.5
    assert not schedules.is_savable(Halves(3))


def test_growth_beyond_floats_is_infinite():
    assert schedules.Exponential(2.0)(10_000) == math.inf
    assert schedules.Step(1, 2.0)(10_000) == math.inf


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "Triangel"}, "did you mean 'triangular'"),
        ({}, "There are: constant"),
        ({"name": "OneCycle", "pct_stat": 0.3}, "did you mean 'pct_start'"),
        ({"name": "OneCycle", "pct_start": 3.0}, "pct_start"),
    ],
)
def test_from_dict_says_what_is_wrong(content, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_dict(content)


@pytest.mark.parametrize("total", [0, -1, 2.0, True, "10", None])
def test_for_steps_wants_a_positive_integer(total):
    with pytest.raises(ValueError, match="total_steps"):
        schedules.OneCycle().for_steps(total)


def test_a_length_that_was_left_out():
    with pytest.raises(ValueError, match="OneCycle does not know its total_steps"):
        schedules.OneCycle()(0)


def test_names():
    names = typing.get_args(schedules.ScheduleName)
    kinds = {
        kind for kind in vars(schedules).values() if isinstance(kind, type) and issubclass(kind, schedules.Schedule)
    }
    combined = {schedules.Schedule, schedules.Sequential, schedules.Chained}
    assert {type(schedules.get(name)) for name in names} == kinds - combined, "each has a name to complete"
    assert len(set(names)) == len(names)
    assert schedules.get("OneCycle") == schedules.get("one_cycle") == schedules.OneCycle()
    with pytest.raises(ValueError, match="did you mean 'one_cycle'"):
        schedules.get("onecycle")
    with pytest.raises(TypeError, match="give a name"):
        schedules.get(3)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (schedules.OneCycle, "total_steps", 0),
        (schedules.OneCycle, "pct_start", 1.5),
        (schedules.OneCycle, "anneal_strategy", "cosine"),
        (schedules.Triangular, "low", float("nan")),
        (schedules.Triangular, "step_size", 2.5),
        (schedules.Step, "gamma", -1),
        (schedules.MultiStep, "milestones", (0.5,)),
        (schedules.MultiStep, "milestones", (-1, 2)),
        (schedules.MultiStep, "milestones", 5),
        (schedules.Constant, "factor", None),
        (schedules.Constant, "total_iters", -1),
        (schedules.CosineAnnealing, "end_factor", 1.5),
        (schedules.WarmupCosine, "start_factor", -0.1),
        (schedules.WarmupCosine, "warmup_steps", True),
        (schedules.ExpRange, "gamma", 1.1),
        (schedules.Polynomial, "power", "1"),
        (schedules.Exponential, "gamma", float("inf")),
    ],
)
def test_fields_are_checked(kind, field, value):
    with pytest.raises(ValueError, match=field):
        kind(**{field: value})
