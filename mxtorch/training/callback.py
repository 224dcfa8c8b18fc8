"""The hooks of a run, and the guarantee that what was started is ended."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mxtorch.optim import schedule_free
from mxtorch.training.run import Run
from mxtorch.training.trainer_view import TrainerView


def current_run(trainer: TrainerView) -> Run:
    """The run that a hook is called in."""
    if trainer.run is None:
        raise RuntimeError("this hook is for a run; the trainer has not begun one")
    return trainer.run


class Weights(NamedTuple):
    """Weights that a callback offers in place of the ones that are trained.

    Attributes:
        values: Entries of `model.state_dict()`, by name; entries that are left out stay as they are.
        description: What they are, for the line that is printed at the end of a run.
    """

    values: Mapping[str, Any]
    description: str


class Callback:
    """Override what you need.

    `on_X_end` is called for every `on_X_start` that returned, whatever happened in between, in reverse order.
    The others are called only when their event came about.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> class Stop(Callback):
        ...     def on_epoch_complete(self, trainer, row):
        ...         if row["epoch"] == 2:
        ...             trainer.stop()
        >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(6)]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[Stop()], progress=False)
        >>> len(trainer.fit(data, epochs=9))
        2
    """

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Training begins. `trainer.run` has its lengths and its data."""

    def on_resume(self, trainer: TrainerView) -> None:
        """A checkpoint was loaded into the run: at its start, or by a rollback. All states are loaded."""

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """A pass over the training data begins."""

    def on_step(self, trainer: TrainerView) -> None:
        """An optimizer step was taken (or skipped by fp16). Runs in the hot loop: keep it short."""

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Every `log_every` steps: `train/loss`, `learning_rate/...`, `gradient_norm`, `samples_per_second`."""

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """A validation within an epoch is over (`fit(validate_every=...)`); the one at its end comes with its row.

        Also called where a run is stopped after an epoch that was not validated, and its end is validated now.
        """

    def on_epoch_trained(self, trainer: TrainerView) -> None:
        """The steps of an epoch are taken; validation, if there is one, comes next."""

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
        """Training is over, or was broken off. The weights that the run leaves are in the model."""

    def judged_weights(self, trainer: TrainerView) -> Weights | None:
        """The weights to be judged at this point of a run; None for those that are trained.

        They are in the model in place of the trained ones while `evaluate`, `predict`, `interpret` and `export` run
        within a `fit`, when `BestWeights` or a checkpoint copies the model, and after the end of the run.
        """
        return None

    def best_weights(self, trainer: TrainerView) -> Weights | None:
        """The weights that the run leaves in the model at its end, in place of those judged last; None for these."""
        return None

    def report(self, trainer: TrainerView) -> str:
        """What to print of this callback at the end of a run, in a part of a sentence; empty for nothing."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this callback to go on as if never interrupted: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def close(self) -> None:
        """Let go of files; called by `Trainer.close`."""


class CallbackOfRun(Callback):
    """The base of callbacks whose state is that of one run: it begins afresh with each, except after one was loaded.

    `fit` puts the attributes back if it fails before its first step, so that a state that was loaded is not lost. What
    the attributes hold is not copied for that: only steps and epochs may change it in place.
    """

    _resumes = False

    def _begin_afresh(self) -> None:
        """Forget the state of an earlier run."""
        raise NotImplementedError

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        if not self._resumes:
            self._begin_afresh()
        self._resumes = False

    def on_fit_end(self, trainer: TrainerView) -> None:
        """A state that was loaded within the run belongs to that run."""
        self._resumes = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next run goes on with what is loaded."""
        self._resumes = True


class CallbackList:
    """Calls callbacks in order, and only those that override the hook.

    Args:
        callbacks: The callbacks.
        trainer: What every hook is given. It is referenced weakly, because it holds this list: a trainer that is
            dropped is freed at once, and with it the memory of the model and the workers of its loaders.

    Attributes:
        callbacks: The callbacks, in the order in which they are called.

    Raises:
        TypeError: Something else than a callback is among them.

    Example:
        >>> class Greeting(Callback):
        ...     def on_fit_start(self, trainer):
        ...         print("hello", trainer)
        >>> class Trained:
        ...     __str__ = lambda self: "trainer"
        >>> trainer = Trained()
        >>> CallbackList([Greeting()], trainer).call("on_fit_start")
        hello trainer
    """

    def __init__(self, callbacks: Iterable[Callback], trainer: TrainerView) -> None:
        self.callbacks = list(callbacks)
        self._trainer = weakref.ref(trainer)
        self._in_fit: list[Callback] = []  # those whose `on_fit_start` returned
        self._trained: dict[str, Any] | None = None  # the weights set aside while others are in the model
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: got {callback!r}; give instances of mxtorch.callbacks.Callback")

    def __getstate__(self) -> dict[str, Any]:
        """All but the fit that is going on, which a copy does not go on with."""
        return vars(self) | {"_trainer": self._trainer(), "_in_fit": [], "_trained": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_trainer": weakref.ref(state["_trainer"])})

    @property
    def trainer(self) -> TrainerView:
        """What every hook is given.

        Raises:
            ReferenceError: Nothing else holds it any more.
        """
        trainer = self._trainer()
        if trainer is None:
            raise ReferenceError("the trainer of these callbacks is gone; keep a reference to it")
        return trainer

    @property
    def of_run(self) -> list[CallbackOfRun]:
        """The callbacks whose state is that of one run."""
        return [callback for callback in self.callbacks if isinstance(callback, CallbackOfRun)]

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

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """As `running("fit")`; before the ends are called, the weights that the run leaves are put into the model."""
        with contextlib.ExitStack() as ends:
            ends.callback(self._forget_fit)
            for callback in self.callbacks:
                callback.on_fit_start(self.trainer)
                self._in_fit.append(callback)
                ends.callback(callback.on_fit_end, self.trainer)
            ends.callback(self._leave_weights)
            yield

    @contextlib.contextmanager
    def judged_weights(self) -> Iterator[Mapping[str, Any]]:
        """In the block, the model has the weights that are judged; after it the trained ones, bit for bit.

        Yields:
            The trained values of what was replaced, by names of `model.state_dict()`; empty where nothing was.
        """
        if self._trained is not None:
            yield self._trained
            return
        optimizers = [self.trainer.optimizer, *self.trainer.other_optimizers.values()]
        offered = self._offered("judged_weights")
        moving = schedule_free.at_training_point(optimizers)
        if not offered and not moving:
            yield {}
            return
        model = self.trainer.model
        names = model.state_dict() if moving else {name for weights in offered for name in weights.values}
        self._trained = copies(model, names)
        try:
            with schedule_free.evaluation_point(optimizers):
                for weights in offered:
                    put(model, weights.values)
                yield self._trained
        finally:
            put(model, self._trained)
            self._trained = None

    def _offered(self, kind: str) -> list[Weights]:
        """The weights that the callbacks of the current fit offer."""
        offered = [getattr(callback, kind)(self.trainer) for callback in self._in_fit]
        return [weights for weights in offered if weights is not None]

    def _leave_weights(self) -> None:
        """Put the weights that the run leaves into the model, and print which ones these are."""
        trainer = self.trainer
        best = self._offered("best_weights")
        offered = [*self._offered("judged_weights"), *best]
        current_run(trainer).left_best = bool(best)
        if offered:
            moving = schedule_free.at_training_point([trainer.optimizer, *trainer.other_optimizers.values()])
            names = trainer.model.state_dict() if moving else {name for weights in offered for name in weights.values}
            trained = copies(trainer.model, names)
            for part in moving:  # before the weights are put in, which it would move from there
                part.eval()
            for weights in offered:
                put(trainer.model, weights.values)
            self._trained = trained
        reports = [line for callback in self._in_fit if (line := callback.report(trainer))]
        if reports and trainer.progress and trainer.engine.is_main:
            left = offered[-1].description if offered else f"the weights of epoch {trainer.epoch}"
            print(f"{'; '.join(reports)}. The model has {left}.")

    def _forget_fit(self) -> None:
        self._in_fit, self._trained = [], None

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


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Copies of entries of a model's state_dict, by name."""
    live = model.state_dict()
    return {
        name: live[name].detach().clone() if isinstance(live[name], Tensor) else copy.deepcopy(live[name])
        for name in names
    }


def put(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Put entries of a model's state_dict into it; other entries stay as they are."""
    live = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            if isinstance(value, Tensor):
                live[name].copy_(value)
    other = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    if other:  # what `get_extra_state` of a module gave
        model.load_state_dict(other, strict=False)
