"""The training loop, to be read from top to bottom: epochs, then steps."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mxtorch.engines.nonfinite import BadNumberError
from mxtorch.optim import schedule_free
from mxtorch.training import diagnosis
from mxtorch.training.callback import CallbackList
from mxtorch.training.context import Context
from mxtorch.training.data import Window, window_of, windows
from mxtorch.training.evaluation import evaluate
from mxtorch.training.history import History
from mxtorch.training.interruption import Interrupted, Interruption
from mxtorch.training.limits import FirstBatches
from mxtorch.training.metrics import LossMeter
from mxtorch.training.modes import set_training_mode
from mxtorch.training.rehearsal import first_look
from mxtorch.training.run import Run
from mxtorch.training.step import StepRunner, StepSettings


@dataclass
class Loop:
    """Trains a model for the epochs of a run.

    Attributes:
        context: The model with everything that computes and changes it.
        settings: How a step is taken.
        run: The lengths and the data, and where the run stands.
        runner: Takes the steps.
        callbacks: Called at each event.
        history: Gets a row an epoch, and a record every `log_every` steps.
        metrics: Of validation; a `torchmetrics.MetricCollection` or None.
        train_metrics: Of training, likewise.
        interruption: Notes signals that end the run.
        roll_back: Takes the run back to its last checkpoint after a number that is not finite; None raises instead.
    """

    context: Context
    settings: StepSettings
    run: Run
    runner: StepRunner
    callbacks: CallbackList
    history: History
    metrics: Any
    train_metrics: Any
    interruption: Interruption
    roll_back: Callable[[FloatingPointError], None] | None = None

    def run_epochs(self) -> None:
        """Train and validate until all epochs are over, or a callback stops the run."""
        run = self.run
        with contextlib.ExitStack() as ends:
            ends.callback(run.feed.release)
            if run.epochs_done == 0 and run.meter is None and run.figures is None:  # not resumed
                look = first_look(self.context, run.feed.data, self.train_metrics)
                self.runner.first_look = ends.enter_context(look)
            while run.within_epoch or not self._has_ended():
                run.begin_epoch()
                try:
                    with self.callbacks.running("epoch"):
                        self._run_epoch()
                except FloatingPointError as error:
                    if self.roll_back is None:
                        raise
                    self.roll_back(error)
            if run.unvalidated:
                self._validate_end()

    def _has_ended(self) -> bool:
        """Whether no epoch is to come; the processes agree about it, since each has its own clock and callbacks."""
        run, agree = self.run, self.context.engine.agree
        run.ended = agree(run.over)
        if run.ended:
            run.stopping = agree(run.stopping)
        return run.ended

    def _run_epoch(self) -> None:
        """Train, validate, write the epoch's row, tell the callbacks."""
        run = self.run
        try:
            figures = run.figures or self._train_epoch()
            row = {"epoch": float(run.position.epoch + 1), **figures}
            run.unvalidated = not self.context.engine.agree(run.end_is_validated)
            row |= {} if run.unvalidated else self._validate()
        except Interrupted:
            self.callbacks.call("on_interrupt")
            raise
        run.stopping = self.context.engine.agree(run.stopping)  # checkpoints of this epoch hold it
        run.scheduler.after_epoch(row, run.figure("val/loss"))
        row |= {"step": float(run.position.step), "learning_rate": self.context.optimizer.learning_rate}
        row["seconds"] = time.perf_counter() - run.started
        self.history.rows.append(row)
        run.end_epoch()
        self.callbacks.call("on_epoch_complete", row)

    def _validate(self) -> dict[str, float]:
        """The figures of all validation sets; a pass that a signal breaks off gives its random numbers back."""
        run, batches = self.run, self.run.limits.val_batches
        figures: dict[str, float] = {}
        for prefix, feed in run.validation.items():
            data = feed.data if batches is None else FirstBatches(feed.data, batches)
            feed.begin_pass()
            try:
                figures |= evaluate(self.context, data, self.callbacks, self.metrics, prefix, check=self._check)
            except Interrupted:
                for begun in run.validation.values():
                    begun.rewind_pass()
                    if begun is feed:
                        break
                raise
            feed.end_pass(batches)
        return figures

    def _validate_end(self) -> None:
        """Validate the end of a run that was stopped after an epoch without a validation; its row gets the figures."""
        run = self.run
        run.epoch = run.epochs_done - 1  # a run that was resumed at its end has begun no epoch
        try:
            figures = self._validate()
        except Interrupted:
            self.callbacks.call("on_interrupt")
            raise
        run.unvalidated = False
        self.history.rows[-1] |= figures
        self.callbacks.call("on_validated", figures)

    def _validate_within_epoch(self) -> None:
        """Validate between two steps, tell the callbacks, and leave the time out of the speed of training."""
        run, started = self.run, time.perf_counter()
        assert run.meter is not None
        figures = self._validate()
        run.validated_at = run.position.step
        self.history.records.append({"step": float(run.position.step), **figures})
        self.callbacks.call("on_validated", figures)
        run.meter.leave_out(time.perf_counter() - started)

    def _train_epoch(self) -> dict[str, float]:
        """Take the steps of an epoch, or of what is left of it after a resume; returns its figures."""
        run, runner, position = self.run, self.runner, self.run.position
        log_every = self.settings.log_every
        engine = self.context.engine
        processes = engine.world_size
        after_step = run.scheduler.after_step if run.scheduler.every_step else None
        listeners, trainer = self.callbacks.listeners("on_step"), self.callbacks.trainer
        set_training_mode(self.context.model)
        schedule_free.set_training_point(self.context.optimizers)
        meter = run.open_meter(self.train_metrics)
        runner.metrics = run.metrics
        runner.micro_batches = run.micro_batches
        runner.begin_pass()
        bounded = run.is_bounded
        agree = engine.agree if bounded else engine.agree_soon  # a run that is bounded ends at its step, not soon after
        if bounded and run.validation_is_due and not run.ending:  # the run was saved at a step before its validation
            run.feed.go_back()  # now, because it brings the random numbers of the step, from which validation draws
            self._validate_within_epoch()

        for window in self._windows():
            is_last = meter.count + 1 == run.steps_per_epoch
            logs = is_last or (position.step + 1) % log_every == 0
            loss, result = runner.step(window, measure_norm=logs)
            position.step += 1
            run.micro_batches = runner.micro_batches
            if loss is None:
                position.skipped_steps += 1
                meter.skip()
            else:
                meter.add(loss, window.samples * processes, result.bad, runner.weight)
            if result.taken and after_step is not None:
                after_step()
            if logs:
                self._log(meter, result.gradient_norm)
            for listener in listeners:
                listener(trainer)
            if bounded and run.validation_is_due and not agree(self._ends_here()):
                self._validate_within_epoch()
            if agree(self._ends_here()):
                self._check()
                run.ending, run.stopping = True, engine.agree(run.stopping)
                break
            if bounded and run.cut:
                break

        self._check_count(meter.count)
        if meter.unread:
            self._log(meter, None)
        figures = run.end_training()
        self.callbacks.call("on_epoch_trained")
        return figures

    def _check_count(self, count: int) -> None:
        """Raise if the epoch had no steps; warn if the schedule was made for another number of them."""
        run = self.run
        if count == 0:
            what = (
                "it has ended, and can be read only once" if run.epochs_done else "got a loader that yields no batches"
            )
            raise ValueError(f"train_data: {what}; give {'more batches' if run.epochs_done else 'it at least one'}")
        if not self.context.engine.agree(self.runner.has_loss is not False):
            raise ValueError("training_step: it returned None for every batch, so nothing is trained; return the loss")
        if run.steps_per_epoch in (None, count) or run.cut or run.length_differs:
            return
        schedule = self.context.optimizer.schedule or run.scheduler.scheduler
        if getattr(schedule, "total_steps", None) is not None:
            run.length_differs = True
            warnings.warn(
                f"train_data: its length promised {run.steps_per_epoch} steps an epoch, and epoch {run.epoch + 1} had "
                f"{count}. The schedule was made for the promise and will not end with the run: give the schedule its "
                "total_steps, or fit steps_per_epoch.",
                stacklevel=2,
            )

    def _windows(self) -> Iterator[Window]:
        """The windows of an epoch, or of what is left of it after a resume.

        The loader ends the epoch, unless the epoch goes on in a pass over the data that an earlier epoch had to leave
        open: then it takes what it lacks from the next pass.
        """
        run, feed, count = self.run, self.run.feed, self.context.count_samples
        accumulate = self.settings.accumulate_in(run.epoch)
        assert run.meter is not None
        if run.cut:  # it was saved after its last step
            feed.go_back()
            return
        taken = run.meter.count * accumulate
        goes_on = feed.is_open and run.most_steps is not None and feed.batches > taken
        feed.batches_before = feed.batches - taken if feed.is_open else 0
        yield from windows(feed.open(run.position.epoch), accumulate, count)
        if goes_on:
            feed.batches_before = -run.meter.count * accumulate
            yield from windows(feed.open(run.position.epoch), accumulate, count)

    def _ends_here(self) -> bool:
        """Whether this process knows a reason to end the epoch after the step just taken; `agree` makes it that of all.

        No decision before that may depend on it, or the processes would ask one another different questions.
        """
        run = self.run
        return self.interruption.received is not None or run.ending or run.out_of_time

    def _check(self) -> None:
        """End the run here if a signal asked for it."""
        self.interruption.check(self.context.engine.agree)

    def _log(self, meter: LossMeter, gradient_norm: Tensor | None) -> None:
        """Read the losses since the last reading, and give the record to history and callbacks."""
        record = self._read_losses(meter)
        for name, rate in zip(self.context.optimizer.group_names, self.context.optimizer.learning_rates, strict=True):
            record[f"learning_rate/{name}"] = rate
        for name, optimizer in self.context.other_optimizers.items():
            record[f"learning_rate/{name}"] = optimizer.learning_rate
        if gradient_norm is not None:
            record["gradient_norm"] = float(gradient_norm)
        self.history.records.append({"step": float(self.run.position.step), **record})
        self.callbacks.call("on_log", record)

    def _read_losses(self, meter: LossMeter) -> dict[str, float]:
        """The meter's figures; on an accelerator this is where bad steps are found.

        Raises:
            FloatingPointError: A loss or gradient was not finite; step, batch and layer are named.
        """
        try:
            record, bad_steps = meter.read(skips=self.settings.on_nonfinite == "skip")
        except BadNumberError as error:
            assert meter.bad_step is not None
            self.context.engine.forget_bad_steps()
            raise FloatingPointError(self._late_message(meter.bad_step, meter.count, str(error))) from None
        if bad_steps:
            self.run.position.skipped_steps += bad_steps
            self.context.optimizer.current_steps -= bad_steps
        return record

    def _late_message(self, step: int, count: int, reason: str) -> str:
        """The message for a step that was found to be bad some steps later; its batches are read again."""
        run, accumulate = self.run, self.settings.accumulate_in(self.run.epoch)
        first_batch = (step - 1 - (run.position.step - count)) * accumulate
        again = run.feed.read_again(first_batch, accumulate)
        window = window_of(again, self.context.count_samples) if again else None
        return diagnosis.not_finite_late(self.context, window, place_of(step, first_batch, accumulate), reason)


def place_of_next(run: Run, window: Window) -> str:
    """Where the window that was read last is, in words."""
    first_batch = run.feed.batches - run.feed.batches_before - len(window.batches)
    return place_of(run.position.step + 1, first_batch, len(window.batches))


def place_of(step: int, first_batch: int, batches: int) -> str:
    """A step and its batches in words; steps count from 1, batches of an epoch from 0."""
    last_batch = first_batch + batches - 1
    numbers = f"batch {first_batch}" if batches == 1 else f"batches {first_batch} to {last_batch}"
    return f"step {step} ({numbers} of the epoch)"
