"""The range test: train at rising rates and record the losses (Smith 2015, arXiv 1506.01186, sec. 3.3)."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from mxtorch.optim import momentum
from mxtorch.optim.scheduled import set_group_rate

# The gradient scaler of fp16 starts at 2**16 and halves at each overflow. More skips in a row mean a real fault.
MOST_SKIPS_IN_A_ROW = 40
# The median of this many losses decides on divergence, so that one bad batch does not end the sweep.
DIVERGENCE_WINDOW = 5
# The noise is the median difference of neighbouring losses among this many.
NOISE_WINDOW = 50


# Steps between two measurements of the held-out loss: before and after it has moved by this share of its first value.
RESTING_INTERVAL = 8
MOVING_INTERVAL = 3
MOVEMENT = 0.005
# This many held-out losses in a row far above the first one end the sweep.
RISEN_IN_A_ROW = 3


class Sweep(NamedTuple):
    """The record of a range test: a rate and a loss for each optimizer step, and the reason why it ended.

    Attributes:
        rates: The rate of each step.
        losses: The training loss of each step, before the step was taken.
        stop_reason: `completed`, `diverged`, `non_finite` or `overflow`.
        held_out: Pairs of a rate and the held-out loss after the step at that rate. The last loss may be infinite.
            Empty if no samples were held out.
    """

    rates: list[float]
    losses: list[float]
    stop_reason: str
    held_out: list[tuple[float, float]]


def geometric_rates(start: float, end: float, count: int) -> list[float]:
    """Return `count` rates from `start` to `end`, evenly spaced in their logarithm."""
    return [start * (end / start) ** (index / (count - 1)) for index in range(count)]


def range_test(
    take_step: Callable[[Any], tuple[Callable[[], float] | None, bool]],
    windows: Callable[[], Iterable[Any]],
    set_rate: RateSetter,
    rates: list[float],
    *,
    probe: Callable[[], Callable[[], float]] | None = None,
    read_lag: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Sweep:
    """Take one optimizer step at each rate.

    The rates are those of the first parameter group; the other groups keep their ratios to it. If fp16 skips a step,
    the step is repeated at the same rate. The caller restores what the steps change.

    Args:
        take_step: Takes a step on a window of batches. It returns a function that reads the loss, or None without a
            loss, and whether the step was taken.
        windows: Opens a pass over the data; called again when the pass ends.
        set_rate: Sets the rate of the next step; see `rate_setter`.
        rates: The rates, rising.
        probe: Measures the held-out loss and returns a function that reads it. It is called before the first step, then
            every few steps, more often once the loss moves.
        read_lag: Each loss is read this many steps late, so that the test does not wait for an accelerator.
        on_step: Called with the step and its loss, for a progress bar.
    """
    unread: deque[Callable[[], float]] = deque()
    losses: list[float] = []
    watch = DivergenceWatch()
    held_out = HeldOutWatch(probe)
    batches = endless(windows)
    skipped = 0
    stop_reason = "completed"

    def read(until: int) -> bool:
        nonlocal stop_reason
        while len(unread) > until:
            loss = unread.popleft()()
            if not math.isfinite(loss):
                stop_reason = "non_finite"
                return False
            losses.append(loss)
            if on_step is not None:
                on_step(len(losses), loss)
            if watch.has_diverged(loss):
                stop_reason = "diverged"
                return False
        return True

    for step, rate in enumerate(rates):
        window = next(batches)  # before the first look at held-out data, which may come from the same loader
        if step == 0:
            held_out.look(rate, 0)
        set_rate(rate)
        read_loss, taken = take_step(window)
        while not taken and skipped < MOST_SKIPS_IN_A_ROW:
            skipped += 1
            read_loss, taken = take_step(next(batches))
        if not taken or read_loss is None:
            stop_reason = "overflow"
            break
        skipped = 0
        unread.append(read_loss)
        if not read(until=read_lag):
            break
        held_out.look(rate, step + 1)
        if held_out.read(until=read_lag // 2):
            stop_reason = "diverged"
            break
    if stop_reason in ("completed", "overflow"):
        read(until=0)
    held_out.read(until=0)
    batches.close()  # ends the loader's workers now, and not when the garbage collector runs
    return Sweep(rates[: len(losses)], losses, stop_reason, held_out.points)


class RateSetter(Protocol):
    """A function that sets the rate and the momentum of the next step. With None, groups keep their momentum."""

    def __call__(self, rate: float, momentum_now: float | None = None, /) -> None:
        """Set the rate and the momentum."""


def rate_setter(groups: Sequence[dict[str, Any]], bases: Sequence[float]) -> RateSetter:
    """Return a function that sets the first group's rate, and its momentum if a schedule cycles the momentum.

    The other groups keep their ratios to the first one.

    Args:
        groups: Parameter groups of an optimizer, whose `"lr"` is set.
        bases: The rate of each group, from which the ratios follow.
    """
    ratios = [base / bases[0] for base in bases]

    def set_rate(rate: float, momentum_now: float | None = None, /) -> None:
        for group, ratio in zip(groups, ratios, strict=True):
            set_group_rate(group, rate * ratio)
        momentum.apply(groups, momentum_now)

    return set_rate


class HeldOutWatch:
    """Measures the held-out loss every few steps, and detects that it has risen for good."""

    def __init__(self, probe: Callable[[], Callable[[], float]] | None) -> None:
        self.points: list[tuple[float, float]] = []
        self._probe = probe
        self._unread: deque[tuple[float, Callable[[], float]]] = deque()
        self._next_step = 0
        self._moves = False
        self._lowest = math.inf
        self._risen = 0

    def look(self, rate: float, step: int) -> None:
        """Measure after a step, if a measurement is due."""
        if self._probe is not None and step >= self._next_step:
            self._unread.append((rate, self._probe()))
            self._next_step = step + (MOVING_INTERVAL if self._moves else RESTING_INTERVAL)

    def read(self, until: int) -> bool:
        """Read the losses except the last `until`; return whether they are far above the first one."""
        while len(self._unread) > until:
            rate, read_loss = self._unread.popleft()
            loss = read_loss()
            self.points.append((rate, loss if math.isfinite(loss) else math.inf))
            first = self.points[0][1]
            self._lowest = min(self._lowest, loss)
            self._moves = self._moves or not abs(loss - first) <= MOVEMENT * abs(first)
            far_above = first + max(0.5 * (first - self._lowest), 0.1 * abs(first))
            self._risen = 0 if loss <= far_above else self._risen + 1
        return self._risen >= RISEN_IN_A_ROW


class DivergenceWatch:
    """Detects that the losses are clearly above their first values.

    A rise is compared with the largest drop so far and with the noise, and not with a multiple of the loss, because
    losses may be negative or near zero. A single spike does not count.
    """

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._start = math.inf
        self._best = math.inf

    def has_diverged(self, loss: float) -> bool:
        """Add the next loss; return whether the losses have diverged."""
        losses = self._losses
        losses.append(loss)
        if loss < self._best:
            self._best = loss
        if len(losses) == DIVERGENCE_WINDOW:
            self._start = statistics.median(losses)
        if loss <= self._start or len(losses) < 2 * DIVERGENCE_WINDOW:
            return False  # most steps end here
        rise = statistics.median(losses[-DIVERGENCE_WINDOW:]) - self._start
        if rise <= 2 * max(self._start - self._best, 0.01 * abs(self._start)):
            return False
        changes = [abs(after - before) for before, after in itertools.pairwise(losses[-NOISE_WINDOW:])]
        return rise > 8 * statistics.median(changes)


def endless(windows: Callable[[], Iterable[Any]]) -> Generator[Any, None, None]:
    """Yield the windows of the data, one pass after another."""
    while True:
        empty = True
        for window in windows():
            empty = False
            yield window
        if empty:
            raise ValueError("train_data: got a loader that yields no batches; give it at least one")
