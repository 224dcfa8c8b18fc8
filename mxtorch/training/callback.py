"""The hooks of a run, and the guarantee that what was started is ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mxtorch.training.run import Run
from mxtorch.training.trainer_view import TrainerView


def current_run(trainer: TrainerView) -> Run:
    """The run that a hook is called in."""
    if trainer.run is None:
        raise RuntimeError("this hook is for a run; the trainer has not begun one")
    return trainer.run


class Callback:
    """Override what you need.

    `on_X_end` is called for every `on_X_start` that returned, whatever happened in between, in reverse order.
    The others are called only when their event came about.
    """

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Training begins. `trainer.run` has its lengths and its data."""

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """A pass over the training data begins."""

    def on_step(self, trainer: TrainerView) -> None:
        """An optimizer step was taken (or skipped by fp16). Runs in the hot loop: keep it short."""

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Every `log_every` steps: `train/loss`, `learning_rate/...`, `gradient_norm`, `samples_per_second`."""

    def on_evaluate_start(self, trainer: TrainerView) -> None:
        """A pass over validation data begins."""

    def on_evaluate_end(self, trainer: TrainerView) -> None:
        """The pass over validation data is over, or was broken off."""

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """An epoch was trained and validated; `row` is its line of the history. `trainer.stop()` ends the run."""

    def on_epoch_end(self, trainer: TrainerView) -> None:
        """The epoch is over, or was broken off."""

    def on_interrupt(self, trainer: TrainerView) -> None:
        """SIGTERM or Ctrl-C ends the run; the step is finished, or the validation to be begun anew."""

    def on_lr_found(self, trainer: TrainerView, result: Any) -> None:
        """`find_lr` has a result, an `LRFinderResult`; everything is restored already."""

    def on_interpreted(self, trainer: TrainerView, result: Any) -> None:
        """`interpret` has a result, an `Interpretation`."""

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Training is over, or was broken off."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this callback to go on as if never interrupted: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def close(self) -> None:
        """Let go of files; called by `Trainer.close`."""


class CallbackList:
    """Calls callbacks in order, and only those that override the hook.

    Args:
        callbacks: The callbacks.
        trainer: What every hook is given.

    Attributes:
        callbacks: The callbacks, in the order in which they are called.
        trainer: As given.

    Raises:
        TypeError: Something else than a callback is among them.
    """

    def __init__(self, callbacks: Iterable[Callback], trainer: TrainerView) -> None:
        self.callbacks = list(callbacks)
        self.trainer = trainer
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: got {callback!r}; give instances of mxtorch.callbacks.Callback")

    def listeners(self, hook: str) -> list[Callable[..., None]]:
        """The bound methods of all callbacks that do something at a hook."""
        base = getattr(Callback, hook)
        return [getattr(callback, hook) for callback in self.callbacks if getattr(type(callback), hook) is not base]

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook on every callback, in order."""
        for listener in self.listeners(hook):
            listener(self.trainer, *arguments)

    @contextlib.contextmanager
    def running(self, phase: str) -> Iterator[None]:
        """Call `on_{phase}_start`, then, always, `on_{phase}_end` on those that were started, last first.

        Every end is called even when an earlier one fails; the first failure is raised then.
        """
        with contextlib.ExitStack() as ends:
            for callback in self.callbacks:
                getattr(callback, f"on_{phase}_start")(self.trainer)
                ends.callback(getattr(callback, f"on_{phase}_end"), self.trainer)
            yield

    def state_dict(self) -> list[list[Any]]:
        """The class and the state of every callback."""
        return [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks]

    def load_state_dict(self, state_dict: list[list[Any]]) -> list[str]:
        """Give each state to the next callback of its class; returns the names of states that have no callback."""
        waiting, left_over = list(self.callbacks), []
        for name, state in state_dict:
            callback = next((one for one in waiting if type(one).__name__ == name), None)
            if callback is not None:
                waiting.remove(callback)
            if not state:
                continue
            if callback is not None:
                callback.load_state_dict(state)
            elif name != "Checkpoint":
                left_over.append(name)
        return left_over

    def close(self) -> None:
        """Let every callback close what it holds open."""
        for callback in self.callbacks:
            callback.close()
