"""From the curve of a range test to a learning rate: a pure function of rates and losses.

What a range test says is a guess: how long the loss takes to react to a rate, and what a rate does in a long training,
are not in the curve. `docs/explanation/lr-finder.md` has figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mxtorch.lr_finder.curve import Floats, Valley, clean, running_median, valley
from mxtorch.lr_finder.numbers import SWEEP
from mxtorch.lr_finder.suggestion import ALREADY_TRAINED, Reading, Status

_CHECK = "mxtorch.init.check(net, batch) tells whether signals vanish or explode."
_A_GUESS = "A range test is no more than a guess; method='trials' tries rates."


@np.errstate(over="ignore", invalid="ignore")  # losses near the largest float are no fault of the reading
def read_sweep(
    rates: Sequence[float],
    losses: Sequence[float],
    held_out: Sequence[tuple[float, float]] = (),
    *,
    ended_early: bool = False,
    exchanged_loss: float | None = None,
    is_constant: bool = True,
) -> Reading:
    """Read a learning rate off a range test (Smith 2015, arXiv 1506.01186, section 3.3).

    Args:
        rates: The learning rates, rising.
        losses: The training loss at each of them; cut at the first that is not finite.
        held_out: Rates, and the held-out loss after the step at each. They are read beside the losses.
        ended_early: Whether the sweep was stopped by divergence, so that the curve does reach its edge.
        exchanged_loss: The held-out loss at the start with the targets of other samples: far above the true one only
            for a network that knows something.
        is_constant: Whether the rate is for a constant schedule, and not for the peak of another.
    """
    rate, loss = clean(rates, losses)
    smoothed = tuple(running_median(loss).tolist())
    ended_early = ended_early or len(loss) < len(losses)
    fault = _too_short(loss.tolist(), losses, ended_early)
    if fault is not None:
        return Reading(fault.status, fault.advice, smoothed=smoothed)
    trained = valley(rate, loss, width=SWEEP.training_width)
    if ended_early and not trained.rises:
        trained = replace(trained, rises=True, edge=float(rate[-1]))
    shape = _held_out_shape(_held_out_curve(held_out), trained, ended_early)
    broke_away = ended_early or _rises_clearly(trained)
    verdict = _lower(_of_curve(shape, rate, exchanged_loss), _of_curve(trained, rate, None), broke_away)
    if exchanged_loss is not None and 0 <= shape.start < SWEEP.nothing_left * exchanged_loss:
        verdict = _Verdict("already_trained", ALREADY_TRAINED)
    edge = next((curve.edge for curve in (shape, trained) if curve.rises), None)
    if verdict.rate is None:
        return Reading(verdict.status, verdict.advice, edge=edge, smoothed=smoothed)
    lowest, highest = float(rate[0]), float(max(rates))

    def within(value: float) -> float:
        return min(max(value, lowest), highest)

    factor = SWEEP.peak_factor if verdict.falls else SWEEP.lonely_peak_factor
    suggestion = within(verdict.rate * (1.0 if is_constant else factor))
    low, high = SWEEP.interval
    interval = (within(suggestion * 10**low), within(suggestion * 10**high))
    return Reading("guess", verdict.advice, suggestion, interval, edge=edge, smoothed=smoothed)


class _Verdict(NamedTuple):
    status: Status
    advice: str
    rate: float | None = None
    falls: bool = False  # whether the rate rests on a fall of the loss, and not on an edge alone


def _held_out_shape(points: tuple[Floats, Floats] | None, trained: Valley, ended_early: bool) -> Valley:
    """The shape of the held-out curve, or of the training curve where there is no such."""
    if points is None:
        return trained
    shape = valley(*points, width=SWEEP.held_out_width)
    if ended_early and not shape.rises:  # it broke away in the training loss, before the held-out one was seen to
        return replace(shape, rises=True, edge=trained.edge)
    return shape


def _lower(held_out: _Verdict, trained: _Verdict, broke_away: bool) -> _Verdict:
    """The lower of two rates, as too high a rate costs far more than one that is too low.

    A rate that rests on a fall is taken before one that rests on an edge alone, but not above half of that edge. What
    the held-out loss has no rate for, the training loss may tell where it broke away; elsewhere its fall would be
    noise.
    """
    if trained.rate is None:
        return held_out
    if held_out.rate is None:
        return trained if broke_away and held_out.status in ("no_signal", "noise") else held_out
    lower, higher = (held_out, trained) if held_out.rate <= trained.rate else (trained, held_out)
    if lower.falls or not higher.falls:
        return lower
    assert lower.rate is not None
    assert higher.rate is not None
    half_of_edge = lower.rate * 10 ** (
        SWEEP.below_lonely_edge - SWEEP.below_any_edge
    )  # the rate of a lonely edge is below it
    return higher._replace(rate=min(higher.rate, half_of_edge))


def _of_curve(shape: Valley, rate: Floats, exchanged_loss: float | None) -> _Verdict:
    """What the range test says."""
    fault = _no_evidence(shape, rate, exchanged_loss)
    if fault is not None:
        return fault
    if _is_flat(shape):
        advice = (
            f"The loss falls at no rate and breaks away at {shape.edge:.2g}: a fraction of that, and no more than "
            f"a guess. method='trials' tries rates. {_CHECK}"
        )
        return _Verdict("guess", advice, shape.edge * 10**-SWEEP.below_lonely_edge)
    advice = f"The loss falls from {shape.falls_from:.2g} and is lowest at {shape.lowest:.2g}."
    return _Verdict("guess", f"{advice} {_A_GUESS}", _from_shape(shape), falls=True)


def _too_short(usable: Sequence[float], losses: Sequence[float], ended_early: bool) -> _Verdict | None:
    """Why there are too few losses to be read, if so."""
    if len(usable) >= SWEEP.fewest_steps:
        return None
    if not usable and (len(losses) or ended_early):
        return _Verdict("not_finite", "The loss is not finite from the start: look at data and model.")
    if usable and ended_early:
        return _Verdict("range_too_short", "The loss broke away almost at once: lower start_lr by a factor of 100.")
    return _Verdict("too_few_steps", f"Only {len(usable)} usable steps: raise num_steps to 100.")


def _no_evidence(shape: Valley, rate: Floats, exchanged_loss: float | None) -> _Verdict | None:
    """Why the curve carries no number, if so."""
    flat = _is_flat(shape)
    first_tenth = float(rate[0]) * (float(rate[-1]) / float(rate[0])) ** 0.1
    lonely_edge_too_low = flat and shape.edge * 10**-SWEEP.below_lonely_edge < rate[0]
    if shape.rises and (shape.edge <= first_tenth or lonely_edge_too_low):
        return _Verdict("range_too_short", f"The loss rises from the start: lower start_lr (now {rate[0]:.3g}).")
    if flat and _knows_something(shape, exchanged_loss):
        return _Verdict("already_trained", ALREADY_TRAINED)
    if flat and not shape.rises:
        if shape.drop > SWEEP.smallest_relative_drop * abs(shape.start):
            return _Verdict(
                "noise", "The loss is noise: try a larger batch, accumulate=, validation data, or method='trials'."
            )
        return _Verdict(
            "no_signal", f"The loss does not change clearly at any rate: raise end_lr (now {rate[-1]:.3g}). {_CHECK}"
        )
    if not flat and not shape.rises and shape.lowest >= shape.rates[-2] and _still_falls(shape):
        return _Verdict(
            "range_too_short", f"The loss still falls at the highest rate: raise end_lr (now {rate[-1]:.3g})."
        )
    return None


def _rises_clearly(trained: Valley) -> bool:
    """Whether the training loss ends so far above its start that noise can't be what lifts it."""
    return trained.rises and float(trained.smoothed.max()) > trained.start + SWEEP.clear_rise * trained.quiet_noise


def _still_falls(shape: Valley) -> bool:
    """Whether more than a tenth of the drop lies in the last decade."""
    before = shape.smoothed[shape.rates <= shape.rates[-1] / 10]
    return not len(before) or float(before.min()) > float(shape.smoothed.min()) + 0.1 * shape.drop


def _is_flat(shape: Valley) -> bool:
    return shape.drop <= max(SWEEP.drop_in_noise * shape.noise, SWEEP.smallest_relative_drop * abs(shape.start))


def _knows_something(shape: Valley, exchanged_loss: float | None) -> bool:
    return exchanged_loss is not None and exchanged_loss - shape.start > SWEEP.knows_something * abs(exchanged_loss)


def _held_out_curve(held_out: Sequence[tuple[float, float]]) -> tuple[Floats, Floats] | None:
    """Rates and losses in the order of the rates; None where there are too few to be read."""
    points = sorted(point for point in held_out if 0 < point[0] < math.inf and not math.isnan(point[1]))
    if len(points) < SWEEP.fewest_held_out or not math.isfinite(points[0][1]):
        return None
    rates, losses = np.array(points, dtype=np.float64).T
    return rates, losses


def _from_shape(shape: Valley) -> float:
    """A rate from where the loss falls, is lowest, and breaks away."""
    near_edge = max(
        min(shape.edge * 10**-SWEEP.below_edge, shape.mostly_fallen * 10**SWEEP.above_fall),
        shape.half_way,
    )
    gap = math.log10(shape.edge / shape.mostly_fallen)
    share = min(max((gap - SWEEP.gap_of_edge) / (SWEEP.gap_of_floor - SWEEP.gap_of_edge), 0.0), 1.0)
    return float(near_edge ** (1 - share) * min(near_edge, shape.half_way) ** share)
