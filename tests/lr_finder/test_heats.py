from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.heats import (
    FEWEST_STEPS_FOR_HEATS,
    FIRST_BATCHES,
    FIRST_RATES,
    HORIZON_POWER,
    SECOND_BATCHES,
    SECOND_RATES,
    SWEEP_STEPS,
    Heat,
    best_of,
    run_heats,
)

EDGE = 1.0
UNTRAINED = 2.0


def race(loss_of, steps=420, training_steps=300, edge=EDGE, **options):
    """Heats whose loss is a function of the rate and the steps."""
    return run_heats(
        lambda rate, steps, batches: loss_of(rate, steps),
        edge,
        UNTRAINED,
        steps,
        training_steps=training_steps,
        **options,
    )


def bowl(best):
    """Lowest at one rate; longer trainings get further."""
    return lambda rate, steps: UNTRAINED - 1.5 * steps / (steps + 30) + 0.3 * math.log10(rate / best) ** 2


@pytest.mark.parametrize("exponent", [-0.2, -0.5, -0.75, -1.0, -1.4, -1.9, -2.3, -2.8, -3.1])
def test_a_known_optimum_is_found(exponent):
    heats = race(bowl(EDGE * 10**exponent))
    steps = heats[-1].steps
    rate, moved = best_of(heats, UNTRAINED, steps)
    assert moved
    assert math.log10(rate) == pytest.approx(exponent, abs=0.1)


def test_the_rounds():
    told, calls = [], []

    def run(rate, steps, batches):
        calls.append((rate, steps, batches))
        return bowl(0.05)(rate, steps)

    heats = run_heats(run, EDGE, UNTRAINED, 420, training_steps=300, on_round=told.append)
    first, second = heats[:FIRST_RATES], heats[FIRST_RATES:]
    assert [heat.round for heat in heats] == [1] * FIRST_RATES + [2] * SECOND_RATES
    assert [(heat.rate, heat.steps) for heat in heats] == [(rate, steps) for rate, steps, _ in calls]
    assert [batches for *_, batches in calls] == [FIRST_BATCHES] * FIRST_RATES + [SECOND_BATCHES] * SECOND_RATES
    rates = [heat.rate for heat in first]
    assert rates[0] < EDGE, "half a decade apart, from below the edge down"
    assert np.diff(np.log10(rates)) == pytest.approx([-0.5] * (FIRST_RATES - 1))
    winner = min(first, key=lambda heat: heat.loss).rate
    assert winner == pytest.approx(sorted(heat.rate for heat in second[:3])[1])
    assert second[0].steps > first[0].steps, "fewer of them, for longer"
    assert told[0].startswith(f"{FIRST_RATES} rates")
    assert len(told) == SECOND_RATES


@settings(max_examples=100, deadline=None)
@given(
    st.integers(FEWEST_STEPS_FOR_HEATS, 5000),
    st.integers(1, 1000),
    st.lists(st.floats(allow_nan=False), min_size=10, max_size=10),
)
def test_steps_are_never_more_than_asked_for(num_steps, training_steps, losses):
    dealt = iter(losses)
    heats = race(lambda rate, steps: next(dealt), steps=num_steps - SWEEP_STEPS, training_steps=training_steps)
    assert len(heats) == FIRST_RATES + SECOND_RATES
    assert sum(heat.steps for heat in heats) <= num_steps - SWEEP_STEPS
    assert all(1 <= heat.steps <= training_steps for heat in heats)
    assert all(0 < heat.rate < EDGE * 10**0.71 for heat in heats)
    rate, _ = best_of(heats, UNTRAINED, training_steps)
    assert rate is None or 0 < rate < EDGE * 10**0.71


def test_where_nothing_moves_it_is_half_of_the_highest_stable_rate():
    heats = race(lambda rate, steps: UNTRAINED if rate < 0.1 else 50.0)
    stable = max(heat.rate for heat in heats if heat.loss == UNTRAINED)
    assert best_of(heats, UNTRAINED, 300) == (pytest.approx(stable / 2), False)
    flat = race(lambda rate, steps: UNTRAINED)
    assert best_of(flat, UNTRAINED, 300) == (
        pytest.approx(max(heat.rate for heat in flat if heat.round == 2) / 2),
        False,
    )


@pytest.mark.parametrize("loss", [math.inf, 1e30, UNTRAINED * 1.5])
def test_where_all_get_worse_there_is_no_rate(loss):
    assert best_of(race(lambda rate, steps: loss), UNTRAINED, 300) == (None, False)


def test_the_best_at_either_end_is_followed_beyond_it():
    falling = race(lambda rate, steps: UNTRAINED - 1 - 0.1 * math.log10(rate))
    second = [heat.rate for heat in falling if heat.round == 2]
    assert best_of(falling, UNTRAINED, 1)[0] == max(second)
    assert max(second) > 10**-0.3, "above the highest of the first round"
    rising = race(lambda rate, steps: UNTRAINED - 1 + 0.1 * math.log10(rate))
    lowest = min(heat.rate for heat in rising if heat.round == 2)
    assert best_of(rising, UNTRAINED, 1) == ((pytest.approx(lowest), True))
    assert lowest < 10**-2.81, "below the lowest of the first round"


def test_infinite_losses_above_the_best_do_not_hide_it():
    heats = race(lambda rate, steps: math.inf if rate > 0.06 else bowl(0.05)(rate, steps))
    rate, moved = best_of(heats, UNTRAINED, heats[-1].steps)
    assert moved
    assert 0.05 / 10**0.5 <= rate <= 0.06


@settings(max_examples=200, deadline=None)
@given(st.floats(-3, 0), *[st.floats(0.05, 2)] * 2, *[st.floats(0.01, 1)] * 2)
def test_the_vertex_is_that_of_the_closed_formula(middle, below, above, left_rise, right_rise):
    exponents, losses = [middle - below, middle, middle + above], [left_rise, 0.0, right_rise]
    bend, slope, _ = np.polyfit(np.array(exponents) * math.log(10), losses, 2)
    heats = [Heat(2, 10**exponent, 50, loss) for exponent, loss in zip(exponents, losses, strict=True)]
    rate, moved = best_of(heats, UNTRAINED, 50)
    assert moved
    assert math.log(rate) == pytest.approx(-slope / (2 * bend), abs=1e-6)


def test_longer_trainings_bear_lower_rates():
    heats = [Heat(2, rate, 50, loss) for rate, loss in ((1e-3, 1.0), (1e-2, 0.5), (1e-1, 1.0))]
    assert best_of(heats, UNTRAINED, 50)[0] == pytest.approx(1e-2)
    assert best_of(heats, UNTRAINED, 10)[0] == pytest.approx(1e-2), "no heat was longer than that"
    rates = [best_of(heats, UNTRAINED, steps)[0] for steps in (50, 300, 3000, 30000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-2 * (50 / 30000) ** HORIZON_POWER)


def test_without_heats_there_is_nothing_to_say():
    assert best_of([], UNTRAINED, 300) is None
    assert best_of([Heat(1, 0.1, 20, 1.0)], UNTRAINED, 300) is None, "the first round alone"
    assert best_of([Heat(2, 0.1, 20, 1.0)] * 3, UNTRAINED, 20) == (pytest.approx(0.1), True), "the same rate thrice"
