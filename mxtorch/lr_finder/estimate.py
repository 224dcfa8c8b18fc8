"""From the curve of a range test to a learning rate: a pure function of rates and losses.

The curve is smoothed by a running median, which does not lag: an exponential average of 100 points trails by one
to two decades, and with it every rule that is read off it. The lowest point of the smoothed curve marks the end of
useful rates; a use needs a margin below it, a constant rate a larger one than the peak of a one-cycle schedule,
which is held for a moment only. A drop that does not stand out of the noise gives no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Use = Literal["constant", "one_cycle"]
Status = Literal["ok", "no_signal", "range_too_short", "too_few_steps", "not_finite"]

MEDIAN_WIDTH = 7
FEWEST_STEPS = 20
# How far below the minimum of the curve a rate is put, for each use. Measured best on small real tasks.
MARGIN: dict[Use, float] = {"constant": 6.0, "one_cycle": 1.5}
# A running minimum of pure noise drops by about 1.5 of its standard deviations; ask for more than that.
DROP_IN_NOISE = 2.5
SMALLEST_RELATIVE_DROP = 0.01
SMALLEST_RATE_STEP = 1e-9  # in the logarithm


@dataclass(frozen=True)
class Estimate:
    """What a curve says.

    Attributes:
        suggestions: The rate for each use; empty where the evidence carries none.
        intervals: For each use, rates between which the best one is likely to lie.
        status: `ok`, or why there is no suggestion.
        advice: What to do, in a sentence.
        bounds: The min and max of a cyclic schedule: where the loss begins to fall, where it stops (Smith 2015,
            sec. 3.3). None without a suggestion.
        smoothed: The running median of the losses.
    """

    status: Status
    advice: str
    suggestions: dict[Use, float] = field(default_factory=dict)
    intervals: dict[Use, tuple[float, float]] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None
    smoothed: tuple[float, ...] = ()


def estimate(rates: Sequence[float], losses: Sequence[float], *, ended_early: bool = False) -> Estimate:
    """Read a learning rate off the curve of a range test.

    Args:
        rates: The learning rates, rising.
        losses: The training loss at each of them; cut at the first that is not finite.
        ended_early: Whether the sweep was stopped by divergence, so that the curve does reach its edge.
    """
    rate, loss = clean(rates, losses)
    ended_early = ended_early or len(loss) < len(losses)
    if len(loss) < FEWEST_STEPS:
        at_start = ended_early and len(loss) > 0
        return Estimate(
            "range_too_short" if at_start else "not_finite" if len(loss) == 0 and len(losses) else "too_few_steps",
            "The loss broke away almost at once: lower start_lr by a factor of 100."
            if at_start
            else f"Only {len(loss)} usable steps: raise num_steps to 100, and check that the loss is finite.",
            smoothed=tuple(running_median(loss).tolist()),
        )
    smoothed = running_median(loss)
    noise = 1.4826 * float(np.median(np.abs(loss - smoothed)))
    start = max(5, len(smoothed) // 10)
    plateau = float(np.median(smoothed[:start]))
    lowest = int(np.argmin(smoothed))
    drop = plateau - float(smoothed[lowest]) if lowest >= start else 0.0

    def without_number(status: Status, advice: str) -> Estimate:
        return Estimate(status, advice, smoothed=tuple(smoothed.tolist()))

    if drop <= max(DROP_IN_NOISE * noise, SMALLEST_RELATIVE_DROP * abs(plateau)):
        if ended_early and lowest < len(loss) // 5:
            return without_number(
                "range_too_short", f"The loss rises from the start: lower start_lr (now {rate[0]:.3g})."
            )
        return without_number(
            "no_signal",
            "The loss does not fall clearly at any rate. The network may be trained already, too hard to train as "
            "initialised (mxtorch.init.check(net, batch) tells), or the batches too noisy: try a larger batch, "
            "accumulate=, or num_steps=300.",
        )
    if not ended_early and lowest >= len(loss) - MEDIAN_WIDTH // 2 - 1:
        return without_number(
            "range_too_short", f"The loss still falls at the highest rate: raise end_lr (now {rate[-1]:.3g})."
        )
    falls_from = _first_below(rate, smoothed, plateau - 0.1 * drop, lowest)
    half_way = _first_below(rate, smoothed, plateau - 0.5 * drop, lowest)
    edge = float(rate[lowest])
    suggestions: dict[Use, float] = {use: max(edge / margin, float(rate[0])) for use, margin in MARGIN.items()}
    return Estimate(
        "ok",
        f"The loss falls from {falls_from:.2g} and is lowest at {edge:.2g}.",
        suggestions=suggestions,
        intervals={
            use: (min(half_way, suggestion / 3), min(max(edge, suggestion), suggestion * 3))
            for use, suggestion in suggestions.items()
        },
        bounds=(min(falls_from, edge / 4), edge),
        smoothed=tuple(smoothed.tolist()),
    )


def running_median(values: Floats, width: int = MEDIAN_WIDTH) -> Floats:
    """The median of `width` neighbours; at the ends of as many as there are on both sides."""
    half = width // 2
    count = len(values)
    result = np.empty_like(values)
    if count >= width:
        result[half:-half] = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    for index in {*range(min(half, count)), *range(max(count - half, 0), count)}:
        reach = min(half, index, count - 1 - index)
        result[index] = sorted(values[index - reach : index + reach + 1])[reach]
    return result


def clean(rates: Sequence[float], losses: Sequence[float]) -> tuple[Floats, Floats]:
    """The points before the first loss that is not finite, sorted, one a rate."""
    rate = np.asarray(rates, dtype=np.float64)
    loss = np.asarray(losses, dtype=np.float64)
    if rate.shape != loss.shape or rate.ndim != 1:
        raise ValueError(f"rates and losses must be lists of the same length; got {rate.shape} and {loss.shape}")
    if not (np.isfinite(rate).all() and (rate > 0).all()):
        raise ValueError("rates: every rate must be a finite positive number")
    broken = np.flatnonzero(~np.isfinite(loss))
    end = int(broken[0]) if len(broken) else len(loss)
    unique, places = np.unique(rate[:end], return_index=True)
    # Rates that differ in the last digits only would make slopes infinite.
    apart = np.diff(np.log(unique), prepend=-np.inf) > SMALLEST_RATE_STEP
    return unique[apart], loss[:end][places][apart]


def _first_below(rate: Floats, smoothed: Floats, level: float, lowest: int) -> float:
    """The rate from which the curve stays below `level` until its lowest point."""
    above = np.flatnonzero(smoothed[: lowest + 1] > level)
    return float(rate[min(int(above[-1]) + 1, lowest)] if len(above) else rate[0])
