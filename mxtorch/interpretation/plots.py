"""Pictures of an interpretation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mxtorch.interpretation.result import Interpretation

BLUE, PALE, ORANGE, RED, GREEN = "#1f4e79", "#9db4c0", "#e07a1f", "#c0272d", "#2a7f3f"
# More classes than these have neither numbers in their cells nor names that could be read.
MOST_NUMBERED, MOST_NAMED = 15, 60
LONGEST_NAME = 24


def confusion(result: Interpretation, axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_confusion`."""
    count = len(result.classes)
    axes = _new((max(4.0, min(12.0, 1.8 + 0.45 * count)),) * 2) if axes is None else axes
    counts = result.confusion.double()
    parts = counts / counts.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(parts.numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= MOST_NUMBERED:
        for true, predicted in np.ndindex(count, count):
            if number := int(counts[true, predicted]):
                colour = "white" if parts[true, predicted] > 0.55 else "black"
                axes.text(predicted, true, str(number), ha="center", va="center", color=colour, fontsize=8)
    if count <= MOST_NAMED:
        names = [_short(name) for name in result.classes]
        size = 9 if count <= MOST_NUMBERED else 6
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion, accuracy {result.accuracy:.3f}", loc="left", fontsize=11)
    return axes


def per_class(result: Interpretation, axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_per_class`."""
    rows = sorted((row for row in result.per_class() if row["samples"]), key=lambda row: row["f1"])[:MOST_NAMED]
    axes = _new((6, max(2.5, 0.9 + 0.28 * len(rows)))) if axes is None else axes
    places = np.arange(len(rows))[::-1]
    axes.hlines(places, 0, 1, color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.scatter([row["precision"] for row in rows], places, color=ORANGE, s=28, label="precision", clip_on=False)
    # A ring, so that both are seen where they agree.
    recalls = [row["recall"] for row in rows]
    axes.scatter(
        recalls, places, s=62, facecolors="none", edgecolors=BLUE, linewidths=1.6, label="recall", clip_on=False
    )
    axes.set_yticks(places, [f"{_short(row['class'])} ({row['samples']})" for row in rows], fontsize=8)
    lowest = min([value for row in rows for value in (row["precision"], row["recall"]) if not math.isnan(value)] + [1])
    axes.set_xlim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_title("Precision and recall, the worst first", loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    return axes


def calibration(result: Interpretation, axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_calibration`."""
    axes = _new((4.6, 4.6)) if axes is None else axes
    rows = result.calibration()
    total = sum(row["samples"] for row in rows)
    axes.bar(
        [(row["low"] + row["high"]) / 2 for row in rows],
        [row["samples"] / total for row in rows],
        width=0.092,
        color=PALE,
        alpha=0.6,
        label="part of the samples",
    )
    axes.plot([0, 1], [0, 1], color="#808080", linewidth=1, linestyle=":")
    axes.plot(
        [row["probability"] for row in rows],
        [row["accuracy"] for row in rows],
        color=BLUE,
        marker="o",
        label="accuracy",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="predicted probability")
    axes.set_aspect("equal")
    axes.set_title(f"Calibration, error {result.calibration_error:.3f}", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return axes


def top_losses(result: Interpretation) -> Figure:
    """See `Interpretation.plot_top_losses`."""
    if not result.pictures:
        raise ValueError("pictures: there are none; interpret keeps them where inputs are [N, 1 or 3, H, W]")
    from matplotlib.figure import Figure

    columns = min(4, len(result.pictures))
    rows = math.ceil(len(result.pictures) / columns)
    figure = Figure(figsize=(2.6 * columns, 3.1 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    predictions = result.predictions
    for panel, (index, picture) in zip(panels, result.pictures.items(), strict=False):
        target, guess = int(result.targets[index]), int(predictions[index])
        sure = float(result.probabilities[index, guess])
        panel.imshow(_displayable(picture), cmap="gray")
        colour = GREEN if target == guess else RED
        title = f"{_short(result.classes[guess])} {sure:.0%}\n"
        title += "right" if target == guess else f"is {_short(result.classes[target])}"
        panel.set_title(title, fontsize=9, color=colour)
        panel.set_xlabel(f"loss {float(result.losses[index]):.2f}", fontsize=8)
        for spine in panel.spines.values():
            spine.set(color=colour, linewidth=2)
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(result.pictures) :]:
        panel.axis("off")
    return figure


def overview(result: Interpretation) -> Figure:
    """See `Interpretation.plot`."""
    from matplotlib.figure import Figure

    side = max(4.5, min(10.0, 2 + 0.4 * len(result.classes)))
    figure = Figure(figsize=(2 * side + 4.6, side), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[side, side, 4.6])
    confusion(result, left)
    per_class(result, middle)
    calibration(result, right)
    return figure


def _displayable(picture: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A normalised picture [C, H, W] as [H, W, C] from 0 to 1: its own darkest and brightest values are the ends."""
    values = picture.double()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    if picture.is_floating_point() and float(values.min()) >= 0 and float(values.max()) <= 1:
        low, high = low * 0, high * 0 + 1
    shown = ((values - low) / (high - low).clamp_min(1e-9)).permute(1, 2, 0)
    return shown[..., 0].numpy() if shown.shape[2] == 1 else shown.numpy()


def _short(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _new(size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]
