"""Progress in a terminal, a notebook, or a log file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping

from mxtorch.callbacks.bars import Bar, progress_bar
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView

# What stands before the figures in a terminal, description, bar and time, without the digits of the counts.
ROOM_FOR_THE_BAR = 37
FEWEST_COLUMNS = 80


class ProgressBar(Callback):
    """A bar for each epoch (loss, rate, the last epoch's metrics, samples/s) and a line for each finished one.

    Where the output is neither a terminal nor a notebook, there is a line every half minute in place of the bar. In a
    narrow terminal the last figures are left out, so that none is cut in two. A run that ends before its last epoch
    says so.

    Example:
        >>> from mxtorch.callbacks.progress import summary
        >>> summary({"epoch": 2.0, "train/loss": 0.31, "val/accuracy": 0.9412, "learning_rate": 0.01})
        'train/loss 0.31  val/accuracy 0.9412  lr 1.0e-02'
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._metrics: dict[str, float] = {}

    def __getstate__(self) -> dict[str, object]:
        """All but the bar, which belongs to this process's terminal."""
        return vars(self) | {"_bar": None}

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Open the bar."""
        run = current_run(trainer)
        self._bar = progress_bar(run.steps_per_epoch, f"epoch {run.epoch + 1}/{run.epochs}")

    def on_step(self, trainer: TrainerView) -> None:
        """Advance."""
        assert self._bar is not None
        self._bar.update(1)

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Show the newest figures."""
        assert self._bar is not None
        speed = {name: record[name] for name in ("samples_per_second",) if name in record}
        figures = figures_of({name: record[name] for name in record if name not in speed} | self._metrics | speed)
        if not self._bar.disable:
            columns = max(shutil.get_terminal_size().columns, FEWEST_COLUMNS)
            figures = fitted(figures, columns - ROOM_FOR_THE_BAR - 2 * len(str(self._bar.total)))
        self._bar.set_postfix_str("  ".join(figures), refresh=False)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Show the figures of a validation within the epoch; print those of the end of a run that was stopped."""
        if current_run(trainer).complete:
            print(f"at the end of the run  {summary(figures)}")
            return
        assert self._bar is not None
        self._metrics = dict(figures)
        self._bar.set_postfix_str(summary(figures), refresh=False)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Print the epoch's line."""
        assert self._bar is not None
        self._bar.close()
        self._metrics = {name: value for name, value in row.items() if "/" in name and name != "train/loss"}
        run = current_run(trainer)
        self._bar.write(f"epoch {run.epoch + 1}/{run.epochs}  {summary(row)}")

    def on_epoch_end(self, trainer: TrainerView) -> None:
        """Close the bar, also when the epoch was broken off."""
        if self._bar is not None:
            self._bar.close()

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Say where a signal ended the run."""
        run = current_run(trainer)
        print(f"interrupted in epoch {run.epoch + 1} of {run.epochs}, after step {trainer.step}", flush=True)

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Say that the run ends before its last epoch, if a callback stopped it."""
        run = current_run(trainer)
        if run.stopping and run.epochs_done < run.epochs:
            print(f"ended early: a callback stopped the run after epoch {run.epochs_done} of {run.epochs}")


def figures_of(values: Mapping[str, float]) -> list[str]:
    """Figures as they are shown: `train/loss 0.312`, `lr 1.2e-03`, `812 samples/s`."""
    parts = []
    rates = [name for name in values if name.startswith("learning_rate")]
    for name, value in values.items():
        if name in rates:
            if name == rates[0]:  # that of the first group
                parts.append(f"lr {value:.1e}")
        elif name == "samples_per_second":
            parts.append(f"{value:.0f} samples/s")
        elif name == "seconds":
            parts.append(f"{value:.1f} s")
        elif name not in ("epoch", "step", "gradient_norm") and not math.isnan(value):
            parts.append(f"{name} {value:.4g}")
    return parts


def fitted(figures: list[str], columns: int) -> list[str]:
    """The first of the figures, as many as fit into so many columns; one at least."""
    shown: list[str] = []
    width = 0
    for figure in figures:
        width += len(figure) + 2 * bool(shown)
        if shown and width > columns:
            break
        shown.append(figure)
    return shown


def summary(values: Mapping[str, float]) -> str:
    """Figures in one line: `train/loss 0.312  val/accuracy 0.941  lr 1.2e-03  812 samples/s`."""
    return "  ".join(figures_of(values))
