"""TensorBoard: what a run writes into its folder."""

from __future__ import annotations

import math
import re
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxtorch._checks import local_path
from mxtorch.callbacks.loggers.base import run_settings
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView

_NAME = re.compile(r"events\.out\.tfevents\.[^/\\]+")


class TensorBoard(Callback):
    """Writes loss, metrics, rates, gradient norm and samples/s; the LR finder's curve; the settings as hparams.

    Steps on the horizontal axis are optimizer steps. Everything goes into one run, hparams included
    (`SummaryWriter.add_hparams` would open a second one); but each `find_lr`, whose axis is the rate, has a run of its
    own below it: `lr_finder`, `lr_finder-2`.

    A folder holds one run. A trainer whose `log_dir` has event files of another run writes into `run-2` (`run-3`, ...)
    below it, and prints so. A run that is resumed goes on in its own folder, and its steps after the checkpoint are
    purged there, so that no step is drawn twice.

    The event file is opened when there is something to write, and closed with `close`, or when the callback is gone.

    Args:
        log_dir: The run's folder, as in `runs/dogs`. It is created.

    Attributes:
        log_dir: As given.
        folder: Where the run is written: `log_dir`, or a folder below it; None before the first event.

    Raises:
        ValueError: The folder can't be written, or is no local path.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = local_path(log_dir, "log_dir")
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.log_dir):
                pass
        except OSError as error:
            raise ValueError(f"log_dir: {str(log_dir)!r} can't be written ({error}); give another folder") from error
        self.folder: Path | None = None
        self._event_file = ""  # the name of the run's first one, by which a resumed run knows its folder
        self._loaded = False
        self._writer: Any = None
        self._finalizer: Any = None
        self._finished: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: the copy is a run of its own, with a folder of its own."""
        fresh = {"folder": None, "_event_file": "", "_writer": None, "_finalizer": None, "_finished": None}
        return vars(self) | fresh

    def writer(self, trainer: TrainerView) -> Any:
        """The `torch.utils.tensorboard.SummaryWriter` of the run, opened when it is first asked for."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            if self.folder is None:
                self.folder = _free(self.log_dir, "run", first=self.log_dir)
                if self.folder != self.log_dir and trainer.progress:
                    print(f"log_dir: {self.log_dir} has events of another run; this one is written to {self.folder}")
            before = _event_files(self.folder)
            self._writer = SummaryWriter(str(self.folder))
            self._finalizer = weakref.finalize(self, self._writer.close)  # ends the thread that writes
            self._event_file = self._event_file or min(_event_files(self.folder) - before)
        return self._writer

    def on_fit_start(self, trainer: TrainerView) -> None:
        """After `Trainer.load`, purge the steps that are going to be taken again."""
        if self._loaded:
            self.on_resume(trainer)

    def on_resume(self, trainer: TrainerView) -> None:
        """Purge the steps that the run is going to take again."""
        self._loaded = False
        if self.folder is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer = self.writer(trainer).file_writer
        writer.add_event(Event(step=trainer.step + 1, file_version="brain.Event:2"))
        writer.add_event(Event(step=trainer.step + 1, session_log=SessionLog(status=SessionLog.START)))

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Open the file and write the run's settings, so that every checkpoint of the run knows its folder."""
        self._begin(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The name of the run's first event file."""
        return {"event_file": self._event_file} if self._event_file else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the folder of the run, if it is in `log_dir`; otherwise this is a run of its own.

        Raises:
            ValueError: The state is malformed.
        """
        name = state["event_file"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"the name of its event file is {name!r}")
        folders = [self.log_dir, *sorted(self.log_dir.glob("run-*"))]
        found = next((folder for folder in folders if (folder / name).is_file()), None)
        if found is None:
            return
        if found != self.folder:
            self.close()
        self.folder, self._event_file, self._loaded = found, name, True

    def _begin(self, trainer: TrainerView) -> None:
        """Write the run's settings before its first event, once."""
        if self._finished is not None:
            return
        from torch.utils.tensorboard.summary import hparams

        # What matters most first: the table of the hparams tab begins with it.
        names = [
            *reversed(_metric_names(trainer)),
            *(f"{prefix}/loss" for prefix in current_run(trainer).validation),
            "train/loss",
        ]
        experiment, started, self._finished = hparams(  # type: ignore[no-untyped-call]
            run_settings(trainer), dict.fromkeys(names, 0.0)
        )
        self.writer(trainer).file_writer.add_summary(experiment)
        self.writer(trainer).file_writer.add_summary(started)

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Write the figures of the steps since the last record."""
        self._write(trainer, record)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Write the figures of a validation within an epoch."""
        self._write(trainer, figures)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Write the epoch's metrics."""
        names = [name for name in row if name.startswith("val/") or name in _metric_names(trainer)]
        self._write(trainer, {name: row[name] for name in names})

    def on_lr_found(self, trainer: TrainerView, result: Any) -> None:
        """Write the search as a figure, and its curves as scalars, into a run of its own.

        The scalars' steps are thousandths of a decade: -3000 is the rate 1e-3, 1000 is 10.
        """
        from matplotlib.figure import Figure
        from torch.utils.tensorboard import SummaryWriter

        figure = Figure(figsize=(7, 4.2), layout="tight")
        result.plot(figure.subplots())
        folder = _free(self.folder or self.log_dir, "lr_finder")
        with SummaryWriter(str(folder)) as writer:
            writer.add_figure("lr_finder/curve", figure, trainer.step)
            writer.add_text("lr_finder/result", str(result), trainer.step)
            for trial in result.trials:
                if math.isfinite(trial.loss):
                    name = f"lr_finder/loss_after_{trial.steps}_steps"
                    writer.add_scalar(name, trial.loss, _position(trial.rate))
            for rate, loss, smoothed in zip(result.rates, result.losses, result.smoothed, strict=False):
                writer.add_scalar("lr_finder/loss", loss, _position(rate))
                writer.add_scalar("lr_finder/smoothed_loss", smoothed, _position(rate))
            for rate, loss in result.held_out:
                writer.add_scalar("lr_finder/held_out_loss", loss, _position(rate))

    def on_interpreted(self, trainer: TrainerView, result: Any) -> None:
        """Write the plots as figures, and the rows as tables."""
        writer = self.writer(trainer)
        writer.add_figure("interpretation/overview", result.plot(), trainer.step)
        if result.pictures:
            writer.add_figure("interpretation/top_losses", result.plot_top_losses(), trainer.step)
        for name in ("per_class", "most_confused", "top_losses"):
            writer.add_text(f"interpretation/{name}", _table(getattr(result, name)()), trainer.step)
        writer.add_scalar("interpretation/calibration_error", result.calibration_error, trainer.step)
        writer.flush()

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Mark the run as finished and flush; the file stays open for a further `fit`."""
        if self._writer is not None and self._finished is not None:
            self._writer.file_writer.add_summary(self._finished)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file, which is opened anew for a further event."""
        if self._finalizer is not None:
            self._finalizer()
        self._writer = self._finalizer = None

    def _write(self, trainer: TrainerView, values: Mapping[str, float]) -> None:
        # One event for all figures: add_scalar would make one for each, at several times the cost.
        from tensorboard.compat.proto.summary_pb2 import Summary

        figures = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer(trainer).file_writer.add_summary(Summary(value=figures), trainer.step)


def _free(parent: Path, name: str, *, first: Path | None = None) -> Path:
    """The first folder of a name that has no event files: `first` (or `name`), `name-2`, `name-3`, ..."""
    folder, number = first or parent / name, 1
    while _event_files(folder):
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _event_files(folder: Path) -> set[str]:
    """The names of the event files in a folder, if there is one."""
    return {path.name for path in folder.glob("events.out.tfevents.*")} if folder.is_dir() else set()


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown, which TensorBoard shows."""
    if not rows:
        return "none"
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _position(rate: float) -> int:
    """A rate as a step: thousandths of a decade."""
    return round(1000 * math.log10(rate))


def _metric_names(trainer: TrainerView) -> list[str]:
    """The names that metrics have in the history: `train/...`, and `val/...` in a run that validates."""
    train = [] if trainer.train_metrics is None else [f"train/{name}" for name in trainer.train_metrics]
    prefixes = [] if trainer.metrics is None else current_run(trainer).validation
    return train + [f"{prefix}/{name}" for prefix in prefixes for name in trainer.metrics]
