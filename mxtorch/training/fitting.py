"""One call of `Trainer.fit`, from its arguments to the loop: check, rehearse, prepare the run, resume, train."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mxtorch._checks import check_data, check_integer
from mxtorch.checkpointing.contents import undone_without_a_step
from mxtorch.checkpointing.resume import CheckpointFolder, Rollback, check_arguments
from mxtorch.data.sharding import check_enough
from mxtorch.optim import schedule_free
from mxtorch.optim.external_scheduler import mode_of
from mxtorch.optim.run_schedule import check_end, set_run_schedule
from mxtorch.training.agreement import description_of_processes
from mxtorch.training.data import Feed
from mxtorch.training.epoch_lengths import EpochLengths
from mxtorch.training.interruption import Interruption
from mxtorch.training.limits import Limits, ValidateEvery, figure_of, validation_sets, without_set
from mxtorch.training.loop import Loop, place_of_next
from mxtorch.training.modes import preserved_modes
from mxtorch.training.monitor import check_watched
from mxtorch.training.rehearsal import rehearse_validations
from mxtorch.training.run import Run
from mxtorch.training.saving import Saving, fingerprint
from mxtorch.training.step import StepRunner, StepSettings


@dataclass(frozen=True)
class FitArguments:
    """The arguments of `Trainer.fit`; their meaning is explained there."""

    train_data: Iterable[Any]
    val_data: Iterable[Any] | Mapping[str, Iterable[Any]] | None
    epochs: int | None
    lr: Any
    schedule: Any
    schedule_every: Literal["step", "epoch"] | None
    schedule_monitor: str | None
    steps_per_epoch: int | None
    resume: str | Path | None
    auto_accumulate: bool
    max_steps: int | None
    max_time: float | datetime.timedelta | None
    validate_every: ValidateEvery
    val_batches: int | None


@dataclass(frozen=True)
class _Plan:
    """What the arguments mean, after all checks that need no computation.

    Attributes:
        train_data: This process's share of the training data.
        validation: This process's shares of the validation sets, by the prefix of their figures.
        epochs: Passes over the training data.
        limits: Where the run ends before its epochs are over, and when it validates.
        most_steps: Optimizer steps after which an epoch is cut; None where the data end it.
        lengths: The optimizer steps of each epoch.
        total_steps: Optimizer steps of the run; None where the data have no length.
        watched: The figure that a scheduler watches; None for the loss.
    """

    train_data: Iterable[Any]
    validation: dict[str, Any]
    epochs: int
    limits: Limits
    most_steps: int | None
    lengths: EpochLengths
    total_steps: int | None
    watched: str | None


@dataclass(frozen=True)
class Fitting:
    """Prepares the run of one `fit`, and trains.

    Attributes:
        arguments: What `fit` was called with.
        saving: Model, optimizers, engine, callbacks, history and counts, and how a checkpoint is made of them.
        settings: How a step is taken.
        metrics: The metrics of validation, a `torchmetrics.MetricCollection`, or None.
        checkpoints: The folders in which callbacks save checkpoints.
        reports: Whether notes are printed.
    """

    arguments: FitArguments
    saving: Saving
    settings: StepSettings
    metrics: Any
    checkpoints: Sequence[CheckpointFolder]
    reports: bool

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Loop]:
        """A context manager: the loop of the run, ready to train in the block.

        If an error occurs before the first step of the run, everything is put back. A signal that comes in the block
        ends the run after its step. After the block, the model is in the modes that it had before.

        Raises:
            ValueError: An argument is wrong, or the first validation batch can't be evaluated.
        """
        context, position, callbacks = self.saving.context, self.saving.position, self.saving.callbacks
        plan = self._plan()
        # training_step steps other optimizers itself, so with them the first failed step has changed weights.
        before = context.capture(plan.train_data, before_first_step=not context.other_optimizers)
        with (
            preserved_modes(context.model),
            Interruption() as interruption,
            undone_without_a_step(before, position, callbacks.of_run),
            schedule_free.evaluated_afterwards(context.optimizers),
        ):
            figures: list[str] | None = []
            if plan.validation:
                wants_trial = self.arguments.resume in (None, "auto")
                rehearsed = (context, plan.validation, self.metrics, callbacks, before)
                figures = rehearse_validations(*rehearsed) if wants_trial else None
            run = self._run(plan, interruption)
            run.expect(figures, train_metrics=self.saving.train_metrics is not None)
            yield self._loop(run, interruption)

    def train(self, loop: Loop) -> None:
        """Take the run to the place of its checkpoint if it resumes, and train to its end.

        Args:
            loop: What `prepared` gave.
        """
        run, context, resume = loop.run, self.saving.context, self.arguments.resume
        with _noted_if_broken_off(run), self.saving.callbacks.fitting():
            if resume is not None and (file := self.saving.go_on(run, resume, self.checkpoints)) and self.reports:
                print(f"resumed from {file}: step {run.position.step}, epoch {run.epochs_done + 1}/{run.epochs}")
            check_end(context.optimizer, run.scheduler, run.steps_to_come, run.epochs_to_come)
            loop.run_epochs()
        if self.reports and (words := run.ended_early()):
            print(words)

    def _plan(self) -> _Plan:
        """Check the arguments, and derive the lengths of the run and each process's share of the data.

        Raises:
            ValueError: An argument is wrong.
        """
        given, engine, settings = self.arguments, self.saving.context.engine, self.settings
        validates = given.val_data is not None
        bounds = (given.epochs, given.max_steps, given.max_time, given.validate_every, given.val_batches)
        limits = Limits.checked(*bounds, validates=validates)
        most_steps = None if given.steps_per_epoch is None else check_integer(given.steps_per_epoch, "steps_per_epoch")
        check_data(given.train_data, "train_data", passes=1)
        train_data = engine.share(given.train_data)

        lengths = EpochLengths(train_data, settings.accumulations, most_steps)
        epochs = limits.epochs(given.epochs, lengths)
        check_data(given.train_data, "train_data", passes=epochs if most_steps is None else 1)
        validations = epochs if given.validate_every == "epoch" else max(epochs, 2)
        validation: dict[str, Any] = engine.share(validation_sets(given.val_data, passes=validations))
        check_enough(train_data, engine.world_size)
        watches = mode_of(given.schedule) is not None and not (given.schedule_monitor or "").startswith("train/")
        limits = limits.of_run(epochs, lengths, watches=watches)
        total_steps = limits.total_steps(epochs, lengths)
        if given.auto_accumulate and engine.shards:
            raise ValueError("auto_accumulate: fsdp2 can't take it; give the loader a smaller batch_size")
        check_arguments(self.checkpoints, given.resume, settings.on_nonfinite, given.schedule)
        watched = None if given.schedule_monitor is None else figure_of(given.schedule_monitor, validation)
        plain = None if watched is None else without_set(watched, validation)
        check_watched(mode_of(given.schedule), plain, validates, self.metrics, self.saving.train_metrics)
        return _Plan(train_data, validation, epochs, limits, most_steps, lengths, total_steps, watched)

    def _run(self, plan: _Plan, interruption: Interruption) -> Run:
        """The run, with its rate and its schedule in force."""
        given, context, position, settings = self.arguments, self.saving.context, self.saving.position, self.settings
        scheduler = set_run_schedule(
            context.optimizer, given.lr, given.schedule, given.schedule_every, plan.total_steps, plan.watched
        )
        run = Run(
            position,
            position.count_fit(resumes=given.resume is not None),
            plan.epochs,
            plan.lengths(0),
            Feed(plan.train_data, interruption.check),
            {prefix: Feed(data) for prefix, data in plan.validation.items()},
            scheduler,
            most_steps=plan.most_steps,
            limits=plan.limits,
            lengths=plan.lengths if settings.accumulate_from else None,
            resumes=given.resume is not None,
        )
        run.fingerprint = fingerprint(run, context, settings, given.lr, given.schedule)
        return run

    def _loop(self, run: Run, interruption: Interruption) -> Loop:
        """The loop of the run. On several processes, their number and the size of a step are printed."""
        saving, context, settings = self.saving, self.saving.context, self.settings
        if self.reports and context.engine.world_size > 1:
            print(description_of_processes(context.engine, run.feed.data, settings.accumulate))
        roll_back: Rollback | None = None
        if settings.on_nonfinite == "rollback":
            load = functools.partial(saving.resume, run)
            roll_back = Rollback(self.checkpoints, load, context.optimizer, saving.position, run)
        return Loop(
            context,
            settings,
            run,
            StepRunner(
                context,
                settings,
                auto_accumulate=self.arguments.auto_accumulate,
                place=lambda window: place_of_next(run, window),
            ),
            saving.callbacks,
            saving.history,
            self.metrics,
            saving.train_metrics,
            interruption,
            roll_back,
        )


@contextlib.contextmanager
def _noted_if_broken_off(run: Run) -> Iterator[None]:
    """Note an error or a signal before the run is over: the next `fit` with `resume` goes on with this run."""
    try:
        yield
    except BaseException:
        run.position.broken_off = not run.ended or run.unvalidated
        raise
