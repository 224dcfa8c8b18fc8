from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.trials import (
    ALL_HEATS,
    FEWEST_STEPS_FOR_HEATS,
    FIRST_HEATS,
    HORIZON_POWER,
    ONE_CYCLE_FACTOR,
    SHARE_OF_GUESS,
    SWEEP_STEPS,
    Heat,
    outcome,
    run_heats,
)

EDGE = 1.0
UNTRAINED = 2.0


def heat(rate, loss, use="one_cycle", steps=50):
    return Heat(use, rate, steps, loss, UNTRAINED)


def race(loss_of, steps=420, training_steps=300, constant_loss_of=None, **options):
    """Heats whose loss is a function of the peak; a constant rate does what its peak does, unless said otherwise."""

    def run(use, rate, steps):
        if use == "one_cycle":
            return heat(rate, loss_of(rate), use, steps)
        loss = loss_of(rate * ONE_CYCLE_FACTOR) if constant_loss_of is None else constant_loss_of(rate)
        return heat(rate, loss, use, steps)

    return run_heats(run, EDGE, steps, training_steps=training_steps, **options)


def bowl(best):
    """Lowest at one peak."""
    return lambda rate: UNTRAINED - 1 + 0.3 * math.log10(rate / best) ** 2


def peak_of(heats, training_steps=None):
    """The peak that the heats speak for."""
    said = outcome(heats, training_steps or heats[0].steps)
    assert said.kind == "learnt"
    return said.rate * ONE_CYCLE_FACTOR


@pytest.mark.parametrize("exponent", [-0.2, -0.5, -0.75, -1.0, -1.4, -1.9, -2.2])
def test_a_known_optimum_is_found(exponent):
    assert math.log10(peak_of(race(bowl(EDGE * 10**exponent)))) == pytest.approx(exponent, abs=0.1)


def test_a_row_of_cycles_one_beside_the_best_and_a_constant_rate():
    told = []
    heats = race(bowl(0.05), on_progress=told.append)
    row, beside, constant = heats[:FIRST_HEATS], *heats[FIRST_HEATS:]
    assert [heat.use for heat in heats] == ["one_cycle"] * (ALL_HEATS - 1) + ["constant"]
    assert {heat.steps for heat in heats} == {420 // ALL_HEATS}
    rates = [heat.rate for heat in row]
    assert rates[0] < EDGE, "half a decade apart, from below the edge down"
    assert np.diff(np.log10(rates)) == pytest.approx([-0.5] * (FIRST_HEATS - 1))
    first, second = sorted(row, key=lambda heat: heat.loss)[:2]
    assert beside.rate == pytest.approx(math.sqrt(first.rate * second.rate))
    assert constant.rate == pytest.approx(peak_of(heats) / ONE_CYCLE_FACTOR)
    assert told == [
        f"{FIRST_HEATS} rates, {rates[-1]:.1e} to {rates[0]:.1e}",
        f"around {first.rate:.1e}",
        f"{constant.rate:.1e} as a constant rate",
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(FEWEST_STEPS_FOR_HEATS, 5000),
    st.integers(1, 1000),
    st.lists(st.floats(allow_nan=False), min_size=ALL_HEATS, max_size=ALL_HEATS),
)
def test_steps_are_never_more_than_asked_for(num_steps, training_steps, losses):
    dealt = iter(losses)
    heats = race(
        lambda rate: next(dealt),
        steps=num_steps - SWEEP_STEPS,
        training_steps=training_steps,
        constant_loss_of=lambda rate: next(dealt),
    )
    assert len(heats) == ALL_HEATS
    assert sum(heat.steps for heat in heats) <= num_steps - SWEEP_STEPS
    assert all(1 <= heat.steps <= training_steps for heat in heats)
    assert all(0 < heat.rate < EDGE * 10**0.26 for heat in heats)
    said = outcome(heats, training_steps)
    assert said.rate is None or 0 < said.rate < EDGE * 10**0.26


def test_where_nothing_moves_it_is_a_share_of_the_highest_rate_that_does_no_harm():
    heats = race(lambda rate: UNTRAINED if rate < 0.1 else 50.0)
    stable = max(heat.rate for heat in heats if heat.loss == UNTRAINED and heat.use == "one_cycle")
    assert outcome(heats, 300) == ("unmoved", pytest.approx(stable / ONE_CYCLE_FACTOR * SHARE_OF_GUESS))


@pytest.mark.parametrize("loss", [math.inf, 1e30, UNTRAINED * 1.5])
def test_where_all_get_worse_there_is_no_rate(loss):
    assert outcome(race(lambda rate: loss), 300) == ("harmful", None)


@pytest.mark.parametrize("loss", [math.inf, UNTRAINED, UNTRAINED - 0.4])
def test_a_constant_rate_that_does_not_learn_what_a_cycle_learnt_is_not_trusted(loss):
    heats = race(bowl(0.05), constant_loss_of=lambda rate: loss)
    assert outcome(heats, 300) == ("unsteady", pytest.approx(heats[-1].rate * SHARE_OF_GUESS))


def test_a_constant_rate_that_learns_most_of_it_is_trusted():
    assert outcome(race(bowl(0.05), constant_loss_of=lambda rate: UNTRAINED - 0.6), 300).kind == "learnt"


def test_the_best_at_either_end_is_followed_beyond_it():
    falling = race(lambda rate: UNTRAINED - 1 - 0.1 * math.log10(rate))
    assert peak_of(falling) == pytest.approx(EDGE * 10**0.25), "above the highest of the row"
    rising = race(lambda rate: UNTRAINED - 1 + 0.1 * math.log10(rate))
    assert peak_of(rising) == pytest.approx(EDGE * 10**-2.75), "below the lowest of the row"


def test_infinite_losses_above_the_best_do_not_hide_it():
    assert 0.05 / 10**0.5 <= peak_of(race(lambda rate: math.inf if rate > 0.06 else bowl(0.05)(rate))) <= 0.06


@settings(max_examples=200, deadline=None)
@given(st.floats(-3, 0), *[st.floats(0.05, 2)] * 2, *[st.floats(0.01, 1)] * 2)
def test_the_vertex_is_that_of_the_closed_formula(middle, below, above, left_rise, right_rise):
    exponents, losses = [middle - below, middle, middle + above], [left_rise, 0.0, right_rise]
    bend, slope, _ = np.polyfit(np.array(exponents) * math.log(10), losses, 2)
    heats = [heat(10**exponent, loss) for exponent, loss in zip(exponents, losses, strict=True)]
    assert math.log(peak_of(heats)) == pytest.approx(-slope / (2 * bend), abs=1e-6)


def test_longer_trainings_bear_lower_rates():
    heats = [heat(rate, loss) for rate, loss in ((1e-3, 1.0), (1e-2, 0.5), (1e-1, 1.0))]
    assert peak_of(heats, 50) == pytest.approx(1e-2)
    assert peak_of(heats, 10) == pytest.approx(1e-2), "no heat was longer than that"
    rates = [peak_of(heats, steps) for steps in (50, 300, 3000, 30000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-2 * (50 / 30000) ** HORIZON_POWER)


def test_without_cycles_there_is_nothing_to_say():
    assert outcome([], 300) is None
    assert outcome([heat(0.1, 1.0, "constant")], 300) is None
    assert peak_of([heat(0.1, 1.0)] * 3) == pytest.approx(0.1), "the same rate thrice"


def test_what_has_learnt_and_what_is_stable():
    assert heat(0.1, UNTRAINED * 0.97).has_learnt
    assert not heat(0.1, UNTRAINED * 0.99).has_learnt
    assert heat(0.1, UNTRAINED * 1.005).is_stable
    assert not heat(0.1, UNTRAINED * 1.02).is_stable
    assert not heat(0.1, math.inf).is_stable
