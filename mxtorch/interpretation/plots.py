"""The plots of an `Interpretation`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

BLUE, PALE, ORANGE, RED, GREEN = "#1f4e79", "#9db4c0", "#e07a1f", "#c0272d", "#2a7f3f"
# The largest numbers of classes for which numbers fit into the cells, and names next to the axes.
MOST_NUMBERED, MOST_NAMED = 15, 60
LONGEST_NAME = 24


def confusion(counts: Tensor, classes: Sequence[str], accuracy: float, axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_confusion`."""
    count = len(classes)
    axes = _new((max(4.0, min(12.0, 1.8 + 0.45 * count)),) * 2) if axes is None else axes
    counts = counts.double()
    parts = counts / counts.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(parts.numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= MOST_NUMBERED:
        for true, predicted in np.ndindex(count, count):
            if number := int(counts[true, predicted]):
                colour = "white" if parts[true, predicted] > 0.55 else "black"
                axes.text(predicted, true, str(number), ha="center", va="center", color=colour, fontsize=8)
    if count <= MOST_NAMED:
        names = [_short(name) for name in classes]
        size = 9 if count <= MOST_NUMBERED else 6
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion, accuracy {accuracy:.3f}", loc="left", fontsize=11)
    return axes


def per_class(rows: Sequence[Row], axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_per_class`."""
    rows = rows[:MOST_NAMED]
    axes = _new((6, max(2.5, 0.9 + 0.28 * len(rows)))) if axes is None else axes
    places = np.arange(len(rows))[::-1]
    axes.hlines(places, 0, 1, color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.scatter([row["precision"] for row in rows], places, color=ORANGE, s=28, label="precision", clip_on=False)
    # Recall is drawn as rings, so that both figures are visible if precision equals recall.
    recalls = [row["recall"] for row in rows]
    axes.scatter(
        recalls, places, s=62, facecolors="none", edgecolors=BLUE, linewidths=1.6, label="recall", clip_on=False
    )
    axes.set_yticks(places, [f"{_short(row['class'])} ({row['samples']})" for row in rows], fontsize=8)
    lowest = min([value for row in rows for value in (row["precision"], row["recall"]) if not math.isnan(value)] + [1])
    axes.set_xlim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_title("Precision and recall, the lowest F1 first", loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    return axes


def calibration(rows: Sequence[Row], error: float, axes: Axes | None = None) -> Axes:
    """See `Interpretation.plot_calibration`."""
    axes = _new((4.6, 4.6)) if axes is None else axes
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
    axes.set_title(f"Calibration, error {error:.3f}", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return axes


def top_losses(rows: Sequence[Row], pictures: Mapping[int, Tensor]) -> Figure:
    """See `Interpretation.plot_top_losses`."""
    if not pictures:
        raise ValueError("pictures: got none; interpret keeps them if inputs are [N, 1 or 3, H, W]")
    from matplotlib.figure import Figure

    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(2.6 * columns, 3.1 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for panel, row in zip(panels, rows, strict=False):
        right = row["true"] == row["predicted"]
        panel.imshow(_displayable(pictures[row["sample"]]), cmap="gray")
        title = f"{_short(row['predicted'])} {row['probability']:.0%}\n"
        title += "right" if right else f"is {_short(row['true'])}"
        colour = GREEN if right else RED
        panel.set_title(title, fontsize=9, color=colour)
        panel.set_xlabel(f"loss {row['loss']:.2f}", fontsize=8)
        for spine in panel.spines.values():
            spine.set(color=colour, linewidth=2)
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(rows) :]:
        panel.axis("off")
    return figure


def overview(classes: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with three axes: confusion matrix of `classes` classes, precision and recall, calibration."""
    from matplotlib.figure import Figure

    side = max(4.5, min(10.0, 2 + 0.4 * classes))
    figure = Figure(figsize=(2 * side + 4.6, side), layout="constrained")
    return figure, figure.subplots(1, 3, width_ratios=[side, side, 4.6])


def _displayable(picture: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A picture [C, H, W] as an array [H, W, C] from 0 to 1. The range of a normalised picture is stretched to this."""
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
