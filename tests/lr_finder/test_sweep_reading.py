"""What is read off the curve of a range test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.range_test import geometric_rates
from mxtorch.lr_finder.sweep_reading import read_sweep

RATES = geometric_rates(1e-6, 1, 100)


def curve(fall_at=1e-3, rise_at=1e-1, drop=1.5, noise=0.03, seed=0):
    """A plateau of 2.3, a fall around one rate, a rise around another."""
    rate = np.log10(RATES)
    fall = drop / (1 + np.exp(-4 * (rate - math.log10(fall_at))))
    rise = 20 * np.maximum(0, rate - math.log10(rise_at)) ** 2
    return (2.3 - fall + rise + noise * np.random.default_rng(seed).standard_normal(100)).tolist()


def held_out(losses, every=4):
    return list(zip(RATES, losses, strict=True))[::every]


def falls(found):
    """Whether the rate rests on a fall of the loss, and not on an edge alone."""
    assert found.status == "guess"
    return "The loss falls from" in found.advice


def test_a_clear_curve():
    found = read_sweep(RATES, curve())
    peak = read_sweep(RATES, curve(), is_constant=False)
    assert falls(found)
    assert 1e-3 < found.suggestion < peak.suggestion < 2e-1
    assert 5e-2 < found.edge < 1, "where the loss rises"
    assert "a guess" in found.advice
    assert found.interval[0] < found.suggestion < found.interval[1]


def test_a_spike_does_not_win():
    losses = curve()
    losses[3] = -5.0
    assert read_sweep(RATES, losses).suggestion == pytest.approx(read_sweep(RATES, curve()).suggestion, rel=0.5)


@pytest.mark.parametrize("seed", range(8))
def test_noise_carries_no_rate(seed):
    losses = 2.3 + 0.1 * np.random.default_rng(seed).standard_normal(100)
    found = read_sweep(RATES, losses.tolist())
    assert found.status in ("no_signal", "noise")
    assert found.suggestion is found.interval is None


def test_what_is_flat_is_no_signal_and_what_dips_by_chance_is_noise():
    chance = np.random.default_rng(1)
    assert read_sweep(RATES, (2.3 + 0.002 * chance.standard_normal(100)).tolist()).status == "no_signal"
    noisy = [2.3 + 0.5 * chance.standard_normal() for _ in RATES]
    assert read_sweep(RATES, noisy).status == "noise"


def test_a_range_that_ends_too_soon_and_one_that_starts_too_late():
    falling = np.linspace(2.3, 1.0, 100).tolist()
    assert read_sweep(RATES, falling).status == "range_too_short"
    assert "raise end_lr" in read_sweep(RATES, falling).advice
    rising = (2.3 + np.linspace(0, 3, 30) ** 2).tolist()
    found = read_sweep(RATES[:30], rising, ended_early=True)
    assert found.status == "range_too_short"
    assert "lower start_lr" in found.advice
    assert "lower start_lr" in read_sweep(RATES[:8], rising[:8], ended_early=True).advice


def test_few_and_broken_points():
    assert read_sweep([1e-3, 1e-2, 1e-1], [3.0, 2.0, 1.0]).status == "too_few_steps"
    assert read_sweep([], []).status == "too_few_steps"
    assert read_sweep(RATES, [math.nan] * 100).status == "not_finite"
    assert falls(read_sweep(RATES, [*curve()[:80], math.inf, *curve()[81:]]))
    with pytest.raises(ValueError, match="same length"):
        read_sweep([0.1], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite positive"):
        read_sweep([0.1, -1.0], [1.0, 2.0])


def test_held_out_losses_are_read_where_there_are_enough():
    """Training losses go on falling, held-out ones do not."""
    training = curve(fall_at=1e-2, rise_at=3e-1, drop=2.2)
    judged = held_out(curve(fall_at=1e-4, rise_at=1e-3, noise=0.0))
    by_held_out = read_sweep(RATES, training, judged)
    assert falls(by_held_out)
    assert by_held_out.suggestion < 1e-3 < read_sweep(RATES, training).suggestion
    assert read_sweep(RATES, training, judged[:5]) == read_sweep(RATES, training)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_the_loss_does_not_matter(scale):
    judged = held_out(curve(noise=0.0))
    scaled = [(rate, loss * scale) for rate, loss in judged]
    training = [loss * scale for loss in curve()]
    expected = read_sweep(RATES, curve(), judged).suggestion
    assert read_sweep(RATES, training, scaled).suggestion == pytest.approx(expected)


def test_a_held_out_loss_that_becomes_infinite_is_an_edge():
    judged = [(rate, loss if rate < 1e-1 else math.inf) for rate, loss in held_out(curve(rise_at=10, noise=0.0))]
    found = read_sweep(RATES, curve(), judged)
    assert falls(found)
    assert found.edge <= 1e-1
    assert found.suggestion < 1e-1


def test_with_nothing_but_an_edge_the_rate_is_a_fraction_of_it():
    found = read_sweep(RATES, curve(drop=0.0, noise=0.001))
    assert not falls(found)
    assert "no more than a guess" in found.advice
    assert found.edge / 100 < found.suggestion < found.edge / 3


def test_a_network_that_tells_targets_apart_is_trained_already():
    flat = [0.1 * loss for loss in curve(drop=0.0, noise=0.001)]
    assert read_sweep(RATES, flat, exchanged_loss=8.0).status == "already_trained"
    assert not falls(read_sweep(RATES, flat, exchanged_loss=0.23)), "it is as good for any targets"
    assert falls(read_sweep(RATES, curve(), exchanged_loss=8.0)), "it has more to learn"
    tiny = [1e-6 * loss for loss in curve()]
    assert read_sweep(RATES, tiny, exchanged_loss=8.0).status == "already_trained", "the last digits of a zero"
    assert falls(read_sweep(RATES, tiny, exchanged_loss=2.3e-6)), "losses may be small"


def test_a_low_first_loss_is_no_lowest_point():
    """Its batch was an easy one; nothing has been trained by then."""
    losses = curve()
    expected = read_sweep(RATES, losses).suggestion
    losses[0] -= 0.4
    assert read_sweep(RATES, losses).suggestion == pytest.approx(expected)


def test_a_fall_is_taken_before_a_lonely_edge():
    """Whichever of the two curves shows it."""
    both, edge_alone = curve(rise_at=0.02), curve(rise_at=0.02, drop=0)
    lonely = read_sweep(RATES, edge_alone)
    assert not falls(lonely)
    for losses, others in (
        (both, held_out(curve(rise_at=0.02, drop=0, noise=0.0))),
        (edge_alone, held_out(curve(rise_at=0.02, noise=0.0))),
    ):
        found = read_sweep(RATES, losses, others)
        assert falls(found)
        assert lonely.suggestion < found.suggestion <= lonely.edge / 2
    soon = read_sweep(RATES, curve(fall_at=1e-2), held_out(curve(rise_at=1e-3, drop=0, noise=0.0)))
    assert soon.suggestion == pytest.approx(soon.edge * 10**-0.3), "not above half of either edge"


def test_the_training_loss_breaks_away_where_the_held_out_loss_is_flat():
    still = held_out(curve(drop=0, rise_at=100, noise=0.0))
    found = read_sweep(RATES, curve(drop=0, noise=0.01), still)
    assert not falls(found)
    assert found.edge == pytest.approx(0.15, rel=0.5)
    few_batches = np.tile([1.0, 1.3, 0.9, 1.2], 25)
    few_batches[-3:] = 1.35
    assert read_sweep(RATES, few_batches, still).status in ("no_signal", "noise"), "the noise of its batches"


def test_a_loss_that_rests_on_its_floor_to_the_end_has_a_rate():
    """Linear models bear any rate of Adam's; the lowest of the last points may well be the last."""
    floor = curve(rise_at=100, noise=0.0)
    assert floor[-1] == min(floor)
    found = read_sweep(RATES, floor)
    assert falls(found)
    assert 1e-4 < found.suggestion < 1e-1


LOSSES = st.one_of(
    st.floats(width=32),
    st.floats(-10, 10),
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, -1e308]),
)
RATE = st.one_of(st.floats(1e-9, 10), st.sampled_from([1e-7, 1e-3, 1.0]))


@st.composite
def smooth_curves(draw, count):
    """Constant, rising, falling, valleys, with noise: what is not rejected at the first look."""
    offset, slope, bend = (draw(st.floats(-10, 10)) for _ in range(3))
    noise = draw(st.sampled_from([0.0, 1e-3, 0.3]))
    places = np.linspace(-1, 1, count)
    chance = np.random.default_rng(draw(st.integers(0, 99)))
    return (offset + slope * places + bend * places**2 + noise * chance.standard_normal(count)).tolist()


@st.composite
def sweeps(draw):
    count = draw(st.one_of(st.just(3), st.integers(0, 80)))
    even = st.just(geometric_rates(1e-7, 10.0, max(count, 2))[:count])
    rates = draw(st.one_of(even, st.lists(RATE, min_size=count, max_size=count)))
    losses = draw(st.one_of(smooth_curves(count), st.lists(LOSSES, min_size=count, max_size=count)))
    probes = draw(st.integers(0, 30))
    even = st.just(geometric_rates(1e-7, 10.0, max(probes, 2))[:probes])
    probe_rates = draw(st.one_of(even, st.lists(RATE, max_size=30)))
    count = len(probe_rates)
    probed = draw(st.one_of(smooth_curves(count), st.lists(LOSSES, min_size=count, max_size=count)))
    measured = {
        "ended_early": draw(st.booleans()),
        "is_constant": draw(st.booleans()),
        "exchanged_loss": draw(st.one_of(st.none(), LOSSES)),
    }
    return rates, losses, list(zip(probe_rates, probed, strict=True)), measured


@settings(max_examples=500, deadline=None)
@given(sweeps())
def test_any_sweep_gives_a_rate_within_it_or_none(sweep):
    rates, losses, probed, measured = sweep
    found = read_sweep(rates, losses, probed, **measured)
    assert found.advice
    assert (found.suggestion is None) == (found.interval is None) == (found.status != "guess")
    if found.suggestion is not None:
        low, high = found.interval
        assert min(rates) <= low <= found.suggestion <= high <= max(rates)
    assert found.edge is None or 0 < found.edge < math.inf
