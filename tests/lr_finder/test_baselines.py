from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.baselines import well_known_rules
from mxtorch.lr_finder.range_test import geometric_rates

RATES = geometric_rates(1e-6, 1.0, 61)


def test_where_each_rule_looks():
    """A fall around 1e-3, a rise from 1e-1 on."""
    rate = np.log10(RATES)
    losses = 2 - 1 / (1 + np.exp(-4 * (rate + 3))) - 0.02 * rate + 3 * np.maximum(0, rate + 1) ** 2
    rules = well_known_rules(RATES, losses.tolist())
    assert rules["steepest"] == pytest.approx(1e-3, rel=0.3)
    lowest = int(np.argmin(losses))  # the median moves it by up to three places, a half decade at ten a decade
    assert RATES[lowest - 3] / 10 <= rules["minimum"] <= RATES[lowest + 3] / 10
    assert RATES[lowest // 2 - 3] <= rules["valley"] <= RATES[lowest // 2 + 3]


def test_valley_is_the_middle_of_the_longest_decreasing_subsequence():
    losses = [3.0, 9.0, 8.5, 1.0, 8.0, 7.5, 2.0, 7.0, 6.5, 6.0, 8.0, 9.0] * 2
    rates = geometric_rates(1e-4, 1.0, len(losses))
    smoothed = [np.median(losses[max(i - r, 0) : i + r + 1]) for i in range(24) for r in [min(3, i, 23 - i)]]
    longest = max(
        (
            (len(chosen), -chosen[-1], chosen)
            for size in (5, 6, 7, 8)
            for chosen in itertools.combinations(range(24), size)
            if all(smoothed[a] > smoothed[b] for a, b in itertools.pairwise(chosen))
        ),
        default=(0, 0, (0,)),
    )
    valley = rates.index(well_known_rules(rates, losses)["valley"])
    lengths_from = {
        chosen[0] + (chosen[-1] - chosen[0]) // 2
        for chosen in itertools.combinations(range(24), longest[0])
        if all(smoothed[a] > smoothed[b] for a, b in itertools.pairwise(chosen))
    }
    assert valley in lengths_from


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=0, max_size=40))
def test_any_curve_gives_rates_of_the_sweep_or_none(losses):
    rates = geometric_rates(1e-6, 1.0, max(len(losses), 2))[: len(losses)]
    for rate in well_known_rules(rates, losses).values():
        assert math.isfinite(rate)
        assert rates[0] <= rate <= rates[-1]
