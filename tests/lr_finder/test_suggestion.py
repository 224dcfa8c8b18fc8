"""What is said of short trainings, as a pure function of their losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder.suggestion import read_trials, rule_of_thumb
from mxtorch.lr_finder.trials import Plan, Trial, try_rates

UNTRAINED = 2.0
RATES = [1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1]
WITHOUT_RATE = ("no_signal", "already_trained", "not_finite")


def plan_of(steps=3000, training_steps=100, lowest=0.0, highest=math.inf):
    return Plan.of(steps, training_steps, 1e-2, lowest, highest)


def last_rung(*losses, steps=100, rates=RATES):
    """Trainings at rising rates."""
    return [Trial(rate, steps, loss, UNTRAINED, 2) for rate, loss in zip(rates, losses, strict=False)]


BOWL = (1.5, 0.6, 0.5, 0.55, 1.5)


def read(trials, plan=None, **options):
    return read_trials(trials, plan or plan_of(), **{"is_constant": True, "is_held_out": True, **options})


def test_whole_trainings_that_were_judged_by_held_out_samples_are_ok():
    found = read(last_rung(*BOWL))
    assert found.status == "ok"
    assert found.suggestion == 1e-2
    assert "5 trainings of 100 steps, the whole length" in found.advice


@pytest.mark.parametrize(
    ("why", "options", "trials"),
    [
        ("only training losses", {"is_held_out": False}, last_rung(*BOWL)),
        ("assumed to be 100 steps; give epochs", {"length_is_known": False}, last_rung(*BOWL)),
        ("30% of the training", {}, last_rung(*BOWL, steps=30)),
        ("at the end of the range", {"plan": plan_of(lowest=1e-2)}, last_rung(0.5, 0.6, 1.5, rates=RATES[2:])),
        ("at the end of the range", {"plan": plan_of(highest=1e-2)}, last_rung(1.5, 0.6, 0.5)),
        ("no other rate was tried", {}, last_rung(0.5)),
        ("may be luck", {}, last_rung(1.9, 1.9, 0.5, 1.9, 1.9)),
        ("one other rate is nearly as good", {}, last_rung(1.9, 1.9, 0.5, 0.55, 1.9)),
    ],
)
def test_a_guess_says_why(why, options, trials):
    found = read(trials, **options)
    assert found.status == "guess"
    assert why in found.advice
    assert found.suggestion is not None


def test_a_guess_says_all_reasons():
    advice = read(last_rung(1.9, 1.9, 0.5, steps=10), is_held_out=False).advice
    assert all(why in advice for why in ("training losses", "luck", "10% of the training"))


def test_a_guess_of_short_trainings_names_a_budget_that_compares_longer_ones():
    for part in (0.02, 0.1, 0.4):
        found = read(last_rung(*BOWL, steps=int(1000 * part)), plan_of(training_steps=1000))
        budget = float(found.advice.split("budget=")[1].split(" ")[0])
        assert Plan.of(round(budget * 1000), 1000, 1e-2).lengths[-1] > 1000 * part


@pytest.mark.parametrize("is_constant", [True, False])
def test_intervals_are_narrower_for_longer_trainings(is_constant):
    widths = []
    for part in (0.05, 0.1, 0.2, 0.5, 1.0):
        found = read(last_rung(*BOWL, steps=int(1000 * part)), plan_of(training_steps=1000), is_constant=is_constant)
        low, high = found.interval
        assert low < found.suggestion < high
        widths.append(high / low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0]


@pytest.mark.parametrize("is_constant", [True, False])
def test_of_rates_that_are_about_as_good_the_lowest_is_taken(is_constant):
    """Above it there may be a cliff, and on little data it overfits less."""
    assert read(last_rung(1.5, 0.501, 0.5, 0.9, 1.5), is_constant=is_constant).suggestion == RATES[1]
    assert read(last_rung(1.5, 0.501, 0.5, math.inf), is_constant=is_constant).suggestion == RATES[1]
    assert read(last_rung(1.5, 0.8, 0.5, math.inf), is_constant=is_constant).suggestion == RATES[2]


def test_where_nothing_was_learnt_there_is_no_rate_or_a_rule_of_thumb():
    flat = last_rung(*[UNTRAINED] * 5)
    whole = read(flat)
    assert whole.status == "no_signal"
    assert "init.check" in whole.advice
    assert whole.suggestion is whole.interval is None
    short = read(last_rung(*[UNTRAINED] * 5, steps=10))
    assert short.status == "guess"
    assert "rule of thumb" in short.advice
    assert short.suggestion == pytest.approx(1e-2)
    assert read(flat, knows_something=True).status == "already_trained"
    assert read(last_rung(*BOWL), knows_something=True).status == "ok", "it has more to learn"


def test_only_losses_that_are_not_finite():
    found = read(last_rung(*[math.inf] * 5))
    assert found.status == "not_finite"
    assert found.suggestion is None


def test_too_few_steps_to_try_rates():
    found = rule_of_thumb(Plan.of(8, 100, 1e-2))
    assert found.status == "guess"
    assert "8 steps are too few" in found.advice
    assert found.suggestion == 1e-2
    assert rule_of_thumb(Plan.of(8, 100, 1e-2, 0.0, 1e-3)).suggestion == 1e-3
    assert rule_of_thumb(Plan.of(8, 100, 1e-2, 0.1, 1.0)).suggestion == 0.1


LOSSES = st.one_of(st.floats(-10, 10), st.sampled_from([UNTRAINED, 0.0, math.inf, 1e308, -1e308]))


@settings(max_examples=400, deadline=None)
@given(
    st.integers(2, 20_000),
    st.integers(1, 20_000),
    st.sampled_from([(0.0, math.inf), (1e-4, 1e-1), (1e-2, math.inf), (0.0, 1e-3)]),
    st.fixed_dictionaries(
        dict.fromkeys(("is_constant", "is_held_out", "length_is_known", "knows_something"), st.booleans())
    ),
    st.one_of(st.just(UNTRAINED), LOSSES, st.just(math.nan)),
    st.data(),
)
def test_any_search_gives_a_rate_that_was_tried_or_says_why_not(steps, training_steps, limits, options, before, data):
    plan = Plan.of(steps, training_steps, 1e-2, *limits)
    trials = try_rates(lambda rate, length, rung: Trial(rate, length, data.draw(LOSSES), before, rung), plan)
    found = read_trials(trials, plan, **options)
    assert found.advice
    assert (found.suggestion is None) == (found.interval is None) == (found.status in WITHOUT_RATE)
    if found.suggestion is None:
        return
    low, high = found.interval
    assert 0 < low <= found.suggestion <= high < math.inf
    assert limits[0] / 1.011 <= found.suggestion <= limits[1] * 1.011
    assert found.suggestion in [trial.rate for trial in trials] or "rule of thumb" in found.advice
    if found.status == "ok":
        assert options["is_held_out"]
        assert options["length_is_known"]
        assert trials[-1].steps >= 0.8 * training_steps


def two_rungs(shorter, longer, steps=(30, 60)):
    """The trainings of two rungs; each argument has the losses at `RATES`."""
    return [
        Trial(rate, length, loss, UNTRAINED, rung)
        for rung, (length, losses) in enumerate(zip(steps, (shorter, longer), strict=True), start=1)
        for rate, loss in zip(RATES, losses, strict=True)
    ]


@pytest.mark.parametrize("gained", [-0.5, 0.0, 0.01])
def test_where_longer_trainings_gain_nothing_the_rate_falls_with_the_length(gained):
    """A training of 600 steps is ten times as long as the ones that were compared."""
    trials = two_rungs(BOWL, [loss - gained for loss in BOWL])
    found = read(trials, plan_of(training_steps=600), passes=20)
    assert found.suggestion == pytest.approx(1e-2 * 60 / 600)
    assert "longer trainings hardly lower the held-out loss" in found.advice
    low, high = found.interval
    assert low < found.suggestion
    assert high > 1e-2


@pytest.mark.parametrize(
    ("why", "options", "steps", "gained"),
    [
        ("the longer ones gain", {"passes": 20}, (30, 60), 0.2),
        ("each sample is read a few times", {"passes": 4}, (30, 60), 0.0),
        ("a stream", {"passes": None}, (30, 60), 0.0),
        ("a few steps tell nothing", {"passes": 20}, (5, 60), 0.0),
        ("one length", {"passes": 20}, (60, 60), 0.0),
    ],
)
def test_otherwise_the_rate_stays(why, options, steps, gained):
    trials = two_rungs(BOWL, [loss - gained for loss in BOWL], steps)
    found = read(trials, plan_of(training_steps=600), **options)
    assert found.suggestion == 1e-2, why
    assert "hardly lower" not in found.advice


def test_a_lowered_rate_stays_in_the_range():
    plan = plan_of(training_steps=600, lowest=5e-3)
    assert read(two_rungs(BOWL, BOWL), plan, passes=20).suggestion == 5e-3


def test_whole_trainings_need_no_lowering():
    found = read(two_rungs(BOWL, BOWL, (30, 100)), plan_of(training_steps=100), passes=20)
    assert found.status == "ok"
    assert found.suggestion == 1e-2
