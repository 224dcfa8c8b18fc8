"""What a curve of losses over rates shows: where it falls, where it is lowest, where it breaks away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mxtorch.lr_finder.numbers import SWEEP

Floats = NDArray[np.float64]

SMALLEST_RATE_STEP = 1e-9  # in the logarithm


@dataclass(frozen=True)
class Valley:
    """The shape of a curve, up to its edge.

    Attributes:
        rates: The rates of the curve.
        smoothed: The running median of its losses.
        start: The loss at rates too low to change anything.
        noise: The standard deviation of a loss around the smoothed curve.
        quiet_noise: The same around `start`, at rates too low to change anything: larger, where a few batches come over
            and over.
        drop: How far the loss falls below `start`.
        falls_from: The rate from which it stays below a tenth of the drop.
        half_way: The same for half of the drop.
        mostly_fallen: The first rate where 70% of the drop is reached. Unlike the lowest point it is not moved far by
            a late dip.
        lowest: The rate of the lowest point.
        edge: The rate where the loss stands clearly above its lowest point, or the last one of the curve.
        rises: Whether it does so within the curve.
    """

    rates: Floats
    smoothed: Floats
    start: float
    noise: float
    quiet_noise: float
    drop: float
    falls_from: float
    half_way: float
    mostly_fallen: float
    lowest: float
    edge: float
    rises: bool


def valley(rates: Floats, losses: Floats, *, width: int) -> Valley:
    """Read a curve from the left, up to where it breaks away.

    Beyond the edge a loss may fall once more by chance, which is why the lowest point is looked for below it.

    Args:
        rates: Rising.
        losses: Finite but for the last ones: from the first that is infinite on, the curve has broken away.
        width: Of the running median, in points.
    """
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    smoothed = running_median(losses[:count], width)
    quiet = max(2, count // 8)
    start = float(np.median(smoothed[:quiet]))
    noise = _deviation(losses[:count] - smoothed)
    lowest, edge = 0, count - 1
    rises = count < len(losses)
    values = smoothed.tolist()
    for index, value in enumerate(values):
        if value < min(values[lowest], start):
            lowest = index
        bottom = min(values[lowest], start)
        rise = max(SWEEP.rise_of_drop * (start - bottom), SWEEP.rise_of_start * abs(start), SWEEP.rise_of_noise * noise)
        if index > 0 and min(values[index : index + 2]) > bottom + rise:
            edge, rises = index, True
            break
    drop = max(start - values[lowest], 0.0)
    return Valley(
        rates[:count],
        smoothed,
        start,
        noise,
        _deviation(losses[:quiet] - start),
        drop,
        _first_below(rates, smoothed, start - 0.1 * drop, lowest),
        _first_below(rates, smoothed, start - 0.5 * drop, lowest),
        float(rates[int(np.argmax(smoothed[: lowest + 1] <= start - SWEEP.mostly * drop)) if drop > 0 else lowest]),
        float(rates[lowest]),
        float(rates[edge]),
        rises,
    )


def _deviation(residuals: Floats) -> float:
    """The standard deviation, from the median of what is left, which outliers do not move."""
    return 1.4826 * float(np.median(np.abs(residuals)))


def running_median(values: Floats, width: int = SWEEP.training_width) -> Floats:
    """The median of `width` neighbours; near the right end of as many as there are on both sides.

    The first values, which hardly differ but by noise, get all neighbours that there are: one of them alone, if low,
    would look like the lowest point.
    """
    half = width // 2
    count = len(values)
    result = np.empty_like(values)
    if count >= width:
        result[half : count - half] = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    for index in {*range(min(half, count)), *range(max(count - half, 0), count)}:
        reach = min(half, count - 1 - index)
        result[index] = np.median(values[max(index - reach, 0) : index + reach + 1])
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


def _first_below(rates: Floats, smoothed: Floats, level: float, lowest: int) -> float:
    """The rate from which the curve stays below `level` until its lowest point."""
    above = np.flatnonzero(smoothed[: lowest + 1] > level)
    return float(rates[min(int(above[-1]) + 1, lowest)] if len(above) else rates[0])
