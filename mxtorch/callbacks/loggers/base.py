"""The protocol of loggers, and when each of its methods is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxtorch.callbacks.run_settings import run_settings
from mxtorch.training.callback import Callback
from mxtorch.training.trainer_view import TrainerView


class Logger(Callback):
    """The base of loggers: override `start`, `log` and `finish`; and `resume`, where the library can't drop figures.

    A logger is started before the first epoch, with the settings of the run. It is given the figures of every
    `log_every` steps, of validations within an epoch, and of each epoch, with the step that they belong to.
    `Trainer.close` finishes it; until then a further `fit` goes on in the same run. Only the main process logs.

    A checkpoint holds what `start` returns, by which a run that is resumed finds its place. Steps after the checkpoint
    are taken again, with the same figures. A logger drops in `start` what it has of them, or says in `resume` what it
    has, and is not given that again. A rollback (`on_nonfinite="rollback"`) takes steps again at another rate, so their
    figures are others, and are logged beside the first ones where a library can't drop these.

    Attributes:
        identity: What `start` returned; None before.

    Example:
        >>> class Printer(Logger):
        ...     def start(self, settings, identity, step):
        ...         return "printed"
        ...     def log(self, figures, step):
        ...         print(step, sorted(figures))
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> net = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> trainer = Trainer(net, nn.MSELoss(), optimizer, callbacks=[Printer()], progress=False)
        >>> history = trainer.fit([(torch.randn(8, 4), torch.randn(8, 2))])  # doctest: +ELLIPSIS
        1 ['gradient_norm', 'learning_rate/group0', 'samples_per_second', 'train/loss']
        1 ['epoch', 'learning_rate', 'samples_per_second', 'seconds', 'step', 'train/loss']
    """

    identity: str | None = None
    _is_open = False
    _begins = False  # a fit has begun, and its first epoch has not
    _goes_on = False  # this run goes on from a checkpoint, and figures after it were not asked for
    _there: int | Mapping[str, int] | None = None  # what `resume` said

    def start(self, settings: Mapping[str, Any], identity: str | None, step: int) -> str:
        """Open a run, or go on with one.

        Args:
            settings: Model, optimizer, rate, schedule and so on, as plain values.
            identity: What `start` returned when the checkpoint was written that is resumed; None for a new run.
            step: The optimizer step from which the run goes on; figures of later steps will be given again.

        Returns:
            What identifies the run, for a later resume.
        """
        raise NotImplementedError

    def resume(self, step: int) -> int | Mapping[str, int] | None:
        """What the run has already of the figures that will be given again; called after `start`.

        Args:
            step: The optimizer step of the checkpoint from which the run goes on.

        Returns:
            The last step that the run has figures of: those of earlier steps are left out from now on. (The last step
            itself is logged again, as the run may have been broken off between its figures and those of an epoch that
            ends with it.) Or the last step of each figure by its name, which are left out up to that step. None, the
            default, where there are none.
        """
        return None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write figures of an optimizer step."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is held back, and let go of files and connections."""

    def on_fit_start(self, trainer: TrainerView) -> None:
        """What is loaded from now until the first epoch is a checkpoint that the run goes on from.

        What was loaded before, by `Trainer.load`, is where a new run begins, with figures of its own.
        """
        self._begins, self._goes_on, self._there = True, False, None

    def on_resume(self, trainer: TrainerView) -> None:
        """A rollback within the run brings other figures."""
        if not self._begins:
            self._goes_on, self._there = False, None

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Start with the first epoch, when all states are loaded."""
        self._begins = False
        if not self._is_open and trainer.engine.is_main:
            self.identity = self.start(run_settings(trainer), self.identity, trainer.step)
            self._is_open = True
        if self._goes_on and self._is_open:
            self._there = self.resume(trainer.step)
        self._goes_on = False

    def on_log(self, trainer: TrainerView, record: Mapping[str, float]) -> None:
        """Log the figures of the steps since the last record."""
        self._log(trainer, record)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Log a validation within an epoch."""
        self._log(trainer, figures)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Log the figures of the epoch."""
        self._log(trainer, row)

    def state_dict(self) -> dict[str, Any]:
        """What identifies the run."""
        return {} if self.identity is None else {"identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint.

        Raises:
            ValueError: The state is malformed.
        """
        if not isinstance(state["identity"], str):
            raise ValueError(f"the identity of its run is {state['identity']!r}")
        if self._is_open and state["identity"] != self.identity:
            self.close()
        self.identity = state["identity"]
        self._goes_on = True

    def close(self) -> None:
        """Finish, if it was started; a further `fit` goes on with the same run."""
        if self._is_open:
            self._is_open = False
            self.finish()

    def __getstate__(self) -> dict[str, Any]:
        """Without the run, which belongs to this process: a copy is a run of its own."""
        return vars(self) | {"identity": None, "_is_open": False, "_goes_on": False, "_there": None}

    def _log(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        if not self._is_open:
            return
        step, there = trainer.step, self._there
        if isinstance(there, int):
            figures = {} if step < there else figures
        elif there is not None:
            figures = {name: value for name, value in figures.items() if step > there.get(name, -1)}
        if figures:
            self.log(dict(figures), step)
