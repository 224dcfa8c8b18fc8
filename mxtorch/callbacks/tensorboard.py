"""TensorBoard: what a run writes into its folder."""

from __future__ import annotations

import math
import re
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mxtorch._checks import local_path
from mxtorch.callbacks.run_settings import as_table, metric_names, run_settings
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView

# The group of the finder's curves says what is on their axis, which TensorBoard calls "step".
_CURVES = "lr_finder_loss_over_1000_log10_rate"
# A page shows a chart for each class, and the browser lays out each point of an embedding.
_MOST_CURVES, _MOST_EMBEDDED = 20, 2000
_FEWEST_DIMENSIONS = 3  # the projector draws in three
_NAME = re.compile(r"events\.out\.tfevents\.[^/\\]+")


class TensorBoard(Callback):
    """Writes loss, metrics, rates by the name of their group, gradient norm and samples/s, and what a run was.

    - Scalars, whose steps are optimizer steps; on the page of custom scalars loss, metrics and rates beside each other.
    - HParams: model, optimizer, rates, schedule, batch size, image size, seed and the like.
    - Text: the settings of the run, and what the last `find_lr` said.
    - Of each `find_lr` its picture and its curves over the rate.
    - Of `interpret` its plots, tables, precision-recall curves, and the outputs as an embedding with their classes.

    Everything goes into one run, hparams included
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

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import TensorBoard
        >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(6)]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> callback = TensorBoard("runs/example")
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[callback], progress=False)
        >>> history = trainer.fit(data, data, epochs=1)
        >>> trainer.close()
        >>> from pathlib import Path
        >>> [path.name[:19] for path in Path("runs/example").iterdir()]
        ['events.out.tfevents']
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
        self._verdict = ""  # what the last search said
        self._input_shape: tuple[int, ...] | None = None
        self._watch: Any = None  # the hook that sees the first input

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: the copy is a run of its own, with a folder of its own."""
        fresh = {
            "folder": None,
            "_event_file": "",
            "_writer": None,
            "_finalizer": None,
            "_finished": None,
            "_watch": None,
        }
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
        """After `Trainer.load`, purge the steps that are going to be taken again; wait for the first input."""
        if self._loaded:
            self.on_resume(trainer)
        if self._finished is None and trainer.model._compiled_call_impl is None:  # a hook would compile it anew

            def see(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                first = next((one for one in (*arguments, *named.values()) if isinstance(one, Tensor)), None)
                self._input_shape = None if first is None else tuple(first.shape)
                self._stop_watching()

            self._watch = trainer.model.register_forward_pre_hook(see, with_kwargs=True)

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
        """Open the file, so that every checkpoint of the run knows its folder."""
        self.writer(trainer)

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
        """Write the run's settings once, before its first figures, when the first input has been seen."""
        if self._finished is not None:
            return
        from torch.utils.tensorboard.summary import hparams

        self._stop_watching()
        settings = run_settings(trainer, self._input_shape)

        # What matters most first: the table of the hparams tab begins with it.
        names = [
            *reversed(metric_names(trainer)),
            *(f"{prefix}/loss" for prefix in current_run(trainer).validation),
            "train/loss",
        ]
        experiment, started, self._finished = hparams(  # type: ignore[no-untyped-call]
            settings, dict.fromkeys(names, 0.0)
        )
        writer = self.writer(trainer)
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(started)
        table = as_table([{"setting": name, "value": value} for name, value in settings.items()])
        verdict = self._verdict or "No search was made before this run."
        writer.add_text("run", f"{table}\n\n**The finder:** {verdict}", trainer.step)
        losses = [name for name in reversed(names) if name.endswith("/loss")]
        metrics = metric_names(trainer)
        charts = {"loss": ["Multiline", losses], "learning rate": ["Multiline", ["learning_rate/.*"]]}
        if metrics:
            charts["metrics"] = ["Multiline", metrics]
        writer.add_custom_scalars({type(trainer.model).__name__: charts})

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Write the figures of the steps since the last record; before the first ones, the settings."""
        self._begin(trainer)
        self._write(trainer, record)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Write the figures of a validation within an epoch."""
        self._write(trainer, figures)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Write the epoch's metrics."""
        names = [name for name in row if name.startswith("val/") or name in metric_names(trainer)]
        self._write(trainer, {name: row[name] for name in names})

    def on_lr_found(self, trainer: TrainerView, result: Any) -> None:
        """Write the search as a figure, and its curves as scalars, into a run of its own.

        The steps of these scalars are thousandths of a decade, as their names say: -3000 is the rate 1e-3, 1000 is 10.
        """
        from matplotlib.figure import Figure
        from torch.utils.tensorboard import SummaryWriter

        figure = Figure(figsize=(7, 4.2), layout="tight")
        result.plot(figure.subplots())
        folder = _free(self.folder or self.log_dir, "lr_finder")
        self._verdict = str(result)
        with SummaryWriter(str(folder)) as writer:
            writer.add_figure("lr_finder/curve", figure, trainer.step)
            writer.add_text("lr_finder/result", str(result), trainer.step)
            for trial in result.trials:
                if math.isfinite(trial.loss):
                    name = f"{_CURVES}/after_{trial.steps}_steps"
                    writer.add_scalar(name, trial.loss, _position(trial.rate))
            for rate, loss, smoothed in zip(result.rates, result.losses, result.smoothed, strict=False):
                writer.add_scalar(f"{_CURVES}/training", loss, _position(rate))
                writer.add_scalar(f"{_CURVES}/training_smoothed", smoothed, _position(rate))
            for rate, loss in result.held_out:
                writer.add_scalar(f"{_CURVES}/held_out", loss, _position(rate))

    def on_interpreted(self, trainer: TrainerView, result: Any) -> None:
        """Write the plots as figures, and the rows as tables."""
        writer = self.writer(trainer)
        writer.add_figure("interpretation/overview", result.plot(), trainer.step)
        if result.pictures:
            writer.add_figure("interpretation/top_losses", result.plot_top_losses(), trainer.step)
        for name in ("per_class", "most_confused", "top_losses"):
            writer.add_text(f"interpretation/{name}", as_table(getattr(result, name)()), trainer.step)
        writer.add_scalar("interpretation/calibration_error", result.calibration_error, trainer.step)
        for index, name in enumerate(result.classes[:_MOST_CURVES]):
            writer.add_pr_curve(
                f"interpretation/{name}", result.targets == index, result.probabilities[:, index], trainer.step
            )
        if len(result.classes) >= _FEWEST_DIMENSIONS:
            self._write_embedding(writer, result, trainer.step)
        writer.flush()

    def _write_embedding(self, writer: Any, result: Any, step: int) -> None:
        """Write the outputs as points, which the projector lays out by classes."""
        shown = slice(None, _MOST_EMBEDDED)
        predicted = [result.classes[number] for number in result.predictions[shown].tolist()]
        true = [result.classes[number] for number in result.targets[shown].tolist()]
        writer.add_embedding(
            result.probabilities[shown].clamp_min(1e-12).log(),
            metadata=[list(pair) for pair in zip(true, predicted, strict=True)],
            metadata_header=["true", "predicted"],
            tag="log_probabilities",
            global_step=step,
        )

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Mark the run as finished and flush; the file stays open for a further `fit`."""
        self._stop_watching()
        if self._writer is not None and self._finished is not None:
            self._writer.file_writer.add_summary(self._finished)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file, which is opened anew for a further event."""
        if self._finalizer is not None:
            self._finalizer()
        self._writer = self._finalizer = None

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

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


def _position(rate: float) -> int:
    """A rate as a step: thousandths of a decade."""
    return round(1000 * math.log10(rate))
