"""The picture of a search: the short trainings, or the curves of a range test; and the suggestion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mxtorch.lr_finder.range_test import Sweep
from mxtorch.lr_finder.suggestion import Reading
from mxtorch.lr_finder.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue for what was trained on, green for what was not, orange for the suggestion; rungs from light to dark.
TRAINING, SMOOTHED, HELD_OUT, SUGGESTION = "#c3d3dd", "#5b8db3", "#12664f", "#e07a1f"
RUNGS = ("#d9b8c9", "#bb6c94", "#9b2c5f")


def plot_search(axes: Axes | None, *, title: str, reading: Reading, trials: Sequence[Trial], sweep: Sweep) -> Axes:
    """Draw a search; see `LRFinderResult.plot`."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(7, 4.2), layout="tight")
    _draw_trials(axes, trials)
    _draw_sweep(axes, sweep, reading.smoothed)
    if reading.suggestion is not None and reading.interval is not None:
        axes.axvspan(*reading.interval, color=SUGGESTION, alpha=0.13, linewidth=0, label="likely range")
        axes.axvline(reading.suggestion, color=SUGGESTION, linewidth=1.8, label=f"suggestion {reading.suggestion:.1e}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left")
    limits = _limits(trials, sweep, reading.smoothed)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:  # below the axes, where it covers no curve
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=9, frameon=False, handlelength=1.6
        )
    return axes


def _draw_trials(axes: Axes, trials: Sequence[Trial]) -> None:
    if not trials:
        return
    axes.axhline(trials[-1].loss_before, color="#888888", linewidth=1, linestyle=":", label="loss before training")
    for rung in sorted({trial.rung for trial in trials}):
        shown = sorted((t.rate, t.loss) for t in trials if t.rung == rung and math.isfinite(t.loss))
        steps = next(trial.steps for trial in trials if trial.rung == rung)
        if shown:
            color = RUNGS[min(rung, len(RUNGS) - 1)]
            axes.plot(
                *zip(*shown, strict=True), "D-", color=color, markersize=5, linewidth=1.2, label=f"after {steps} steps"
            )


def _draw_sweep(axes: Axes, sweep: Sweep, smoothed: Sequence[float]) -> None:
    if not sweep.rates:
        return
    axes.plot(sweep.rates, sweep.losses, color=TRAINING, linewidth=1, label="training loss")
    axes.plot(sweep.rates[: len(smoothed)], smoothed, color=SMOOTHED, linewidth=1.4, label="its median of 7")
    held_out = [point for point in sweep.held_out if math.isfinite(point[1])]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), "o-", color=HELD_OUT, markersize=3.5, linewidth=1.8, label="held-out loss"
        )


def _limits(trials: Sequence[Trial], sweep: Sweep, smoothed: Sequence[float]) -> tuple[float, float] | None:
    """Losses to show: a diverged end would squeeze the part that is of interest into a line."""
    if trials:
        start, low = trials[-1].loss_before, min(trial.loss for trial in trials)
    else:
        curve = [loss for _, loss in sweep.held_out if math.isfinite(loss)] or list(smoothed)
        if not curve:
            return None
        start, low = float(np.median(curve[:5])), min([*curve, *(loss for loss in smoothed if math.isfinite(loss))])
    if not (math.isfinite(start) and math.isfinite(low)):
        return None
    span = max(start - low, 0.3 * abs(start), 1e-12)  # noise on a flat curve is not to fill the picture
    return min(start, low) - 0.15 * span if low < start else start - 1.15 * span, start + 0.5 * span
