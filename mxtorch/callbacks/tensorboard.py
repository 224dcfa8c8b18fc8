"""TensorBoard: what a run writes into its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView


class TensorBoard(Callback):
    """Writes loss, metrics, rates, gradient norm and samples/s; the LR finder's curve; the settings as hparams.

    Steps on the horizontal axis are optimizer steps. Everything goes into one run, hparams included
    (`SummaryWriter.add_hparams` would open a second one).

    Args:
        log_dir: The run's folder, as in `runs/dogs`. It is created; an event file is added to what is there.

    Raises:
        ValueError: The folder can't be written.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            from torch.utils.tensorboard import SummaryWriter

            self.writer: Any = SummaryWriter(str(self.log_dir))
        except OSError as error:
            raise ValueError(f"log_dir: {str(log_dir)!r} can't be written ({error}); give another folder") from error
        self._finished: Any = None

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Write the run's settings, once."""
        if self._finished is not None:
            return
        from torch.utils.tensorboard.summary import hparams

        # What matters most first: the table of the hparams tab begins with it.
        names = [
            *reversed(_metric_names(trainer)),
            *(["val/loss"] if current_run(trainer).validates else []),
            "train/loss",
        ]
        experiment, started, self._finished = hparams(  # type: ignore[no-untyped-call]
            _settings(trainer), dict.fromkeys(names, 0.0)
        )
        self.writer.file_writer.add_summary(experiment)
        self.writer.file_writer.add_summary(started)

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Write the figures of the steps since the last record."""
        self._write(record, trainer.step)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Write the epoch's metrics."""
        names = [name for name in row if name.startswith("val/") or name in _metric_names(trainer)]
        self._write({name: row[name] for name in names}, trainer.step)

    def on_lr_found(self, trainer: TrainerView, result: Any) -> None:
        """Write the search as a figure, and its curves as scalars.

        The scalars' steps are thousandths of a decade: -3000 is the rate 1e-3, 1000 is 10.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="tight")
        result.plot(figure.subplots())
        self.writer.add_figure("lr_finder/curve", figure, trainer.step)
        self.writer.add_text("lr_finder/result", str(result), trainer.step)
        for trial in result.trials:
            if math.isfinite(trial.loss):
                self.writer.add_scalar(f"lr_finder/loss_after_{trial.steps}_steps", trial.loss, _position(trial.rate))
        for rate, loss, smoothed in zip(result.rates, result.losses, result.smoothed, strict=False):
            self.writer.add_scalar("lr_finder/loss", loss, _position(rate))
            self.writer.add_scalar("lr_finder/smoothed_loss", smoothed, _position(rate))
        for rate, loss in result.held_out:
            self.writer.add_scalar("lr_finder/held_out_loss", loss, _position(rate))
        self.writer.flush()

    def on_interpreted(self, trainer: TrainerView, result: Any) -> None:
        """Write the plots as figures, and the rows as tables."""
        self.writer.add_figure("interpretation/overview", result.plot(), trainer.step)
        if result.pictures:
            self.writer.add_figure("interpretation/top_losses", result.plot_top_losses(), trainer.step)
        for name in ("per_class", "most_confused", "top_losses"):
            self.writer.add_text(f"interpretation/{name}", _table(getattr(result, name)()), trainer.step)
        self.writer.add_scalar("interpretation/calibration_error", result.calibration_error, trainer.step)
        self.writer.flush()

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Mark the run as finished and flush; the writer stays open for a further `fit`."""
        self.writer.file_writer.add_summary(self._finished)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        # One event for all figures: add_scalar would make one for each, at several times the cost.
        from tensorboard.compat.proto.summary_pb2 import Summary

        figures = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.file_writer.add_summary(Summary(value=figures), step)


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


def _settings(trainer: TrainerView) -> dict[str, str | int | float | bool]:
    """What the run was set up with, as the plain values that hparams take."""
    schedule = trainer.optimizer.schedule
    return {
        "model": type(trainer.model).__name__,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "learning_rate": trainer.optimizer.base_learning_rate,
        "schedule": "none" if schedule is None else getattr(schedule, "__name__", type(schedule).__name__),
        "epochs": current_run(trainer).epochs,
        "accumulate": trainer.settings.accumulate,
        "clip_grad_norm": trainer.settings.clip_grad_norm or 0.0,
        "precision": trainer.engine.precision,
        "device": str(trainer.engine.device),
    }


def _metric_names(trainer: TrainerView) -> list[str]:
    """The names that metrics have in the history: `train/...`, and `val/...` in a run that validates."""
    train = [] if trainer.train_metrics is None else [f"train/{name}" for name in trainer.train_metrics]
    if trainer.metrics is None or not current_run(trainer).validates:
        return train
    return train + [f"val/{name}" for name in trainer.metrics]
