"""Following a figure of the epochs: stop when it no longer improves, and keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mxtorch._checks import check_integer, closest
from mxtorch.training.callback import Callback
from mxtorch.training.trainer_view import TrainerView

Mode = Literal["auto", "min", "max"]
# Figures that are the better the lower they are; all others rise as they improve.
_FALLING = ("loss", "error", "mae", "mse", "rmse", "perplexity", "distance")


class _Follower(Callback):
    """Tells whether a figure of the history has improved, within one run of `fit`.

    After `load_state_dict` the next run goes on where the state was saved.
    """

    def __init__(self, monitor: str, mode: Mode, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode: got {mode!r}{closest(str(mode), ('auto', 'min', 'max'))}")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta: got {min_delta!r}; give a finite number of at least 0")
        self.monitor = monitor
        falls = any(word in monitor.lower() for word in _FALLING) if mode == "auto" else mode == "min"
        self._sign = -1.0 if falls else 1.0
        self._min_delta = min_delta
        self._resumes = False
        self.best: float | None = None
        self.best_epoch = 0
        self.epochs_without = 0

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        if not self._resumes:
            self.best, self.best_epoch, self.epochs_without = None, 0, 0
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
        mode: `"min"` or `"max"`; `"auto"` takes min for losses and errors, max for everything else.

    Attributes:
        best: The best value; None before the first epoch.
        best_epoch: The epoch it came in, as `trainer.epoch` counts, from 1.

    Raises:
        ValueError: An argument is off; in the first epoch: it has no such figure.
    """

    def __init__(
        self, monitor: str = "val/loss", *, patience: int = 3, min_delta: float = 0.0, mode: Mode = "auto"
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        check_integer(patience, "patience")
        self.patience = patience

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Judge the epoch."""
        if not self._has_improved(trainer, row) and self.epochs_without >= self.patience:
            trainer.stop()


class BestWeights(_Follower):
    """Puts the weights of a run's best epoch back when the run has ended, also by an error or Ctrl-C.

    They are kept on the CPU. Put it before callbacks that save at the end of a run.

    Args:
        monitor: A column of the history.
        min_delta: What counts as an improvement.
        mode: As in `EarlyStopping`.
    """

    def __init__(self, monitor: str = "val/loss", *, min_delta: float = 0.0, mode: Mode = "auto") -> None:
        super().__init__(monitor, mode, min_delta)
        self._weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Forget an earlier run's weights, except after a state was loaded."""
        if not self._resumes:
            self._weights = {}
        super().on_fit_start(trainer)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far."""
        if self._has_improved(trainer, row):
            self._weights = {
                name: value.detach().to("cpu", copy=True) for name, value in trainer.model.state_dict().items()
            }

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Put the best weights back."""
        if self._weights:
            trainer.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The best weights as well."""
        return {**super().state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self._weights = dict(state["weights"])
