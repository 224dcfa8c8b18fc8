"""The picture of a range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mxtorch.lr_finder.result import LRFinderResult


def plot_curve(result: LRFinderResult, axes: Axes | None = None) -> Axes:
    """Draw the loss over the rate; see `LRFinderResult.plot`."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(7, 4.2))
    axes.plot(result.rates, result.losses, color="#9db4c0", linewidth=1, label="loss")
    axes.plot(
        result.rates[: len(result.smoothed)],
        result.smoothed,
        color="#1f4e79",
        linewidth=2,
        label="median of 7",
    )
    if result.suggestion is not None and result.interval is not None:
        axes.axvspan(*result.interval, color="#e07a1f", alpha=0.15, linewidth=0, label="likely range")
        label = f"suggestion {result.suggestion:.1e}"
        axes.axvline(result.suggestion, color="#e07a1f", linewidth=1.8, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(f"Learning-rate range test: {result.status.replace('_', ' ')}", loc="left", fontsize=11)
    if result.smoothed:
        # A diverged tail would squeeze the part that is of interest into a line.
        low, start = min(result.smoothed), float(np.median(result.smoothed[:5]))
        span = max(start - low, 0.05 * abs(start), 1e-12)
        axes.set_ylim(low - 0.35 * span, max(start + 0.8 * span, low + span))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    return axes
