"""Progress in a terminal, a notebook, or a log file."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView


class ProgressBar(Callback):
    """A bar for each epoch (loss, rate, samples/s, the last epoch's metrics) and a line for each finished one.

    Where the output is neither a terminal nor a notebook, the lines alone are printed.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._metrics: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """All but the bar, which belongs to this process's terminal."""
        return vars(self) | {"_bar": None}

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Open the bar."""
        run = current_run(trainer)
        self._bar = progress_bar(run.steps_per_epoch, f"epoch {run.epoch + 1}/{run.epochs}")

    def on_step(self, trainer: TrainerView) -> None:
        """Advance."""
        self._bar.update(1)

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Show the newest figures."""
        self._bar.set_postfix_str(summary({**record, **self._metrics}), refresh=False)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Show the figures of a validation within the epoch."""
        self._metrics = dict(figures)
        self._bar.set_postfix_str(summary(figures), refresh=False)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Print the epoch's line."""
        self._bar.close()
        self._metrics = {name: value for name, value in row.items() if "/" in name and name != "train/loss"}
        run = current_run(trainer)
        self._bar.write(f"epoch {run.epoch + 1}/{run.epochs}  {summary(row)}")

    def on_epoch_end(self, trainer: TrainerView) -> None:
        """Close the bar, also when the epoch was broken off."""
        if self._bar is not None:
            self._bar.close()


def progress_bar(total: int | None, description: str) -> Any:
    """A tqdm bar on standard error: for terminals and notebooks; silent elsewhere."""
    from tqdm.auto import tqdm

    notebook = "ipykernel" in sys.modules
    return tqdm(total=total, desc=description, leave=False, disable=False if notebook else None, unit="step")


def summary(values: Mapping[str, float]) -> str:
    """Figures in one line: `train/loss 0.312  val/accuracy 0.941  lr 1.2e-03  812 samples/s`."""
    parts = []
    for name, value in values.items():
        if name.startswith("learning_rate"):
            if name.endswith(("learning_rate", "/group0")):
                parts.append(f"lr {value:.1e}")
        elif name == "samples_per_second":
            parts.append(f"{value:.0f} samples/s")
        elif name == "seconds":
            parts.append(f"{value:.1f} s")
        elif name not in ("epoch", "step", "gradient_norm") and not math.isnan(value):
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)
