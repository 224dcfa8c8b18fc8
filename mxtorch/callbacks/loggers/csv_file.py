"""Figures in a file of comma-separated values."""

from __future__ import annotations

import csv
import itertools
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxtorch._checks import local_path
from mxtorch.callbacks.loggers.base import Logger
from mxtorch.checkpointing.file import atomic_text
from mxtorch.training.callback import current_run
from mxtorch.training.trainer_view import TrainerView


class CSVLogger(Logger):
    """Writes the figures of a run into a CSV file, one line for each event, and its settings into a JSON file.

    The first column is `step`; a figure that an event does not have is left empty. Lines are written at once, so that
    the file can be read, or plotted, while the run goes on. A run that is resumed goes on in its file, after the lines
    that were there when the checkpoint was written. Both the checkpoint and the JSON file have a random `identity`, by
    which the run knows its file. Where `fit(resume="auto")` finds no checkpoint, as after a run that was killed before
    its first one, a file that is there is set aside as `.aside`, and a line says so.

    Args:
        path: The file, as `"runs/dogs.csv"`. Its folder is created. A file of another run is not written over.

    Raises:
        ValueError: From `fit`: the file can't be written, or belongs to another run.

    Example:
        >>> CSVLogger("runs/dogs.csv").path.name
        'dogs.csv'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path, "path")
        self._columns: list[str] = []
        self._lines = 0

    def start(self, settings: Mapping[str, Any], identity: str | None, step: int) -> str:
        """Open the file; lines that were written after the checkpoint are dropped."""
        rows: list[dict[str, str]] = []
        companion = self.path.with_suffix(".json")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                if identity is None or identity != self._identity_in(companion):
                    raise ValueError(
                        f"path: {str(self.path)!r} has the figures of another run; give another path, or delete it"
                    )
                with self.path.open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))[: self._lines]
            identity = identity or secrets.token_hex(8)
            with atomic_text(companion) as file:
                json.dump({**settings, "identity": identity}, file, indent=2)
        except OSError as error:
            raise ValueError(f"path: {str(self.path)!r} can't be written ({error}); give another one") from error
        self._columns, self._lines = list(rows[0]) if rows else ["step"], len(rows)
        self._rewrite(rows)
        return identity

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Start with the first epoch; a run that was to go on, and has no checkpoint, begins a file."""
        if self.identity is None and trainer.engine.is_main and current_run(trainer).resumes:
            self._set_aside(reports=trainer.progress)
        super().on_epoch_start(trainer)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write a line; the file is written anew where there is a figure that no line had."""
        row: dict[str, Any] = {**figures, "step": step}
        new = [name for name in row if name not in self._columns]
        if new:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:  # no file stays open between two lines
            csv.DictWriter(file, self._columns, restval="").writerow(row)
        self._lines += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of lines as well."""
        return {**super().state_dict(), "lines": self._lines} if self.identity is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after these lines.

        Raises:
            ValueError: The state is malformed.
        """
        lines = state["lines"]
        if type(lines) is not int or lines < 0:
            raise ValueError(f"the number of its lines is {lines!r}")
        super().load_state_dict(state)
        self.close()
        self._lines = lines

    def __getstate__(self) -> dict[str, Any]:
        """Without the lines, which belong to the run of this process."""
        return super().__getstate__() | {"_lines": 0}

    def _identity_in(self, companion: Path) -> Any:
        """The identity of the run whose figures the file has; None where the JSON file beside it does not tell."""
        if not companion.exists():
            return None
        try:
            settings = json.loads(companion.read_text(encoding="utf-8"))
        except ValueError:
            return None
        # The first release took the name of the file.
        return settings.get("identity", self.path.name) if isinstance(settings, dict) else None

    def _set_aside(self, *, reports: bool) -> None:
        """Give the file that is there, and the JSON file beside it, names that are free."""
        if not (self.path.exists() and self.path.stat().st_size):
            return
        names = (f".aside{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
        ending = next(name for name in names if not self.path.with_name(self.path.name + name).exists())
        for path in (self.path, self.path.with_suffix(".json")):
            if path.exists():
                os.replace(path, path.with_name(path.name + ending))
        if reports:
            aside = self.path.with_name(self.path.name + ending)
            print(f"path: {self.path} had figures from which no checkpoint goes on; they are now in {aside}")

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_text(self.path) as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
