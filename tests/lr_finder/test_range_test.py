from __future__ import annotations

import math

import pytest

from mxtorch.lr_finder.range_test import DivergenceWatch, geometric_rates

FLAT = [1.0, 1.1, 0.9, 1.0, 1.05] * 6
NEGATIVE = [-10 - 0.1 * step for step in range(30)]


def diverges_at(losses):
    """The index of the loss at which divergence is told, or None."""
    watch = DivergenceWatch()
    return next((index for index, loss in enumerate(losses) if watch.has_diverged(loss)), None)


def test_rates_are_even_in_their_logarithm():
    rates = geometric_rates(1e-4, 1.0, 5)
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert rates[-1] == 1.0, "exactly, not beyond"


@pytest.mark.parametrize("losses", [FLAT, [*FLAT, 50.0], [*FLAT, 50.0, 1.0, 50.0], NEGATIVE, [2.3] * 40, [5.0, 9.0]])
def test_what_is_no_divergence(losses):
    assert diverges_at(losses) is None


@pytest.mark.parametrize(
    ("start", "rise"), [(FLAT, [2, 3, 4, 5, 6]), (NEGATIVE, [-2, 0, 3, 5, 9]), ([0.0] * 12, [1e-3] * 3)]
)
def test_divergence_is_told_in_the_middle_of_the_rise(start, rise):
    assert len(start) + 2 <= diverges_at([*start, *rise]) < len(start) + len(rise)


def test_the_yardstick_is_the_drop():
    fallen = [10 - 0.2 * step for step in range(40)]
    assert diverges_at([*fallen, *[12.0] * 9]) is None, "a fifth of the drop above the start"
    assert diverges_at([*fallen, *[40.0] * 9]) is not None


def test_a_loss_that_is_lost_is_no_matter_of_this():
    assert diverges_at([*FLAT, math.inf]) is None
