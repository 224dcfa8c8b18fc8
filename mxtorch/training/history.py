"""What happened, epoch by epoch and step by step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


class History:
    """The figures of a run. Printing it gives a table.

    Attributes:
        rows: One dictionary an epoch: `epoch`, `step`, `train/loss`, `val/loss`, `val/<metric>`, `learning_rate`,
            `samples_per_second`, `seconds`.
        records: One dictionary for every `log_every` steps: `step`, `train/loss`, `learning_rate/<group>`,
            `gradient_norm`, `samples_per_second`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.records: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Both tables, as tensors where all their values are floats."""
        return {"rows": _packed_rows(self.rows), "records": _packed_rows(self.records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.rows, self.records = (_unpacked_rows(state_dict[name]) for name in ("rows", "records"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[float]:
        """A column of the epochs' table.

        Raises:
            KeyError: No epoch has such a figure.
        """
        if not any(name in row for row in self.rows):
            raise KeyError(f"{name!r}; there are {', '.join(self.columns)}")
        return [row.get(name, float("nan")) for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """The names of all figures, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __str__(self) -> str:
        if not self.rows:
            return "History: no epochs yet"
        cells = [
            self.columns,
            *([_format(name, row.get(name)) for name in self.columns] for row in self.rows),
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(self.columns))]
        return "\n".join(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_format(name, row.get(name))}</td>" for name in self.columns) + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"

    def to_csv(self, path: str | Path) -> None:
        """Write the epochs' table."""
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, axes: NDArray[np.object_] | list[Axes] | None = None) -> Any:
        """Draw losses, metrics and the learning rate over the steps.

        Args:
            axes: Three axes to draw into; a new figure when left out.

        Returns:
            The axes.
        """
        if axes is None:
            import matplotlib.pyplot as plt

            _, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="tight")
        loss, metric, rate = axes
        steps = [record["step"] for record in self.records]
        loss.plot(steps, [record["train/loss"] for record in self.records], color="#9db4c0", label="train/loss")
        rate.plot(steps, [record["learning_rate/group0"] for record in self.records], color="#e07a1f")
        epoch_ends = [row["step"] for row in self.rows]
        for name in self.columns:
            if name == "val/loss":
                loss.plot(epoch_ends, self[name], marker="o", color="#1f4e79", label=name)
            elif "/" in name and name != "train/loss":
                metric.plot(epoch_ends, self[name], marker="o", label=name)
        for panel, title in ((loss, "loss"), (metric, "metrics"), (rate, "learning rate")):
            panel.set_title(title, loc="left", fontsize=11)
            panel.set_xlabel("optimizer steps")
            panel.grid(alpha=0.25)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(frameon=False, fontsize=9)
        return axes


def _format(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("epoch", "step"):
        return str(int(value))
    if name == "learning_rate":
        return f"{value:.2e}"
    return f"{value:.1f}" if name in ("seconds", "samples_per_second") else f"{value:.4f}"


def _packed_rows(rows: list[dict[str, Any]]) -> Any:
    """A table of floats as one tensor, which is written much faster than many numbers; other rows as they are."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not all(type(value) is float for row in rows for value in row.values()):
        return rows
    if all(len(row) == len(names) for row in rows):
        present = None
    else:
        present = torch.tensor([[name in row for name in names] for row in rows])
    values = [[row.get(name, 0.0) for name in names] for row in rows]
    return {"names": names, "values": torch.tensor(values, dtype=torch.float64), "present": present}


def _unpacked_rows(packed: Any) -> list[dict[str, Any]]:
    """What `_packed_rows` was given."""
    if isinstance(packed, list):
        return [dict(row) for row in packed]
    names, values = packed["names"], packed["values"].tolist()
    if packed["present"] is None:
        return [dict(zip(names, row, strict=True)) for row in values]
    return [
        {name: value for name, value, there in zip(names, row, flags, strict=True) if there}
        for row, flags in zip(values, packed["present"].tolist(), strict=True)
    ]
