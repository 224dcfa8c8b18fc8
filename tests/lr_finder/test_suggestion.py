from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxtorch.lr_finder import estimate
from mxtorch.lr_finder.range_test import geometric_rates
from mxtorch.lr_finder.trials import ONE_CYCLE_FACTOR, SHARE_OF_GUESS, Heat

RATES = geometric_rates(1e-6, 1, 100)


def curve(fall_at=1e-3, rise_at=1e-1, drop=1.5, noise=0.03, seed=0):
    """A plateau of 2.3, a fall around one rate, a rise around another."""
    rate = np.log10(RATES)
    fall = drop / (1 + np.exp(-4 * (rate - math.log10(fall_at))))
    rise = 20 * np.maximum(0, rate - math.log10(rise_at)) ** 2
    return (2.3 - fall + rise + noise * np.random.default_rng(seed).standard_normal(100)).tolist()


def held_out(losses, every=4):
    return list(zip(RATES, losses, strict=True))[::every]


def race(losses, constant=0.5, top=0.1, loss_before=2.3, steps=50):
    """Cycles half a decade apart, from `top` down, and a constant rate."""
    cycles = [Heat("one_cycle", top * 10 ** (-0.5 * n), steps, loss, loss_before) for n, loss in enumerate(losses)]
    return [*cycles, Heat("constant", top / 20, steps, constant, loss_before)]


def test_a_clear_curve():
    found = estimate(RATES, curve())
    assert found.status == "ok"
    assert 1e-3 < found.suggestions["constant"] < found.suggestions["one_cycle"] < 2e-1
    assert found.bounds == pytest.approx((found.suggestions["one_cycle"] / 4, found.suggestions["one_cycle"]))
    assert 5e-2 < found.edge < 1, "where the loss rises"


def test_a_spike_does_not_win():
    losses = curve()
    losses[3] = -5.0
    assert estimate(RATES, losses).suggestions == pytest.approx(estimate(RATES, curve()).suggestions, rel=0.5)


@pytest.mark.parametrize("seed", range(8))
def test_noise_carries_no_rate(seed):
    losses = 2.3 + 0.1 * np.random.default_rng(seed).standard_normal(100)
    found = estimate(RATES, losses.tolist())
    assert found.status in ("no_signal", "noise")
    assert not found.suggestions
    assert found.bounds is None


def test_what_is_flat_is_no_signal_and_what_dips_by_chance_is_noise():
    chance = np.random.default_rng(1)
    assert estimate(RATES, (2.3 + 0.002 * chance.standard_normal(100)).tolist()).status == "no_signal"
    noisy = [2.3 + 0.5 * chance.standard_normal() for _ in RATES]
    assert estimate(RATES, noisy).status == "noise"


def test_a_range_that_ends_too_soon_and_one_that_starts_too_late():
    falling = np.linspace(2.3, 1.0, 100).tolist()
    assert estimate(RATES, falling).status == "range_too_short"
    assert "raise end_lr" in estimate(RATES, falling).advice
    rising = (2.3 + np.linspace(0, 3, 30) ** 2).tolist()
    found = estimate(RATES[:30], rising, ended_early=True)
    assert found.status == "range_too_short"
    assert "lower start_lr" in found.advice
    assert "lower start_lr" in estimate(RATES[:8], rising[:8], ended_early=True).advice


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


def test_held_out_losses_are_read_where_there_are_enough():
    """Training losses go on falling, held-out ones do not."""
    training = curve(fall_at=1e-2, rise_at=3e-1, drop=2.2)
    judged = held_out(curve(fall_at=1e-4, rise_at=1e-3, noise=0.0))
    by_held_out = estimate(RATES, training, judged)
    assert by_held_out.status == "ok"
    assert by_held_out.suggestions["constant"] < 1e-3 < estimate(RATES, training).suggestions["constant"]
    assert estimate(RATES, training, judged[:5]) == estimate(RATES, training)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_the_loss_does_not_matter(scale):
    judged = held_out(curve(noise=0.0))
    scaled = [(rate, loss * scale) for rate, loss in judged]
    training = [loss * scale for loss in curve()]
    assert estimate(RATES, training, scaled).suggestions == pytest.approx(estimate(RATES, curve(), judged).suggestions)


def test_a_held_out_loss_that_becomes_infinite_is_an_edge():
    judged = [(rate, loss if rate < 1e-1 else math.inf) for rate, loss in held_out(curve(rise_at=10, noise=0.0))]
    found = estimate(RATES, curve(), judged)
    assert found.status == "ok"
    assert found.edge <= 1e-1
    assert found.suggestions["constant"] < 1e-1


def test_with_nothing_but_an_edge_the_rate_is_a_guess_below_it():
    flat = curve(drop=0.0, noise=0.001)
    found = estimate(RATES, flat)
    assert found.status == "edge_only"
    assert "guess" in found.advice
    assert found.edge / 100 < found.suggestions["constant"] < found.edge / 3


def test_a_network_that_tells_targets_apart_is_trained_already():
    flat = [0.1 * loss for loss in curve(drop=0.0, noise=0.001)]
    assert estimate(RATES, flat, exchanged_loss=8.0).status == "already_trained"
    assert estimate(RATES, flat, exchanged_loss=0.23).status == "edge_only", "it is as good for any targets"
    assert estimate(RATES, curve(), exchanged_loss=8.0).status == "ok", "it has more to learn"
    tiny = [1e-6 * loss for loss in curve()]
    assert estimate(RATES, tiny, exchanged_loss=8.0).status == "already_trained", "the last digits of a zero"
    assert estimate(RATES, tiny, exchanged_loss=2.3e-6).status == "ok", "losses may be small"
    still = race([0.24, 0.23, 0.23, 0.23], constant=0.23, loss_before=0.23)
    assert estimate(RATES, flat, exchanged_loss=8.0, heats=still).status == "already_trained", "heats find no more"


def test_heats_have_the_last_word():
    judged = held_out(curve(noise=0.0))
    found = estimate(RATES, curve(), judged, heats=race([1.5, 0.7, 0.5, 0.7]), training_steps=50)
    assert found.status == "ok"
    assert found.suggestions["one_cycle"] == pytest.approx(1e-2)
    assert found.suggestions["constant"] == pytest.approx(1e-2 / ONE_CYCLE_FACTOR)
    low, high = found.intervals["constant"]
    wide = estimate(RATES, curve(), judged).intervals["constant"]
    assert high / low < wide[1] / wide[0], "they are surer than a sweep"
    longer = estimate(RATES, curve(), judged, heats=race([1.5, 0.7, 0.5, 0.7]), training_steps=5000)
    assert longer.suggestions["constant"] < found.suggestions["constant"]


def test_a_low_first_loss_is_no_lowest_point():
    """Its batch was an easy one; nothing has been trained by then."""
    losses = curve()
    expected = estimate(RATES, losses).suggestions["constant"]
    losses[0] -= 0.4
    assert estimate(RATES, losses).suggestions["constant"] == pytest.approx(expected)


def test_a_fall_is_taken_before_a_lonely_edge():
    """Whichever of the two curves shows it."""
    falls, breaks = curve(rise_at=0.02), curve(rise_at=0.02, drop=0)
    lonely = estimate(RATES, breaks)
    assert lonely.status == "edge_only"
    for losses, others in (
        (falls, held_out(curve(rise_at=0.02, drop=0, noise=0.0))),
        (breaks, held_out(curve(rise_at=0.02, noise=0.0))),
    ):
        found = estimate(RATES, losses, others)
        assert found.status == "ok"
        assert lonely.suggestions["constant"] < found.suggestions["constant"] <= lonely.edge / 2
    soon = estimate(RATES, curve(fall_at=1e-2), held_out(curve(rise_at=1e-3, drop=0, noise=0.0)))
    assert soon.suggestions["constant"] == pytest.approx(soon.edge * 10**-0.3), "not above half of either edge"


def test_the_training_loss_breaks_away_where_the_held_out_loss_is_flat():
    still = held_out(curve(drop=0, rise_at=100, noise=0.0))
    found = estimate(RATES, curve(drop=0, noise=0.01), still)
    assert found.status == "edge_only"
    assert found.edge == pytest.approx(0.15, rel=0.5)
    few_batches = np.tile([1.0, 1.3, 0.9, 1.2], 25)
    few_batches[-3:] = 1.35
    assert estimate(RATES, few_batches, still).status in ("no_signal", "noise"), "no more than the noise of its batches"


def test_a_loss_that_rests_on_its_floor_to_the_end_has_a_rate():
    """Linear models bear any rate of Adam's; the lowest of the last points may well be the last."""
    floor = curve(rise_at=100, noise=0.0)
    assert floor[-1] == min(floor)
    found = estimate(RATES, floor)
    assert found.status == "ok"
    assert 1e-4 < found.suggestions["constant"] < 1e-1


def test_heats_that_do_not_move_the_loss():
    swept = estimate(RATES, curve()).suggestions["constant"]
    share = 10**-0.5 * SHARE_OF_GUESS / ONE_CYCLE_FACTOR
    for top, expected in ((1.0, swept), (1e-3, 1e-3 * share)):
        found = estimate(RATES, curve(), heats=race([9.0, 2.3, 2.3, 2.3], constant=2.3, top=top))
        assert found.status == "edge_only"
        assert found.suggestions["constant"] == pytest.approx(expected), "the lower of sweep and a share of the stable"
    flat = curve(drop=0, rise_at=100)
    still = estimate(RATES, flat, heats=race([9.0, 2.3, 2.3, 2.3], constant=2.3))
    assert still.status == "edge_only"
    assert still.suggestions["constant"] == pytest.approx(0.1 * share)
    worse = estimate(RATES, flat, heats=race([9.0, math.inf, 9.0], constant=9.0))
    assert worse.status == "no_signal"
    assert not worse.suggestions
    assert "worse" in worse.advice


def test_a_rate_that_only_a_cycle_bears_is_a_guess():
    swept = estimate(RATES, curve()).suggestions["constant"]
    for top, expected in ((1.0, swept), (0.01, 0.01 / 20 * SHARE_OF_GUESS)):
        found = estimate(RATES, curve(), heats=race([9.0, 0.5, 2.3, 2.3], constant=9.0, top=top))
        assert found.status == "edge_only"
        assert "a constant rate did not" in found.advice
        assert found.suggestions["constant"] == pytest.approx(expected)


LOSSES = st.one_of(
    st.floats(width=32),
    st.floats(-10, 10),
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, -1e308]),
)
USE = st.sampled_from(["one_cycle", "constant"])
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
def searches(draw):
    count = draw(st.one_of(st.just(3), st.integers(0, 80)))
    rates = draw(
        st.one_of(
            st.just(geometric_rates(1e-7, 10.0, max(count, 2))[:count]),
            st.lists(RATE, min_size=count, max_size=count),
        )
    )
    losses = draw(st.one_of(smooth_curves(count), st.lists(LOSSES, min_size=count, max_size=count)))
    probes = draw(st.integers(0, 30))
    probe_rates = draw(
        st.one_of(st.just(geometric_rates(1e-7, 10.0, max(probes, 2))[:probes]), st.lists(RATE, max_size=30))
    )
    probed = draw(
        st.one_of(
            smooth_curves(len(probe_rates)), st.lists(LOSSES, min_size=len(probe_rates), max_size=len(probe_rates))
        )
    )
    heats = draw(st.lists(st.builds(Heat, USE, RATE, st.integers(1, 100), LOSSES, LOSSES), max_size=10))
    measured = {
        "ended_early": draw(st.booleans()),
        "exchanged_loss": draw(st.one_of(st.none(), LOSSES)),
        "heats": heats,
        "training_steps": draw(st.integers(1, 10**6)),
    }
    return rates, losses, list(zip(probe_rates, probed, strict=True)), measured


@settings(max_examples=600, deadline=None)
@given(searches())
def test_any_search_gives_rates_within_the_sweep_or_none(search):
    rates, losses, probed, measured = search
    found = estimate(rates, losses, probed, **measured)
    assert found.advice
    assert bool(found.suggestions) == (found.status in ("ok", "edge_only")) == (found.bounds is not None)
    assert set(found.suggestions) == set(found.intervals)
    for use, suggestion in found.suggestions.items():
        low, high = found.intervals[use]
        assert min(rates) <= low <= suggestion <= high <= max(rates)
    if found.bounds is not None:
        assert min(rates) <= found.bounds[0] <= found.bounds[1] <= max(rates)
    assert found.edge is None or 0 < found.edge < math.inf
