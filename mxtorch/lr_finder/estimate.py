"""From what a search saw to a learning rate: a pure function of rates and losses.

`docs/lr-finder.md` derives every number here and shows what each part is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mxtorch.lr_finder.curve import HELD_OUT_WIDTH, TRAINING_WIDTH, Valley, clean, running_median, valley
from mxtorch.lr_finder.heats import Heat, best_of

Use = Literal["constant", "one_cycle"]
Status = Literal[
    "ok", "edge_only", "no_signal", "noise", "already_trained", "range_too_short", "too_few_steps", "not_finite"
]

FEWEST_STEPS = 20
FEWEST_HELD_OUT = 8
# A running minimum of pure noise drops by about 1.5 of its standard deviations; ask for more than that.
DROP_IN_NOISE = 2.5
SMALLEST_RELATIVE_DROP = 0.05
# The rate is so many decades below the edge, or above the rate where most of the drop is reached; the lower of the two.
BELOW_EDGE = 0.8
ABOVE_FALL = 0.65
# Where the edge is further above the fall than this, the loss rests on its floor long before the edge: the middle of
# the descent is enough. Up to the second number, in between.
GAP_OF_EDGE = 1.35
GAP_OF_FLOOR = 2.1
# With nothing but an edge, in decades below it.
BELOW_LONELY_EDGE = 1.2
# A one-cycle's rate is at its peak for a moment only.
ONE_CYCLE_FACTOR = 2.15
# Half the width of the interval around a suggestion, in decades, by what it rests on.
HALF_WIDTH = {"sweep": 0.5, "heats": 0.35}
# Losses with targets exchanged stand so far above those with the right ones once a network has learnt something.
KNOWS_SOMETHING = 0.2
DEFAULT_TRAINING_STEPS = 300
_HEATS_MOVED = "The rate comes from short trainings, judged on held-out samples."
_HEATS_DID_NOT_MOVE = (
    "No short training moved the loss; the suggestion is half of the highest rate that stayed stable, no more than a "
    "guess. mxtorch.init.check(net, batch) tells whether signals vanish."
)


@dataclass(frozen=True)
class Estimate:
    """What a search says.

    Attributes:
        status: `ok`; `edge_only`, where the loss shows nothing but the rate at which it breaks away, and the
            suggestion is a tenth of that; or why there is no suggestion: `no_signal` (flat), `noise`,
            `already_trained`, `range_too_short`, `too_few_steps`, `not_finite`.
        advice: What to do, in a sentence.
        suggestions: The rate for each use; empty where the evidence carries none.
        intervals: For each use, rates between which the best one is likely to lie.
        bounds: The min and max of a cyclic schedule: where the loss begins to fall, where it stops (Smith 2015,
            sec. 3.3). None without a suggestion.
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
        held_out: Rates, and the held-out loss after the step at each. Where there are enough, they are read instead.
        ended_early: Whether the sweep was stopped by divergence, so that the curve does reach its edge.
        exchanged_loss: The held-out loss at the start with the targets of other samples: far above the true one only
            for a network that knows something.
        heats: What was trained after the sweep.
        training_steps: Optimizer steps of the training that the rate is for.
    """
    rate, loss = clean(rates, losses)
    ended_early = ended_early or len(loss) < len(losses)
    smoothed = tuple(running_median(loss).tolist())

    def without_number(status: Status, advice: str, edge: float | None = None) -> Estimate:
        return Estimate(status, advice, edge=edge, smoothed=smoothed)

    points = _held_out_curve(held_out)
    if len(loss) < FEWEST_STEPS:
        if len(loss) == 0 and len(losses):
            return without_number("not_finite", "The loss is not finite from the start: look at data and model.")
        if ended_early and len(loss):
            return without_number(
                "range_too_short", "The loss broke away almost at once: lower start_lr by a factor of 100."
            )
        return without_number("too_few_steps", f"Only {len(loss)} usable steps: raise num_steps to 100.")
    if points is None:
        shape = valley(rate, loss, width=TRAINING_WIDTH)
        shape = shape if shape.rises or not ended_early else _ending_at_edge(shape)
    else:
        shape = valley(*points, width=HELD_OUT_WIDTH)
    edge = shape.edge if shape.rises else None
    first_tenth = float(shape.rates[0]) * (float(rate[-1]) / float(shape.rates[0])) ** 0.1

    flat = shape.drop <= max(DROP_IN_NOISE * shape.noise, SMALLEST_RELATIVE_DROP * abs(shape.start))
    raced = best_of(heats, shape.start, training_steps)
    if raced is not None:
        suggestion, moved = raced
        status: Status = "ok" if moved else "edge_only"
        advice = _HEATS_MOVED if moved else _HEATS_DID_NOT_MOVE
    elif edge is not None and edge <= first_tenth:
        return without_number("range_too_short", f"The loss rises from the start: lower start_lr (now {rate[0]:.3g}).")
    elif flat and edge is None:
        if shape.drop > SMALLEST_RELATIVE_DROP * abs(shape.start):
            return without_number(
                "noise", "The loss is noise: try a larger batch, accumulate=, val_data=, or num_steps=300."
            )
        return without_number(
            "no_signal",
            "The loss does not change at any rate: raise end_lr; or the network is too hard to train as initialised "
            "(mxtorch.init.check(net, batch) tells).",
        )
    elif flat and exchanged_loss is not None and _knows_something(shape.start, exchanged_loss):
        return without_number(
            "already_trained",
            f"The network has learnt this already, and its loss only rises, from {edge:.2g} on. To go on training, "
            "set a rate a hundred times lower by hand.",
            edge,
        )
    elif not flat and edge is None and shape.lowest >= shape.rates[-1 - HELD_OUT_WIDTH]:
        return without_number(
            "range_too_short", f"The loss still falls at the highest rate: raise end_lr (now {rate[-1]:.3g})."
        )
    elif flat:
        assert edge is not None
        status = "edge_only"
        suggestion = edge * 10**-BELOW_LONELY_EDGE
        advice = (
            f"The loss falls at no rate and breaks away at {edge:.2g}; the suggestion is a tenth of that and no more "
            "than a guess. mxtorch.init.check(net, batch) tells whether signals vanish; num_steps=500 tries rates."
        )
    else:
        status = "ok"
        suggestion = _from_shape(shape)
        advice = f"The loss falls from {shape.falls_from:.2g} and is lowest at {shape.lowest:.2g}."
    suggestion = min(max(suggestion, float(rate[0])), float(rates_end(rates)))
    suggestions: dict[Use, float] = {
        "constant": suggestion,
        "one_cycle": min(suggestion * ONE_CYCLE_FACTOR, float(rates_end(rates))),
    }
    half = 10 ** HALF_WIDTH["sweep" if raced is None else "heats"]
    return Estimate(
        status,
        advice,
        suggestions=suggestions,
        intervals={use: (value / half, value * half) for use, value in suggestions.items()},
        bounds=(min(shape.falls_from, shape.lowest / 4), shape.lowest) if not flat else None,
        edge=edge,
        smoothed=smoothed,
    )


def rates_end(rates: Sequence[float]) -> float:
    """The highest rate that was asked for."""
    return max(rates)


def _held_out_curve(held_out: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rates and losses in the order of the rates; None where there are too few to be read."""
    points = sorted(point for point in held_out if math.isfinite(point[0]) and not math.isnan(point[1]))
    if len(points) < FEWEST_HELD_OUT or not math.isfinite(points[0][1]):
        return None
    rates, losses = np.array(points, dtype=np.float64).T
    return rates, losses


def _ending_at_edge(shape: Valley) -> Valley:
    from dataclasses import replace

    return replace(shape, rises=True, edge=float(shape.rates[-1]))


def _from_shape(shape: Valley) -> float:
    """A rate from where the loss falls, is lowest, and breaks away."""
    near_edge = max(
        min(shape.edge * 10**-BELOW_EDGE, shape.mostly_fallen * 10**ABOVE_FALL),
        shape.half_way,
    )
    gap = math.log10(shape.edge / shape.mostly_fallen)
    share = min(max((gap - GAP_OF_EDGE) / (GAP_OF_FLOOR - GAP_OF_EDGE), 0.0), 1.0)
    return float(near_edge ** (1 - share) * min(near_edge, shape.half_way) ** share)


def _knows_something(loss: float, exchanged: float) -> bool:
    return exchanged - loss > KNOWS_SOMETHING * abs(exchanged)
