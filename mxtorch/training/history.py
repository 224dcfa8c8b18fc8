"""The figures of a run: a row for each epoch, a record for each logging step."""

from __future__ import annotations

import csv
import html
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from mxtorch._checks import local_path
from mxtorch.checkpointing.file import atomic_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# A longer table is printed without its middle, as a table of pandas is. `to_csv` writes all of it.
MOST_ROWS_PRINTED = 60
ROWS_PRINTED_AT_EACH_END = 10


class Records(Sequence[dict[str, float]]):
    """A list of dictionaries of numbers that grows at its end, and costs little for each entry.

    It reads as a list does: `records[0]["train/loss"]`, `records[-1]`, `records[2:5]`, `len(records)`, `for record in
    records`, `records == [...]`. The numbers are float64 in one array, so that a million records go into a checkpoint
    at the speed of the memory. Each dictionary that is read is made anew: changing it does not change the records.

    Args:
        records: What to begin with.

    Example:
        >>> records = Records([{"step": 50, "train/loss": 0.7}])
        >>> records.append({"step": 100, "train/loss": 0.5, "gradient_norm": 2})
        >>> records[-1]["train/loss"]
        0.5
        >>> records.column("gradient_norm")
        array([nan,  2.])
    """

    def __init__(self, records: Iterable[Mapping[str, float]] = ()) -> None:
        self._names: dict[str, int] = {}  # the columns of the two arrays, in the order of their first appearance
        self._length = 0
        # Rows beyond the length are room for later records. Rows before it never change, so a view of them is a copy.
        self._values = np.empty((0, 0))
        self._present = np.ones((0, 0), dtype=np.bool_)  # False where a record does not have the figure
        self._row = ""  # its format, for struct
        for record in records:
            self.append(record)

    def append(self, record: Mapping[str, float]) -> None:
        """Add a record.

        Raises:
            TypeError: A value is no number; nothing was added.
        """
        names, length = self._names, self._length
        row = [record.get(name, 0.0) for name in names]
        try:
            if not record.keys() <= names.keys():
                struct.pack(f"{len(record)}d", *record.values())  # raises before a column is added
                self._add_columns(name for name in record if name not in names)
                row = [record.get(name, 0.0) for name in names]
            if length == len(self._values):
                self._make_room()
            # NumPy declares that its arrays are buffers from Python 3.12 on.
            struct.pack_into(self._row, self._values, length * 8 * len(row), *row)  # type: ignore[arg-type]
        except struct.error as error:
            raise TypeError(f"record: got {dict(record)!r}; give numbers ({error})") from None
        if len(record) < len(names):
            self._present[length] = [name in record for name in names]
        self._length += 1

    def column(self, name: str) -> NDArray[np.float64]:
        """One figure of all records, float64 [number of records]; NaN where a record does not have it.

        Raises:
            KeyError: No record has such a figure.
        """
        if name not in self._names:
            raise KeyError(f"{name!r}; there are {', '.join(self._names)}")
        index = self._names[name]
        return np.where(self._present[: self._length, index], self._values[: self._length, index], np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and names, which `torch.load(weights_only=True)` reads. Later records do not change them.

        Returns:
            `names`; `values`, float64 [records, names]; `present`, bool of the same shape, or None where every record
            has every figure. The tensors share the memory of the records: clone them to change them, and to save them
            without the room for later records.
        """
        present = self._present[: self._length]
        return {
            "names": list(self._names),
            "values": torch.from_numpy(self._values[: self._length]),
            "present": None if present.all() else torch.from_numpy(present),
        }

    @classmethod
    def from_state_dict(cls, state_dict: Any) -> Records:
        """What `state_dict` gave; or a list of dictionaries, as the first version of checkpoints has it.

        Raises:
            ValueError: It is malformed.
        """
        if isinstance(state_dict, list):
            return cls(state_dict)
        names, values, present = (state_dict[key] for key in ("names", "values", "present"))
        present = torch.ones(len(values), len(names), dtype=torch.bool) if present is None else present
        well_formed = all(type(name) is str for name in names) and len(set(names)) == len(names)
        for tensor, dtype in ((values, torch.float64), (present, torch.bool)):
            well_formed = well_formed and isinstance(tensor, Tensor) and tensor.dtype == dtype
            # [0] is how a table without rows was once written.
            well_formed = well_formed and tensor.shape in ((len(values), len(names)), (0,))
        if not well_formed:
            raise ValueError(f"the history's figures {names!r} are malformed")
        records = cls()
        if len(values):
            records._add_columns(names)
            records._values, records._present = values.cpu().numpy().copy(), present.cpu().numpy().copy()
            records._length = len(values)
        return records

    @overload
    def __getitem__(self, index: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, float]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, float] | list[dict[str, float]]:
        """A record, or a list of them for a slice."""
        positions = range(self._length)[index]
        return self._record(positions) if isinstance(positions, int) else [self._record(each) for each in positions]

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == len(self) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        last = f", the last is {self[-1]}" if self else ""
        return f"<{len(self)} records{last}>"

    def _record(self, position: int) -> dict[str, float]:
        values, present = self._values[position].tolist(), self._present[position].tolist()
        return {name: value for name, value, there in zip(self._names, values, present, strict=True) if there}

    def _add_columns(self, names: Iterable[str]) -> None:
        """Make room for figures that no record has had."""
        added = list(names)
        self._names |= {name: len(self._names) + index for index, name in enumerate(added)}
        width = ((0, 0), (0, len(added)))
        self._values, self._present = np.pad(self._values, width), np.pad(self._present, width)
        self._present[self._length :] = True
        self._row = f"{len(self._names)}d"

    def _make_room(self) -> None:
        """Make room for half as many records again."""
        rows = ((0, 64 + self._length // 2), (0, 0))
        self._values = np.pad(self._values, rows)
        self._present = np.pad(self._present, rows, constant_values=True)


class History:
    """The figures of a run. Printing it gives a table, of a long run the first and last epochs.

    Attributes:
        rows: A list with one dictionary an epoch: `epoch`, `step`, `train/loss`, `val/loss`, `val/<metric>`,
            `learning_rate`, `samples_per_second`, `seconds`. A callback may add figures to the last one.

    Example:
        >>> history = History()
        >>> history.rows.append({"epoch": 1.0, "train/loss": 0.7, "step": 50.0})
        >>> history.rows.append({"epoch": 2.0, "train/loss": 0.5, "step": 100.0})
        >>> print(history)
        epoch  train/loss  step
            1      0.7000    50
            2      0.5000   100
        >>> history["train/loss"]
        [0.7, 0.5]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._records = Records()

    @property
    def records(self) -> Records:
        """One dictionary for every `log_every` steps.

        Each has `step`, `train/loss`, `learning_rate/<group>`, `gradient_norm`, `samples_per_second`.
        """
        return self._records

    @records.setter
    def records(self, records: Iterable[Mapping[str, float]]) -> None:
        self._records = records if isinstance(records, Records) else Records(records)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[float]:
        """A column of the epochs' table, NaN where an epoch does not have it.

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

    def state_dict(self) -> dict[str, Any]:
        """Rows and records as tensors, names and numbers, which `torch.load(weights_only=True)` reads.

        Later epochs and steps do not change it. The tensors of the records share their memory.
        """
        floats = all(type(value) is float for row in self.rows for value in row.values())
        rows = Records(self.rows).state_dict() if floats else [dict(row) for row in self.rows]
        return {"rows": rows, "records": self.records.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, in place of what is here.

        Raises:
            ValueError: It is malformed; nothing has changed then.
        """
        saved = state_dict["rows"]
        rows = [dict(row) for row in saved] if isinstance(saved, list) else list(Records.from_state_dict(saved))
        self._records = Records.from_state_dict(state_dict["records"])
        self.rows = rows

    def __str__(self) -> str:
        if not self.rows:
            return "History: no epochs yet"
        lines = self._printed_cells()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = ([html.escape(cell) for cell in line] for line in self._printed_cells())
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body)
        return "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + f"</tr>{rows}</table>"

    def _printed_cells(self) -> list[list[str]]:
        """The names of the columns, then the rows as text, those in the middle of a long table left out."""
        columns = self.columns
        if len(self.rows) <= MOST_ROWS_PRINTED:
            return [columns, *(_cells(columns, row) for row in self.rows)]
        first, last = self.rows[:ROWS_PRINTED_AT_EACH_END], self.rows[-ROWS_PRINTED_AT_EACH_END:]
        ellipsis = ["…"] * len(columns)
        return [
            columns,
            *(_cells(columns, row) for row in first),
            ellipsis,
            *(_cells(columns, row) for row in last),
        ]

    def to_csv(self, path: str | Path) -> None:
        """Write the table of all epochs.

        Args:
            path: The file; an older one is replaced.
        """
        with atomic_text(local_path(path, "path")) as file:
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
        trained = [record for record in self.records if "train/loss" in record]  # others are of a validation
        if trained:
            steps = [record["step"] for record in trained]
            loss.plot(steps, [record["train/loss"] for record in trained], color="#9db4c0", label="train/loss")
            first = next(name for name in trained[0] if name.startswith("learning_rate/"))
            rate.plot(steps, [record[first] for record in trained], color="#e07a1f")
        epoch_ends = [row["step"] for row in self.rows]
        for name in self.columns:
            if name.startswith("val/") and name.endswith("/loss"):
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


def _cells(columns: list[str], row: dict[str, float]) -> list[str]:
    return [_format(name, row.get(name)) for name in columns]


def _format(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("epoch", "step"):
        return str(int(value))
    if name == "learning_rate":
        return f"{value:.2e}"
    return f"{value:.1f}" if name in ("seconds", "samples_per_second") else f"{value:.4f}"
