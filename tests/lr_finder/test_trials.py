"""Which trainings a search runs, as a pure function of their losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.trials import Plan, Trial, has_moved, neighbours, try_rates

UNTRAINED = 2.0
STEPS = st.integers(2, 20_000)
LENGTHS = st.integers(1, 20_000)
USUAL = st.sampled_from([1e-3, 3e-3, 1e-2, 3e-2, 1.0])


def bowl(best, width=1.0, stable=math.inf):
    """Losses that are lowest at one rate, the lower the longer the training; infinite above a stable rate."""

    def loss(rate, part):
        learnt = math.exp(-((math.log10(rate / best) / width) ** 2))
        return math.inf if rate > stable else UNTRAINED - learnt * part**0.3

    return loss


def search(plan, loss_of):
    """All trainings, and the rungs as they were announced."""
    rungs = []

    def run(rate, steps, rung):
        return Trial(rate, steps, loss_of(rate, steps / plan.training_steps), UNTRAINED, rung)

    trials = try_rates(run, plan, on_rung=lambda rates, steps: rungs.append((list(rates), steps)))
    return trials, rungs


def lowest(trials):
    return min((trial for trial in trials if trial.rung == trials[-1].rung), key=lambda trial: trial.loss)


@st.composite
def ranges(draw):
    """What start_lr and end_lr allow; mostly everything."""
    low = draw(st.one_of(st.just(0.0), st.floats(1e-6, 1e2)))
    high = draw(st.one_of(st.just(math.inf), st.floats(1.1, 1e5).map(lambda factor: max(low, 1e-6) * factor)))
    return low, high


@settings(max_examples=400, deadline=None)
@given(STEPS, LENGTHS, USUAL, ranges(), st.data())
def test_whatever_the_losses_no_more_steps_and_no_rate_outside(steps, training_steps, usual, limits, data):
    losses = st.one_of(st.floats(-10, 10), st.sampled_from([UNTRAINED, math.inf, 0.0, 1e308]))
    plan = Plan.of(steps, training_steps, usual, *limits)
    trials, rungs = search(plan, lambda rate, part: data.draw(losses))
    assert trials
    assert sum(trial.steps for trial in trials) <= plan.most_steps <= steps
    low, high = limits
    for trial in trials:
        assert low <= trial.rate <= high
        assert 1 <= trial.steps <= training_steps
    assert [rung.steps for rung in trials] == sorted(rung.steps for rung in trials), "ever longer"
    announced = [(rate, steps) for rates, steps in rungs for rate in rates]
    assert [(trial.rate, trial.steps) for trial in trials] == announced
    tried = [(round(math.log10(trial.rate), 6), trial.rung) for trial in trials]
    assert len(set(tried)) == len(tried), "no rate twice with the same length"


@settings(max_examples=300, deadline=None)
@given(st.floats(-1.9, 2.4), st.floats(0.7, 2), st.integers(400, 20_000), st.integers(100, 20_000), USUAL)
def test_the_best_rate_of_a_bowl_is_found_within_half_a_decade(decades, width, steps, training_steps, usual):
    best = usual * 10**decades
    trials, _ = search(Plan.of(steps, training_steps, usual), bowl(best, width))
    assert abs(math.log10(lowest(trials).rate / best)) <= 0.5


@settings(max_examples=200, deadline=None)
@given(st.floats(-1.4, 1.9), st.integers(400, 20_000))
def test_rates_that_diverge_do_not_hide_the_best(decades, steps):
    best = 1e-2 * 10**decades
    stable = best * 10**0.3
    trials, _ = search(Plan.of(steps, 1000, 1e-2), bowl(best, stable=stable))
    found = lowest(trials)
    assert best * 10**-0.8 <= found.rate <= stable


def test_the_last_rung_is_a_bowl_around_the_best():
    trials, _ = search(Plan.of(5000, 1000, 1e-2), bowl(0.1))
    last = sorted(trial.rate for trial in trials if trial.rung == trials[-1].rung)
    best = lowest(trials).rate
    assert last[0] < best < last[-1]


def test_a_search_with_steps_to_spare_tries_whole_trainings_and_then_stops():
    plan = Plan.of(10**6, 300, 1e-2)
    trials, _ = search(plan, bowl(0.1))
    assert trials[-1].steps == 300
    assert sum(trial.steps for trial in trials) < 10_000
    assert plan.most_steps < 10_000, "what is announced is what can be of use"


def test_the_best_at_the_end_of_a_rung_is_followed_beyond_it():
    falling = [trial.rate for trial in search(Plan.of(20_000, 1000, 1e-2), lambda rate, part: 1.0 - 0.01 * rate)[0]]
    assert max(falling) > 10 * max(Plan.of(20_000, 1000, 1e-2).window()) / 10**1.01
    plan = Plan.of(20_000, 1000, 1e-2, highest=0.1)
    held = [trial.rate for trial in search(plan, lambda rate, part: 1.0 - 0.01 * rate)[0]]
    assert max(held) <= 0.1 * 1.011


def test_while_nothing_moves_no_rate_is_thrown_away():
    """A loss that rests on its plateau until the trainings are long enough."""
    best = bowl(1e-3)
    trials, rungs = search(Plan.of(3000, 1000, 1e-2), lambda rate, part: UNTRAINED if part < 0.1 else best(rate, part))
    assert not has_moved([trial for trial in trials if trial.rung == 0])
    assert rungs[1][0] == rungs[0][0], "the same rates, for longer"
    assert abs(math.log10(lowest(trials).rate / 1e-3)) <= 1


def test_where_nothing_ever_moves_the_highest_steady_rates_are_trained_longest():
    trials, _ = search(Plan.of(3000, 1000, 1e-2), lambda rate, part: UNTRAINED if rate < 0.5 else math.inf)
    last = [trial.rate for trial in trials if trial.rung == trials[-1].rung]
    assert max(last) < 0.5
    assert max(last) == pytest.approx(max(trial.rate for trial in trials if trial.rate < 0.5))


def test_where_nothing_ever_moves_up_to_the_end_of_the_range_its_end_is_trained_longest():
    trials, _ = search(Plan.of(3000, 1000, 1e-2, highest=1e-1), lambda rate, part: UNTRAINED)
    assert trials[-1].rung == 2
    assert max(trial.rate for trial in trials if trial.rung == 2) == pytest.approx(1e-1)


def test_where_everything_diverges_the_search_ends():
    trials, _ = search(Plan.of(3000, 1000, 1e-2), lambda rate, part: math.inf)
    assert all(trial.loss == math.inf for trial in trials)


@pytest.mark.parametrize(
    "limits", [(1e-4, math.inf), (0.0, 1e-1), (1e-3, 1e-1), (2e-2, 2.5e-2), (50, math.inf), (0.0, 1e-8)]
)
def test_the_window_is_inside_of_what_is_allowed(limits):
    window = Plan.of(3000, 1000, 1e-2, *limits).window()
    assert window
    assert all(limits[0] <= rate <= limits[1] for rate in window)
    assert window == sorted(window)


def test_neighbours_stop_at_the_limits():
    plan = Plan.of(3000, 1000, 1e-2, 1e-2, 1e-1)
    assert neighbours(1e-1, plan, 2) == pytest.approx([1e-2, 10**-1.5, 1e-1])


def test_how_far_a_loss_fell():
    assert Trial(0.1, 5, 1.5, 2.0, 0).fall == 0.5
    assert has_moved([Trial(0.1, 5, 1.5, 2.0, 0), Trial(1.0, 5, math.inf, 2.0, 0)])
    assert not has_moved([Trial(0.1, 5, 2.0, 2.0, 0)])
    assert not has_moved([Trial(0.1, 5, math.inf, 2.0, 0)])
    assert has_moved([Trial(0.1, 5, -3.0, -2.0, 0)]), "losses may be negative"
