"""From what a search saw to a learning rate: a pure function of rates and losses.

`docs/lr-finder.md` derives every number here and shows what each part is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from mxtorch.lr_finder.curve import HELD_OUT_WIDTH, TRAINING_WIDTH, Floats, Valley, clean, running_median, valley
from mxtorch.lr_finder.trials import ONE_CYCLE_FACTOR, Heat, Use, outcome

Status = Literal[
    "ok", "edge_only", "no_signal", "noise", "already_trained", "range_too_short", "too_few_steps", "not_finite"
]

FEWEST_STEPS = 20
FEWEST_HELD_OUT = 8
# A running minimum of pure noise drops by about 1.5 of its standard deviations; ask for more than that.
DROP_IN_NOISE = 2.5
SMALLEST_RELATIVE_DROP = 0.05
# In standard deviations of a training loss: what the held-out loss does not show is believed of it only then.
CLEAR_RISE = 6.0
# The rate is so many decades below the edge, or above the rate where most of the drop is reached; the lower of the two.
BELOW_EDGE = 0.8
ABOVE_FALL = 0.65
# Where the edge is further above the fall than this, the loss rests on its floor long before the edge: the middle of
# the descent is enough. Up to the second number, in between.
GAP_OF_EDGE = 1.35
GAP_OF_FLOOR = 2.1
# With nothing but an edge, in decades below it.
BELOW_LONELY_EDGE = 1.2
# What one curve says is no higher than this, in decades, below the edge of the other.
BELOW_ANY_EDGE = 0.3
LONELY_ONE_CYCLE_FACTOR = 1.5  # a guess is not stretched as far
# The interval around a suggestion in decades, by what it rests on. Suggestions are rather too low than too high.
INTERVAL = {"sweep": (-0.4, 0.6), "heats": (-0.3, 0.4)}
# Losses with targets exchanged stand so far above those with the right ones once a network has learnt something.
KNOWS_SOMETHING = 0.2
# Below this share of that loss there is nothing left to learn: what still changes are the last digits of a zero.
NOTHING_LEFT = 1e-4
DEFAULT_TRAINING_STEPS = 300
# Smith (2015, sec. 3.3) sets the lower bound of a cycle to a third or a quarter of the upper one.
CYCLE_RATIO = 4
ALREADY_TRAINED = (
    "The network has learnt this already, and no rate makes its loss fall. To go on training, set a rate by hand, well "
    "below the one where the curve rises."
)
_CHECK = "mxtorch.init.check(net, batch) tells whether signals vanish or explode."


@dataclass(frozen=True)
class Estimate:
    """What a search says.

    Attributes:
        status: `ok`; `edge_only`, where the loss shows nothing but the rate at which it breaks away, or heats learn
            nothing at a constant rate, and the suggestion is a guess below; or why there is no suggestion: `no_signal`
            (flat), `noise`, `already_trained`, `range_too_short`, `too_few_steps`, `not_finite`.
        advice: What to do, in a sentence.
        suggestions: The rate for each use; empty where the evidence carries none.
        intervals: For each use, rates between which the best one is likely to lie.
        bounds: The min and max of a cyclic schedule (Smith 2015, sec. 3.3); None without a suggestion.
        edge: The rate where the loss breaks away; None where it does not.
        smoothed: The running median of the training losses.
    """

    status: Status
    advice: str
    suggestions: dict[Use, float] = field(default_factory=dict)
    intervals: dict[Use, tuple[float, float]] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None
    edge: float | None = None
    smoothed: tuple[float, ...] = ()


@np.errstate(over="ignore", invalid="ignore")  # losses near the largest float are no fault of the reading
def estimate(
    rates: Sequence[float],
    losses: Sequence[float],
    held_out: Sequence[tuple[float, float]] = (),
    *,
    ended_early: bool = False,
    exchanged_loss: float | None = None,
    heats: Sequence[Heat] = (),
    training_steps: int = DEFAULT_TRAINING_STEPS,
) -> Estimate:
    """Read a learning rate off a range test, and off heats where there were any.

    Args:
        rates: The learning rates, rising.
        losses: The training loss at each of them; cut at the first that is not finite.
        held_out: Rates, and the held-out loss after the step at each. They are read beside the losses.
        ended_early: Whether the sweep was stopped by divergence, so that the curve does reach its edge.
        exchanged_loss: The held-out loss at the start with the targets of other samples: far above the true one only
            for a network that knows something.
        heats: What was trained after the sweep.
        training_steps: Optimizer steps of the training that the rate is for.
    """
    rate, loss = clean(rates, losses)
    smoothed = tuple(running_median(loss).tolist())
    ended_early = ended_early or len(loss) < len(losses)
    fault = _too_short(loss.tolist(), losses, ended_early)
    if fault is not None:
        return Estimate(fault.status, fault.advice, smoothed=smoothed)
    trained = valley(rate, loss, width=TRAINING_WIDTH)
    if ended_early and not trained.rises:
        trained = replace(trained, rises=True, edge=float(rate[-1]))
    shape = _held_out_shape(_held_out_curve(held_out), trained, ended_early)
    broke_away = ended_early or _rises_clearly(trained)
    swept = _lower(_of_curve(shape, rate, exchanged_loss), _of_curve(trained, rate, None), broke_away)
    verdict = _of_heats(heats, shape, swept, exchanged_loss, training_steps) or swept
    if exchanged_loss is not None and 0 <= shape.start < NOTHING_LEFT * exchanged_loss:
        verdict = _Verdict("already_trained", ALREADY_TRAINED)
    edge = next((curve.edge for curve in (shape, trained) if curve.rises), None)
    if verdict.rate is None:
        return Estimate(verdict.status, verdict.advice, edge=edge, smoothed=smoothed)

    lowest, highest = float(rate[0]), float(max(rates))

    def within(value: float) -> float:
        return min(max(value, lowest), highest)

    peak_factor = ONE_CYCLE_FACTOR if verdict.status == "ok" else LONELY_ONE_CYCLE_FACTOR
    low, high = INTERVAL[verdict.basis]
    suggestions: dict[Use, float] = {
        "constant": within(verdict.rate),
        "one_cycle": within(verdict.rate * peak_factor),
    }
    peak = suggestions["one_cycle"]
    return Estimate(
        verdict.status,
        verdict.advice,
        suggestions=suggestions,
        intervals={use: (within(value * 10**low), within(value * 10**high)) for use, value in suggestions.items()},
        bounds=(within(peak / CYCLE_RATIO), peak),
        edge=edge,
        smoothed=smoothed,
    )


class _Verdict(NamedTuple):
    status: Status
    advice: str
    rate: float | None = None
    basis: Literal["sweep", "heats"] = "sweep"


def _held_out_shape(points: tuple[Floats, Floats] | None, trained: Valley, ended_early: bool) -> Valley:
    """The shape of the held-out curve, or of the training curve where there is no such."""
    if points is None:
        return trained
    shape = valley(*points, width=HELD_OUT_WIDTH)
    if ended_early and not shape.rises:  # it broke away in the training loss, before the held-out one was seen to
        return replace(shape, rises=True, edge=trained.edge)
    return shape


def _of_heats(
    heats: Sequence[Heat], shape: Valley, swept: _Verdict, exchanged_loss: float | None, training_steps: int
) -> _Verdict | None:
    """What the short trainings say; None where there were none."""
    said = outcome(heats, training_steps)
    if said is None:
        return None
    if said.kind == "learnt":
        return _Verdict("ok", "Short trainings, judged on held-out samples, speak for it.", said.rate, "heats")
    if _knows_something(shape, exchanged_loss):
        return _Verdict("already_trained", ALREADY_TRAINED)
    if said.rate is None:
        lowest = min(heat.rate for heat in heats)
        return _Verdict(
            "no_signal", f"Every short training made the loss worse, down to a rate of {lowest:.2g}. {_CHECK}"
        )
    guess = said.rate if swept.rate is None else min(said.rate, swept.rate)
    seen = (
        "No short training moved the loss"
        if said.kind == "unmoved"
        else "What a short one-cycle learnt, a constant rate did not"
    )
    basis = "a share of a rate that was tried" if guess == said.rate else "what the sweep says"
    return _Verdict("edge_only", f"{seen}: {basis}, and no more than a guess. {_CHECK}", guess)


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
    if lower.status == "ok" or higher.status != "ok":
        return lower
    assert lower.rate is not None
    assert higher.rate is not None
    half_of_edge = lower.rate * 10 ** (BELOW_LONELY_EDGE - BELOW_ANY_EDGE)  # the rate of a lonely edge is below it
    return higher._replace(rate=min(higher.rate, half_of_edge))


def _of_curve(shape: Valley, rate: Floats, exchanged_loss: float | None) -> _Verdict:
    """What the range test says."""
    fault = _no_evidence(shape, rate, exchanged_loss)
    if fault is not None:
        return fault
    if _is_flat(shape):
        advice = (
            f"The loss falls at no rate and breaks away at {shape.edge:.2g}: a fraction of that, and no more than "
            f"a guess. num_steps=500 tries rates. {_CHECK}"
        )
        return _Verdict("edge_only", advice, shape.edge * 10**-BELOW_LONELY_EDGE)
    advice = f"The loss falls from {shape.falls_from:.2g} and is lowest at {shape.lowest:.2g}."
    return _Verdict("ok", advice, _from_shape(shape))


def _too_short(usable: Sequence[float], losses: Sequence[float], ended_early: bool) -> _Verdict | None:
    """Why there are too few losses to be read, if so."""
    if len(usable) >= FEWEST_STEPS:
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
    lonely_edge_too_low = flat and shape.edge * 10**-BELOW_LONELY_EDGE < rate[0]
    if shape.rises and (shape.edge <= first_tenth or lonely_edge_too_low):
        return _Verdict("range_too_short", f"The loss rises from the start: lower start_lr (now {rate[0]:.3g}).")
    if flat and _knows_something(shape, exchanged_loss):
        return _Verdict("already_trained", ALREADY_TRAINED)
    if flat and not shape.rises:
        if shape.drop > SMALLEST_RELATIVE_DROP * abs(shape.start):
            return _Verdict(
                "noise", "The loss is noise: try a larger batch, accumulate=, validation data, or num_steps=500."
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
    return trained.rises and float(trained.smoothed.max()) > trained.start + CLEAR_RISE * trained.quiet_noise


def _still_falls(shape: Valley) -> bool:
    """Whether more than a tenth of the drop lies in the last decade."""
    before = shape.smoothed[shape.rates <= shape.rates[-1] / 10]
    return not len(before) or float(before.min()) > float(shape.smoothed.min()) + 0.1 * shape.drop


def _is_flat(shape: Valley) -> bool:
    return shape.drop <= max(DROP_IN_NOISE * shape.noise, SMALLEST_RELATIVE_DROP * abs(shape.start))


def _knows_something(shape: Valley, exchanged_loss: float | None) -> bool:
    return exchanged_loss is not None and exchanged_loss - shape.start > KNOWS_SOMETHING * abs(exchanged_loss)


def _held_out_curve(held_out: Sequence[tuple[float, float]]) -> tuple[Floats, Floats] | None:
    """Rates and losses in the order of the rates; None where there are too few to be read."""
    points = sorted(point for point in held_out if 0 < point[0] < math.inf and not math.isnan(point[1]))
    if len(points) < FEWEST_HELD_OUT or not math.isfinite(points[0][1]):
        return None
    rates, losses = np.array(points, dtype=np.float64).T
    return rates, losses


def _from_shape(shape: Valley) -> float:
    """A rate from where the loss falls, is lowest, and breaks away."""
    near_edge = max(
        min(shape.edge * 10**-BELOW_EDGE, shape.mostly_fallen * 10**ABOVE_FALL),
        shape.half_way,
    )
    gap = math.log10(shape.edge / shape.mostly_fallen)
    share = min(max((gap - GAP_OF_EDGE) / (GAP_OF_FLOOR - GAP_OF_EDGE), 0.0), 1.0)
    return float(near_edge ** (1 - share) * min(near_edge, shape.half_way) ** share)
