"""Following a figure of the epochs: stop when it no longer improves, and keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mxtorch._checks import check_integer, closest, number
from mxtorch.checkpointing.serialization import frozen
from mxtorch.training.callback import CallbackOfRun, Weights, current_run
from mxtorch.training.monitor import Mode, check_mode, direction
from mxtorch.training.trainer_view import TrainerView


class _Follower(CallbackOfRun):
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
        self.best: float | None = None
        self.best_epoch = 0
        self.best_step: int | None = None
        self.epochs_without = 0

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Settle what is better; begin afresh, except after a state was loaded."""
        falls = direction(self.monitor, self.mode, trainer.metrics, trainer.train_metrics) == "min"
        self._sign = -1.0 if falls else 1.0
        super().on_fit_start(trainer)

    def _begin_afresh(self) -> None:
        """Forget the best of an earlier run."""
        self.best, self.best_epoch, self.best_step, self.epochs_without = None, 0, None, 0

    def _is_in(self, trainer: TrainerView, figures: Mapping[str, float]) -> bool:
        """Whether a validation within an epoch has the figure; others have it at the epoch's end."""
        return current_run(trainer).figure(self.monitor) in figures

    def _has_improved(self, trainer: TrainerView, row: Mapping[str, float]) -> bool:
        monitor = current_run(trainer).figure(self.monitor)
        if monitor not in row:
            hint = closest(monitor, [name for name in row if "/" in name])
            raise ValueError(f"monitor: got {monitor!r}, which no epoch has{hint}")
        value = float(row[monitor])
        better = self.best is None or self._sign * (value - self.best) > self._min_delta
        if better and not math.isnan(value):
            within = not current_run(trainer).complete
            self.best, self.best_epoch, self.epochs_without = value, trainer.epoch + within, 0
            self.best_step = trainer.step if within else None
            return True
        self.epochs_without += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, when it came, and how many epochs went by since."""
        names = ("best", "best_epoch", "best_step", "epochs_without")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_step, self.epochs_without = state.get("best_step"), state["epochs_without"]

    def _best_place(self) -> str:
        return f"epoch {self.best_epoch}" + ("" if self.best_step is None else f" (step {self.best_step})")


class EarlyStopping(_Follower):
    """Ends a run when a figure has not improved for some epochs, is no number, or is as good as was wanted.

    With `fit(validate_every=...)` each validation is judged, and ends the run within the epoch. At the end of the run a
    line says why it ended and which weights the model has; `BestWeights` puts the best ones back.

    Args:
        monitor: A column of the history, as `"val/loss"` or `"val/accuracy"`.
        patience: Epochs, or validations, without improvement before the end.
        min_delta: What counts as an improvement.
        mode: `"min"` or `"max"`: which is better. `"auto"` asks the metric of that name (`higher_is_better` of
            torchmetrics), else knows the usual names by whole words (loss, nll, wer, ...; accuracy, f1, auroc, ...).
        check_finite: End the run when the figure is NaN or infinite; otherwise that is no improvement.
        threshold: End the run when the figure is as good as this.
        divergence_threshold: End the run when the figure is worse than this.

    A run that it ended stays ended when it is resumed, unless the patience was raised: then it goes on.

    Attributes:
        best: The best value; None before the first epoch.
        best_epoch: The epoch it came in, as `trainer.epoch` counts, from 1.

    Raises:
        ValueError: An argument is off. From `fit`, before the first step: neither metric nor name tells what is
            better. In the first epoch: it has no such figure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import EarlyStopping
        >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(6)]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> callback = EarlyStopping("val/loss", patience=1, min_delta=100.0)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[callback], progress=False)
        >>> history = trainer.fit(data, data, epochs=9)
        >>> len(history)  # nothing gets better by 100
        2
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        check_finite: bool = True,
        threshold: float | None = None,
        divergence_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        check_integer(patience, "patience")
        for argument, value in (("threshold", threshold), ("divergence_threshold", divergence_threshold)):
            if value is not None and (number(value) is None or math.isnan(value)):
                raise ValueError(f"{argument}: got {value!r}; give a number, or None")
        self.patience, self.check_finite = patience, check_finite
        self.threshold, self.divergence_threshold = threshold, divergence_threshold
        self._stopped = False
        self._reason = ""

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        super().on_fit_start(trainer)
        self._stopped, self._reason = False, ""

    def on_resume(self, trainer: TrainerView) -> None:
        """Let a run go on that this callback had ended, if it has more patience now."""
        if self._stopped and not self._reason and self.epochs_without < self.patience:
            self._stopped = current_run(trainer).stopping = False

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Judge the epoch."""
        if current_run(trainer).leaves_out(self.monitor):
            return
        self._judge(trainer, row)
        if self._stopped:
            trainer.stop()

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Judge a validation within the epoch."""
        if self._is_in(trainer, figures):
            self._judge(trainer, figures)
            if self._stopped:
                trainer.stop(within_epoch=True)

    def _judge(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        improved = self._has_improved(trainer, figures)
        name = current_run(trainer).figure(self.monitor)
        value = float(figures[name])
        words = f"{name} is {value:.4g}"
        if self.check_finite and not math.isfinite(value):
            self._reason = f"{words}, no finite number"
        elif self.threshold is not None and self._sign * (value - self.threshold) >= 0:
            self._reason = f"{words}, as good as the threshold {self.threshold:g}"
        elif self.divergence_threshold is not None and self._sign * (value - self.divergence_threshold) < 0:
            self._reason = f"{words}, worse than the divergence_threshold {self.divergence_threshold:g}"
        self._stopped = bool(self._reason) or (not improved and self.epochs_without >= self.patience)

    def report(self, trainer: TrainerView) -> str:
        """Why the run ended early, if it did."""
        if not self._stopped:
            return ""
        best = (
            "it never was a number" if self.best is None else f"its best was {self.best:.4g}, of {self._best_place()}"
        )
        every = current_run(trainer).limits.validate_every
        looks = "epochs" if every is None else "validations"
        reason = self._reason or f"{self.monitor} has not improved for {self.epochs_without} {looks}"
        return f"EarlyStopping ended the run after epoch {trainer.epoch}: {reason}, {best}"

    def state_dict(self) -> dict[str, Any]:
        """Also whether the run was ended."""
        return {**super().state_dict(), "stopped": self._stopped, "reason": self._reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self._stopped, self._reason = bool(state.get("stopped", False)), str(state.get("reason", ""))


class BestWeights(_Follower):
    """Puts the weights of a run's best epoch back when the run has ended, also by an error or Ctrl-C.

    Kept are the weights that were judged: with `EMA` or `SWA` the average, whatever the order of the callbacks. They
    are copied to the CPU.

    Args:
        monitor: A column of the history.
        min_delta: What counts as an improvement.
        mode: As in `EarlyStopping`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import BestWeights
        >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(6)]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> callback = BestWeights("val/loss")
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[callback], progress=False)
        >>> history = trainer.fit(data, data, epochs=3)
        >>> callback.best == min(history["val/loss"])
        True
    """

    def __init__(self, monitor: str = "val/loss", *, min_delta: float = 0.0, mode: Mode = "auto") -> None:
        super().__init__(monitor, mode, min_delta)
        self._weights: dict[str, Any] = {}

    def _begin_afresh(self) -> None:
        """Forget the weights of an earlier run."""
        super()._begin_afresh()
        self._weights = {}

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far."""
        if not current_run(trainer).leaves_out(self.monitor):
            self._judge(trainer, row)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Keep weights within the epoch if they are the best so far."""
        if self._is_in(trainer, figures):
            self._judge(trainer, figures)

    def _judge(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        if self._has_improved(trainer, figures):
            with trainer.judged_weights():
                state: dict[str, Any] = frozen(trainer.model.state_dict(), "model")
                self._weights = dict(state)

    def best_weights(self, trainer: TrainerView) -> Weights | None:
        """The weights of the best epoch."""
        if not self._weights:
            return None
        return Weights(self._weights, f"the weights of {self._best_place()}, the best by {self.monitor}")

    def report(self, trainer: TrainerView) -> str:
        """The best epoch."""
        return f"The best {self.monitor} was {self.best:.4g}, of {self._best_place()}" if self._weights else ""

    def state_dict(self) -> dict[str, Any]:
        """The best weights as well."""
        return {**super().state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there in the next run."""
        super().load_state_dict(state)
        self._weights = dict(state["weights"])
