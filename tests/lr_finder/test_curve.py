from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.curve import clean, running_median, valley
from mxtorch.lr_finder.range_test import geometric_rates

RATES = np.array(geometric_rates(1e-6, 1.0, 61))  # ten a decade
DECADES = np.log10(RATES)


def shaped(*points):
    """Straight lines between (exponent, loss) pairs."""
    return np.interp(DECADES, *zip(*points, strict=True))


def test_the_marks_of_a_valley():
    losses = shaped((-6, 2.0), (-4, 2.0), (-2, 1.0), (-1, 1.0), (0, 3.0))
    shape = valley(RATES, losses, width=3)
    assert shape.start == 2.0
    assert shape.drop == pytest.approx(1.0)
    assert shape.noise == pytest.approx(0.0, abs=1e-12)
    step = 10**0.1 * 1.001  # a mark is the point of the curve next to the place itself
    assert 10**-3.8 / step <= shape.falls_from <= 10**-3.8 * step
    assert 10**-3 / step <= shape.half_way <= 10**-3 * step
    assert 10**-2.6 / step <= shape.mostly_fallen <= 10**-2.6 * step
    assert 1e-2 / step <= shape.lowest <= 1e-1 * step
    assert shape.rises
    assert 10**-0.85 / step <= shape.edge <= 10**-0.85 * step, "30% of the drop above the lowest point"


def test_what_comes_after_the_edge_is_not_read():
    losses = shaped((-6, 2.0), (-4, 2.0), (-2, 1.0), (-1.5, 3.0), (-1, 0.1), (0, 0.1))
    shape = valley(RATES, losses, width=3)
    assert shape.lowest < 10**-1.5
    assert shape.drop == pytest.approx(1.0, abs=0.1)


def test_a_curve_that_never_rises_ends_at_its_last_rate():
    shape = valley(RATES, shaped((-6, 2.0), (0, 1.0)), width=3)
    assert not shape.rises
    assert shape.edge == shape.lowest == RATES[-1]


def test_one_high_loss_is_no_edge():
    losses = shaped((-6, 2.0), (-4, 2.0), (-2, 1.0), (0, 1.0))
    losses[45] = 9.0
    assert not valley(RATES, losses, width=3).rises


def test_an_infinite_loss_is_where_it_breaks_away():
    losses = shaped((-6, 2.0), (-4, 2.0), (-2, 1.0), (0, 1.0))
    losses[50:] = math.inf
    shape = valley(RATES, losses, width=3)
    assert shape.rises
    assert shape.edge == RATES[49], "the last rate that gave a loss"
    assert len(shape.smoothed) == len(shape.rates) == 50


def test_noise_is_the_deviation_from_the_smoothed_curve():
    chance = np.random.default_rng(0)
    measured = [valley(RATES, 2 + 0.05 * chance.standard_normal(len(RATES)), width=7).noise for _ in range(20)]
    assert np.mean(measured) == pytest.approx(0.05, rel=0.3)


def test_marks_do_not_depend_on_the_unit():
    losses = shaped((-6, 2.0), (-4, 2.0), (-2, 1.0), (-1, 1.0), (0, 3.0))
    first, second = valley(RATES, losses, width=3), valley(RATES, losses * 2**10, width=3)
    for mark in ("falls_from", "half_way", "mostly_fallen", "lowest", "edge"):
        assert getattr(first, mark) == getattr(second, mark), mark


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.sampled_from([1, 3, 5, 7]))
def test_the_running_median_equals_that_of_numpy(values, width):
    values = np.array(values)
    result = running_median(values, width)
    for index in range(len(values)):
        reach = min(width // 2, len(values) - 1 - index)
        assert result[index] == np.median(values[max(index - reach, 0) : index + reach + 1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=4, max_size=60), st.sampled_from([3, 7]), st.integers(0, 60))
def test_marks_stand_in_their_order(losses, width, broken):
    rates = np.array(geometric_rates(1e-6, 1.0, len(losses)))
    losses = np.array(losses)
    losses[max(broken, 2) :] = math.inf
    shape = valley(rates, losses, width=width)
    assert rates[0] <= shape.falls_from <= shape.half_way <= shape.lowest <= shape.edge <= rates[-1]
    assert shape.mostly_fallen <= shape.lowest
    assert shape.drop >= 0
    assert shape.noise >= 0


def test_clean_sorts_takes_one_a_rate_and_stops_at_the_first_lost_loss():
    rates, losses = clean([1e-1, 1e-3, 1e-2, 1e-2, 1.0], [1.0, 3.0, 2.0, 5.0, math.nan])
    assert rates.tolist() == [1e-3, 1e-2, 1e-1]
    assert losses.tolist() == [3.0, 2.0, 1.0]
    rates, _ = clean([1e-3, 1e-3 * (1 + 1e-12), 1e-2], [1.0, 2.0, 3.0])
    assert rates.tolist() == [1e-3, 1e-2], "the same rate, but for its last digits"
