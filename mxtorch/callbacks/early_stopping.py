"""Following a figure of the epochs: stop when it no longer improves, and keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mxtorch._checks import check_integer, closest
from mxtorch.checkpointing.serialization import frozen
from mxtorch.training.callback import Callback, Weights, current_run
from mxtorch.training.monitor import Mode, check_mode, direction
from mxtorch.training.trainer_view import TrainerView


class _Follower(Callback):
    """Tells whether a figure of the history has improved, within one run of `fit`.

    After `load_state_dict` the next run goes on where the state was saved.
    """

    def __init__(self, monitor: str, mode: Mode, min_delta: float) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor: got {monitor!r}; give the name of a figure of the history, as 'val/loss'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta: got {min_delta!r}; give a finite number of at least 0")
        self.monitor = monitor
        self.mode = check_mode(mode)
        self._sign = 0.0  # known when a run begins, and with it the metrics
        self._min_delta = min_delta
        self._resumes = False
        self.best: float | None = None
        self.best_epoch = 0
        self.epochs_without = 0

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Settle what is better; begin afresh, except after a state was loaded."""
        falls = direction(self.monitor, self.mode, trainer.metrics, trainer.train_metrics) == "min"
        self._sign = -1.0 if falls else 1.0
        if not self._resumes:
            self.best, self.best_epoch, self.epochs_without = None, 0, 0
        self._resumes = False

    def on_fit_end(self, trainer: TrainerView) -> None:
        """A state that was loaded within the run belongs to that run."""
        self._resumes = False

    def _has_improved(self, trainer: TrainerView, row: Mapping[str, float]) -> bool:
        if self.monitor not in row:
            hint = closest(self.monitor, [name for name in row if "/" in name])
            raise ValueError(f"monitor: got {self.monitor!r}, which no epoch has{hint}")
        value = float(row[self.monitor])
        better = self.best is None or self._sign * (value - self.best) > self._min_delta
        if better and not math.isnan(value):
            self.best, self.best_epoch, self.epochs_without = value, trainer.epoch, 0
            return True
        self.epochs_without += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, when it came, and how many epochs went by since."""
        return {"best": self.best, "best_epoch": self.best_epoch, "epochs_without": self.epochs_without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.epochs_without = state["epochs_without"]
        self._resumes = True


class EarlyStopping(_Follower):
    """Ends a run when a figure has not improved for some epochs.

    Args:
        monitor: A column of the history, as `"val/loss"` or `"val/accuracy"`.
        patience: Epochs without improvement before the end.
        min_delta: What counts as an improvement.
        mode: `"min"` or `"max"`: which is better. `"auto"` asks the metric of that name (`higher_is_better` of
            torchmetrics), else knows the usual names by whole words (loss, nll, wer, ...; accuracy, f1, auroc, ...).

    A run that it ended stays ended when it is resumed, unless the patience was raised: then it goes on.

    Attributes:
        best: The best value; None before the first epoch.
        best_epoch: The epoch it came in, as `trainer.epoch` counts, from 1.

    Raises:
        ValueError: An argument is off. From `fit`, before the first step: neither metric nor name tells what is
            better. In the first epoch: it has no such figure.
    """

    def __init__(
        self, monitor: str = "val/loss", *, patience: int = 3, min_delta: float = 0.0, mode: Mode = "auto"
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        check_integer(patience, "patience")
        self.patience = patience
        self._stopped = False

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        super().on_fit_start(trainer)
        self._stopped = False

    def on_resume(self, trainer: TrainerView) -> None:
        """Let a run go on that this callback had ended, if it has more patience now."""
        if self._stopped and self.epochs_without < self.patience:
            self._stopped = current_run(trainer).stopping = False

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Judge the epoch."""
        if not self._has_improved(trainer, row) and self.epochs_without >= self.patience:
            self._stopped = True
            trainer.stop()

    def report(self, trainer: TrainerView) -> str:
        """Why the run ended early, if it did."""
        if not self._stopped:
            return ""
        best = (
            "it never was a number"
            if self.best is None
            else f"its best was {self.best:.4g}, of epoch {self.best_epoch}"
        )
        return (
            f"EarlyStopping ended the run after epoch {trainer.epoch}: {self.monitor} has not improved for "
            f"{self.epochs_without} epochs, {best}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Also whether the run was ended."""
        return {**super().state_dict(), "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self._stopped = bool(state.get("stopped", False))


class BestWeights(_Follower):
    """Puts the weights of a run's best epoch back when the run has ended, also by an error or Ctrl-C.

    Kept are the weights that were judged: with `EMA` or `SWA` the average, whatever the order of the callbacks. They
    are copied to the CPU.

    Args:
        monitor: A column of the history.
        min_delta: What counts as an improvement.
        mode: As in `EarlyStopping`.
    """

    def __init__(self, monitor: str = "val/loss", *, min_delta: float = 0.0, mode: Mode = "auto") -> None:
        super().__init__(monitor, mode, min_delta)
        self._weights: dict[str, Any] = {}

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Forget an earlier run's weights, except after a state was loaded."""
        if not self._resumes:
            self._weights = {}
        super().on_fit_start(trainer)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far."""
        if self._has_improved(trainer, row):
            with trainer.judged_weights():
                state: dict[str, Any] = frozen(trainer.model.state_dict(), "model")
                self._weights = dict(state)

    def best_weights(self, trainer: TrainerView) -> Weights | None:
        """The weights of the best epoch."""
        if not self._weights:
            return None
        return Weights(self._weights, f"the weights of epoch {self.best_epoch}, the best by {self.monitor}")

    def report(self, trainer: TrainerView) -> str:
        """The best epoch."""
        return f"The best {self.monitor} was {self.best:.4g}, of epoch {self.best_epoch}" if self._weights else ""

    def state_dict(self) -> dict[str, Any]:
        """The best weights as well."""
        return {**super().state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self._weights = dict(state["weights"])
