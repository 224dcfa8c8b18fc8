"""Schedules against those of transformers, timm, torch, pytorch-optimizer and fastai, over random settings."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import schedules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm.scheduler")
    transformers = pytest.importorskip("transformers.optimization")
    rex = pytest.importorskip("pytorch_optimizer.lr_scheduler.rex")

BASE = 0.8
many = settings(max_examples=200, deadline=None)
some = settings(max_examples=60, deadline=None)
lengths = st.tuples(st.integers(0, 12), st.integers(1, 40))  # warm-up, and what follows


def sgd(**options):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE, **options)


def agree(schedule, reference, steps, *, skip=lambda step: False):
    for step in range(steps):
        if not skip(step):
            assert schedule(step) == pytest.approx(reference(step), rel=1e-6, abs=1e-9), step


def multiplier_of(make, *arguments, **options):
    """The function of the step that a scheduler of transformers multiplies rates by."""
    return make(sgd(), *arguments, **options).lr_lambdas[0]


def of_timm(kind, *arguments, **options):
    scheduler = kind(sgd(), *arguments, t_in_epochs=False, **options)
    return lambda step: scheduler._get_lr(step)[0] / BASE


def of_torch(make, steps):
    optimizer = sgd(momentum=0.9)
    scheduler = make(optimizer)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / BASE)
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return rates, momenta


# ---------------------------------------------------------------- transformers


@many
@given(lengths)
def test_warmup_linear(parts):
    warmup, rest = parts
    reference = multiplier_of(transformers.get_linear_schedule_with_warmup, warmup, warmup + rest)
    agree(schedules.WarmupLinear(warmup + rest, warmup), reference, warmup + rest + 5)


@many
@given(st.integers(0, 40))
def test_warmup_constant(warmup):
    agree(schedules.WarmupConstant(warmup), multiplier_of(transformers.get_constant_schedule_with_warmup, warmup), 60)


@many
@given(lengths, st.floats(0, 1))
def test_warmup_cosine(parts, end):
    warmup, rest = parts
    reference = multiplier_of(
        transformers.get_cosine_with_min_lr_schedule_with_warmup, warmup, warmup + rest, min_lr_rate=end
    )
    schedule = schedules.WarmupCosine(warmup + rest, warmup, start_factor=0, end_factor=end)
    agree(schedule, reference, warmup + rest + 1)


@many
@given(lengths, st.integers(1, 5))
def test_hard_restarts(parts, cycles):
    warmup, rest = parts
    reference = multiplier_of(
        transformers.get_cosine_with_hard_restarts_schedule_with_warmup, warmup, warmup + rest, cycles
    )
    schedule = schedules.CosineRestarts(cycle_limit=cycles, warmup_steps=warmup).for_steps(warmup + rest)

    def at_a_restart(step):  # where transformers may round to either side
        return abs(cycles * (step - warmup) / rest - round(cycles * (step - warmup) / rest)) < 1e-9 and step > warmup

    agree(schedule, reference, warmup + rest + 5, skip=at_a_restart)
    assert schedule(warmup + rest) == 0


@many
@given(lengths, st.floats(0.2, 3), st.floats(0, 1))
def test_polynomial_with_warmup_and_end(parts, power, end):
    warmup, rest = parts
    assume(end < 0.99)
    reference = multiplier_of(
        transformers.get_polynomial_decay_schedule_with_warmup,
        warmup,
        warmup + rest,
        lr_end=end * BASE,
        power=power,
    )
    schedule = schedules.Polynomial(warmup + rest, power, end, warmup)
    agree(schedule, reference, warmup + rest + 5)


@many
@given(st.integers(0, 30), st.one_of(st.none(), st.integers(1, 200)))
def test_inverse_square_root(warmup, timescale):
    assume(warmup or timescale)  # transformers divides by a timescale of 0
    reference = multiplier_of(transformers.get_inverse_sqrt_schedule, warmup, timescale)
    agree(schedules.InverseSquareRoot(warmup, timescale), reference, 80)


SHAPES = st.sampled_from(["linear", "cosine", "1-sqrt"])


@many
@given(st.integers(0, 12), st.integers(0, 20), st.integers(1, 20), SHAPES, SHAPES, st.floats(0, 1))
def test_warmup_stable_decay(warmup, stable, decay, rise, fall, end):
    total = warmup + stable + decay
    reference = multiplier_of(
        transformers.get_wsd_schedule, warmup, decay, total, warmup_type=rise, decay_type=fall, min_lr_ratio=end
    )
    assume(warmup < total)
    agree(schedules.WarmupStableDecay(total, warmup, decay, end, end, rise, fall), reference, total + 5)


# ---------------------------------------------------------------- timm


@many
@given(
    cycle=st.integers(1, 20),
    mul=st.sampled_from([1.0, 1.3, 1.5, 2.0, 3.0]),
    decay=st.floats(0.1, 1),
    limit=st.integers(1, 4),
    end=st.floats(0, 0.5),
    warmup=st.integers(0, 8),
    start=st.floats(0, 1),
)
@pytest.mark.parametrize("form", ["cosine", "polynomial"])
def test_cycles(form, cycle, mul, decay, limit, end, warmup, start):
    options = {"lr_min": end * BASE, "warmup_t": warmup, "warmup_lr_init": start * BASE, "warmup_prefix": True}
    steps = warmup + math.ceil(cycle * sum(mul**index for index in range(limit))) + 3
    if form == "polynomial":
        reference = of_timm(timm.PolyLRScheduler, cycle, power=decay + 0.5, **options)
        schedule = schedules.Polynomial(warmup + cycle, decay + 0.5, end, warmup, start)
        agree(schedule, reference, warmup + cycle)
        return
    reference = of_timm(timm.CosineLRScheduler, cycle, cycle_mul=mul, cycle_decay=decay, cycle_limit=limit, **options)
    schedule = schedules.CosineRestarts(float(cycle), mul, decay, limit, end, warmup, start)
    begins = [cycle * sum(mul**earlier for earlier in range(index)) for index in range(limit + 2)]

    def at_a_restart(step):  # timm's logarithm may be rounded to either side
        return mul != 1 and any(abs(step - warmup - begin) < 1e-6 for begin in begins[1:])

    agree(schedule, reference, steps, skip=at_a_restart)
    for index in range(limit):
        if begins[index] == int(begins[index]):
            assert schedule(warmup + int(begins[index])) == pytest.approx(decay**index)


# ---------------------------------------------------------------- torch


@some
@given(st.integers(1, 12), st.integers(1, 3), st.floats(0, 0.9))
def test_warm_restarts(cycle, mul, end):
    expected, _ = of_torch(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, cycle, mul, end * BASE), 50)
    agree(schedules.CosineRestarts(cycle, mul, end_factor=end), expected.__getitem__, 50)


@some
@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 30), st.floats(0.3, 1), st.floats(0.1, 1))
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own SequentialLR uses it
def test_sequential(first, second, rest, gamma, factor):
    milestones = [first, first + second]

    def make(optimizer):
        parts = [
            lr_scheduler.ConstantLR(optimizer, factor, first),
            lr_scheduler.ExponentialLR(optimizer, gamma),
            lr_scheduler.CosineAnnealingLR(optimizer, rest),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones)

    parts = [schedules.Constant(factor, first), schedules.Exponential(gamma), schedules.CosineAnnealing()]
    schedule = schedules.Sequential(parts, milestones).for_steps(first + second + rest)
    assert schedule.total_steps == first + second + rest
    expected, _ = of_torch(make, first + second + rest)
    agree(schedule, expected.__getitem__, first + second + rest)


@some
@given(st.integers(1, 10), st.floats(0.1, 1), st.floats(0.5, 1), st.integers(1, 9))
def test_chained(iterations, factor, gamma, size):
    def make(optimizer):
        parts = [
            lr_scheduler.ConstantLR(optimizer, factor, iterations),
            lr_scheduler.ExponentialLR(optimizer, gamma),
            lr_scheduler.StepLR(optimizer, size, 0.5),
        ]
        return lr_scheduler.ChainedScheduler(parts)

    expected, _ = of_torch(make, 30)
    parts = [schedules.Constant(factor, iterations), schedules.Exponential(gamma), schedules.Step(size, 0.5)]
    agree(schedules.Chained(parts), expected.__getitem__, 30)


@some
@given(
    total=st.integers(8, 50),
    start=st.floats(0.2, 0.45),
    strategy=st.sampled_from(["cos", "linear"]),
    three=st.booleans(),
    base=st.floats(0.1, 0.9),
    more=st.floats(0, 0.09),
)
def test_momentum_of_one_cycle(total, start, strategy, three, base, more):
    options = {"pct_start": start, "anneal_strategy": strategy, "three_phase": three}
    options |= {"base_momentum": base, "max_momentum": base + more}
    _, expected = of_torch(lambda o: lr_scheduler.OneCycleLR(o, BASE, total_steps=total + 1, **options), total)
    agree(schedules.OneCycle(total + 1, **options).momentum, expected.__getitem__, total)


@some
@given(
    size=st.integers(1, 12),
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    gamma=st.floats(0.8, 1),
    base=st.floats(0.1, 0.9),
    more=st.floats(0, 0.09),
)
def test_momentum_of_cycles(size, mode, gamma, base, more):
    options = {"base_momentum": base, "max_momentum": base + more}
    options |= {"gamma": gamma} if mode == "exp_range" else {}
    _, expected = of_torch(lambda o: lr_scheduler.CyclicLR(o, 0.1, BASE, size, mode=mode, **options), 40)
    kind = type(schedules.get(mode))
    agree(kind(step_size=size, **options).momentum, expected.__getitem__, 40)


def test_momentum_is_cycled_between_the_values_of_torch():
    for schedule, make in [
        (schedules.OneCycle(20), lambda o: lr_scheduler.OneCycleLR(o, BASE, total_steps=20)),
        (schedules.Triangular(5), lambda o: lr_scheduler.CyclicLR(o, 0.1, BASE, 5)),
    ]:
        _, expected = of_torch(make, 19)
        agree(schedule.momentum, expected.__getitem__, 19)


# ---------------------------------------------------------------- others


@some
@given(st.integers(1, 60), st.floats(0, 0.9))
def test_rex(total, end):
    reference = rex.REXScheduler(sgd(), total, max_lr=1.0, min_lr=end)
    reference.step_t = 0  # its constructor takes a step
    expected = [reference.step() for _ in range(total + 3)]
    agree(schedules.REX(total, end), expected.__getitem__, total + 3)


def test_fastai():
    """Recorded from `combine_scheds`, `SchedNo` and `SchedCos` of fastai 2.8, which computes in single precision."""
    recorded = json.loads((Path(__file__).parent / "fastai_values.json").read_text())
    for total, pct_start, end, expected in recorded["flat_cosine"]:
        schedule = schedules.FlatCosine(total, pct_start, end)
        assert [schedule(step) for step in range(total)] == pytest.approx(expected, abs=1e-6)
    for cycles, cycle, mul, expected in recorded["restarts"]:
        schedule = schedules.CosineRestarts(cycle, mul, cycle_limit=cycles)
        boundaries = [cycle * sum(mul**earlier for earlier in range(index)) for index in range(1, cycles)]
        for step, value in enumerate(expected):
            if step not in boundaries:  # where single precision rounds to either side
                assert schedule(step) == pytest.approx(value, abs=1e-6)
