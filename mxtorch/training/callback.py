"""The hooks of a run, and the guarantee that what was started is ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxtorch.interpretation import Interpretation
    from mxtorch.lr_finder import LRFinderResult
    from mxtorch.trainer import Trainer


class Callback:
    """Override what you need.

    `on_X_end` is called for every `on_X_start` that returned, whatever happened in between, in reverse order.
    The others are called only when their event came about.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Training begins. `trainer.plan` has its lengths."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """A pass over the training data begins."""

    def on_step(self, trainer: Trainer) -> None:
        """An optimizer step was taken (or skipped by fp16). Runs in the hot loop: keep it short."""

    def on_log(self, trainer: Trainer, record: Mapping[str, float]) -> None:
        """Every `log_every` steps: `train/loss`, `learning_rate/...`, `gradient_norm`, `samples_per_second`."""

    def on_evaluate_start(self, trainer: Trainer) -> None:
        """A pass over validation data begins."""

    def on_evaluate_end(self, trainer: Trainer) -> None:
        """The pass over validation data is over, or was broken off."""

    def on_epoch_complete(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """An epoch was trained and validated; `row` is its line of the history. `trainer.stop()` ends the run."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """The epoch is over, or was broken off."""

    def on_interrupt(self, trainer: Trainer) -> None:
        """SIGTERM or Ctrl-C ends the run; the step is finished, or the validation to be begun anew."""

    def on_lr_found(self, trainer: Trainer, result: LRFinderResult) -> None:
        """`find_lr` has a result; everything is restored already."""

    def on_interpreted(self, trainer: Trainer, result: Interpretation) -> None:
        """`interpret` has a result."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Training is over, or was broken off."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this callback to go on as if never interrupted: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def close(self) -> None:
        """Let go of files; called by `Trainer.close`."""


class CallbackList:
    """Calls several callbacks in order, and only those that override the hook."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)
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
            listener(*arguments)

    @contextlib.contextmanager
    def running(self, phase: str, trainer: Trainer) -> Iterator[None]:
        """Call `on_{phase}_start`, then, always, `on_{phase}_end` on those that were started, last first.

        Every end is called even when an earlier one fails; the first failure is raised then.
        """
        with contextlib.ExitStack() as ends:
            for callback in self.callbacks:
                getattr(callback, f"on_{phase}_start")(trainer)
                ends.callback(getattr(callback, f"on_{phase}_end"), trainer)
            yield
