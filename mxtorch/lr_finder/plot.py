"""The picture of a search: the range test's curves, the heats, the suggestion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mxtorch.lr_finder.result import LRFinderResult
    from mxtorch.lr_finder.trials import Use

# Blue for what was trained on, green for what was not, orange for what is said.
TRAINING, SMOOTHED, HELD_OUT, HEATS, SUGGESTION = "#c3d3dd", "#5b8db3", "#12664f", "#9b2c5f", "#e07a1f"


def plot_curve(result: LRFinderResult, axes: Axes | None = None) -> Axes:
    """Draw the losses over the rate; see `LRFinderResult.plot`."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(7, 4.2), layout="tight")
    axes.plot(result.rates, result.losses, color=TRAINING, linewidth=1, label="training loss")
    smoothed_rates = result.rates[: len(result.smoothed)]
    axes.plot(smoothed_rates, result.smoothed, color=SMOOTHED, linewidth=1.4, label="its median of 7")
    held_out = [point for point in result.held_out if math.isfinite(point[1])]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), "o-", color=HELD_OUT, markersize=3.5, linewidth=1.8, label="held-out loss"
        )
    _draw_heats(axes, result)
    if result.suggestion is not None and result.interval is not None:
        axes.axvspan(*result.interval, color=SUGGESTION, alpha=0.13, linewidth=0, label="likely range")
        label = f"suggestion {result.suggestion:.1e}"
        axes.axvline(result.suggestion, color=SUGGESTION, linewidth=1.8, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(f"Learning rate, {result.use.replace('_', '-')}: {result.status.replace('_', ' ')}", loc="left")
    limits = _limits(result)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.grid(alpha=0.25)
    # Losses start on a plateau at the left and fall from there, heats further still: what is free is above it.
    axes.legend(loc="upper left", fontsize=9, framealpha=0.85, edgecolor="none")
    return axes


def _draw_heats(axes: Axes, result: LRFinderResult) -> None:
    shown: tuple[tuple[Use, str, str], ...] = (
        ("one_cycle", HEATS, "after a one-cycle of {} steps to this peak"),
        ("constant", "white", "after {} steps at this rate"),
    )
    for use, face, label in shown:
        heats = [heat for heat in result.heats if heat.use == use and math.isfinite(heat.loss)]
        if heats:
            axes.scatter(
                [heat.rate for heat in heats],
                [heat.loss for heat in heats],
                marker="D",
                s=34,
                facecolor=face,
                edgecolor=HEATS,
                linewidth=1.3,
                zorder=4,
                label=label.format(heats[0].steps),
            )


def _limits(result: LRFinderResult) -> tuple[float, float] | None:
    """Losses to show: a diverged tail would squeeze the part that is of interest into a line."""
    curve = [loss for _, loss in result.held_out if math.isfinite(loss)] or list(result.smoothed)
    if not curve:
        return None
    start = float(np.median(curve[:5]))
    low = min([*curve, *(heat.loss for heat in result.heats)])
    span = max(start - low, 0.3 * abs(start), 1e-12)  # noise on a flat curve is not to fill the picture
    return start - 1.15 * span, start + 0.95 * span
