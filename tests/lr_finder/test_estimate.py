import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder import estimate
from mxtorch.lr_finder.sweep import geometric_rates

RATES = geometric_rates(1e-6, 1, 100)


def curve(fall_at=1e-3, rise_at=1e-1, drop=1.5, noise=0.03, seed=0):
    """A plateau of 2.3, a fall around one rate, a rise around another."""
    rate = np.log10(RATES)
    fall = drop / (1 + np.exp(-4 * (rate - math.log10(fall_at))))
    rise = 20 * np.maximum(0, rate - math.log10(rise_at)) ** 2
    return (2.3 - fall + rise + noise * np.random.default_rng(seed).standard_normal(100)).tolist()


def test_a_clear_curve():
    found = estimate(RATES, curve())
    assert found.status == "ok"
    assert 1e-3 < found.suggestions["constant"] < found.suggestions["one_cycle"] < 2e-1
    for use, suggestion in found.suggestions.items():
        low, high = found.intervals[use]
        assert low <= suggestion <= high
    assert found.bounds[0] < found.bounds[1]


def test_a_spike_does_not_win():
    losses = curve()
    losses[3] = -5.0
    assert estimate(RATES, losses).suggestions == pytest.approx(estimate(RATES, curve()).suggestions, rel=0.5)


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_no_signal(seed):
    losses = 2.3 + 0.1 * np.random.default_rng(seed).standard_normal(100)
    found = estimate(RATES, losses.tolist())
    assert found.status == "no_signal"
    assert not found.suggestions


def test_a_range_that_ends_too_soon_and_one_that_starts_too_late():
    falling = np.linspace(2.3, 1.0, 100).tolist()
    assert estimate(RATES, falling).status == "range_too_short"
    assert "raise end_lr" in estimate(RATES, falling).advice
    rising = (2.3 + np.linspace(0, 3, 30) ** 2).tolist()
    found = estimate(RATES[:30], rising, ended_early=True)
    assert found.status == "range_too_short"
    assert "lower start_lr" in found.advice


def test_few_and_broken_points():
    assert estimate([1e-3, 1e-2, 1e-1], [3.0, 2.0, 1.0]).status == "too_few_steps"
    assert estimate([], []).status == "too_few_steps"
    assert estimate(RATES, [math.nan] * 100).status == "not_finite"
    cut = estimate(RATES, [*curve()[:80], math.inf, *curve()[81:]])
    assert cut.status == "ok"
    with pytest.raises(ValueError, match="same length"):
        estimate([0.1], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite positive"):
        estimate([0.1, -1.0], [1.0, 2.0])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_curve_gives_rates_within_the_sweep_or_none(data):
    count = data.draw(st.integers(0, 60))
    rates = data.draw(st.lists(st.floats(1e-9, 10), min_size=count, max_size=count))
    losses = data.draw(st.lists(st.floats(width=32), min_size=count, max_size=count))
    found = estimate(rates, losses, ended_early=data.draw(st.booleans()))
    assert found.advice
    for rate in [*found.suggestions.values(), *(found.bounds or ())]:
        assert math.isfinite(rate)
        assert min(rates) / 4 * 0.999 <= rate <= max(rates) * 1.001
    assert bool(found.suggestions) == (found.status == "ok")
