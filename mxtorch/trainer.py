"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mxtorch import (
    batches,
    checkpoint,
    evaluation,
    nonfinite,
    rate_free,
    resuming,
    schedules,
    several,
    snapshot,
    state,
    stepping,
    steps,
)
from mxtorch._validation import closest, positive_rate
from mxtorch.applications import Applications
from mxtorch.callbacks import Callback, CallbackList, Checkpoint, ProgressBar, TensorBoard
from mxtorch.checks import check_data, check_integer, check_parameters
from mxtorch.engine import LocalEngine, StepResult
from mxtorch.feed import Feed
from mxtorch.history import History
from mxtorch.lr_finder import search
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.search import Request
from mxtorch.meters import LossMeter
from mxtorch.metrics import MetricBuffer, as_collection
from mxtorch.optim import ScheduledOptim
from mxtorch.portable import Attributes
from mxtorch.rates import set_rates
from mxtorch.run import Run, RunPlan, steps_in_epoch
from mxtorch.signals import Interrupted, Interruption
from mxtorch.steps import StepOutput


class Trainer(Applications):
    """Trains a model, and finds the learning rate to train it with.

    Nothing is wrapped or hidden: `trainer.model` is the module that was handed in, `trainer.optimizer` a torch
    optimizer. Override `training_step` (and `evaluation_step`) for anything that `(x, y)` or dictionary batches
    and one loss do not cover; `find_lr` and `fit` call the same one.

    Args:
        model: Any module. It is moved to the device in place.
        loss: `loss(outputs, targets) -> scalar`. None for models that return their own `.loss` (Hugging Face) and
            for an overridden `training_step`.
        optimizer: A `ScheduledOptim`, or any torch optimizer, which is wrapped in one.
        other_optimizers: Further ones by name, for a `training_step` that steps them itself (see
            docs/several-optimizers.md): they are on the device, in checkpoints and in what `find_lr` puts back.
        metrics: torchmetrics for validation: a metric, a dict of them by name, or a MetricCollection.
        train_metrics: The same for training batches. They are computed from the outputs of the training steps, so
            in training mode and while the weights change.
        callbacks: Instances of `mxtorch.callbacks.Callback`, called in order.
        log_dir: A folder for TensorBoard, as `"runs/dogs"`; None writes no file.
        device: `"auto"` takes CUDA, else MPS, else the CPU.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (with a gradient scaler); parameters stay in float32.
        accumulate: Batches to an optimizer step. Each weighs as many samples as it holds, so a window equals one
            large batch, the last and shorter one too.
        clip_grad_norm: Clip the norm of all gradients together to this.
        clip_grad_value: Clip every single value of the gradients to this, before the norm.
        channels_last: Memory format for images; `"auto"` uses it for convolutional networks where it pays.
        compile: True, or arguments for `torch.nn.Module.compile`.
        on_nonfinite: A loss or gradient that is NaN or infinite `"raise"`s, and the step, its batches and the first
            bad layer are named; or the step is left out and counted (`"skip"`; on an accelerator use a fused
            optimizer, others are undone from a copy of weights and state); or the run goes back to its last
            checkpoint and on from there at half the rate (`"rollback"`).
        seed: Seeds Python, NumPy and torch now.
        log_every: Steps between two readings of loss, rate, gradient norm and speed. Only then is an accelerator
            waited for.
        progress: Show a progress bar (in a terminal or notebook) and a line for each epoch.

    Raises:
        ValueError: The model has no trainable parameters, the optimizer holds none of them, the device or
            precision is not to be had, the log_dir can't be written.
        TypeError: An argument is of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        optimizer: Optimizer,
        *,
        other_optimizers: Mapping[str, Optimizer] | None = None,
        metrics: Any = None,
        train_metrics: Any = None,
        callbacks: Iterable[Callback] = (),
        log_dir: str | Path | None = None,
        device: str | torch.device = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | dict[str, Any] = False,
        on_nonfinite: Literal["raise", "skip", "rollback"] = "raise",
        seed: int | None = None,
        log_every: int = 50,
        progress: bool = True,
    ) -> None:
        check_integer(accumulate, "accumulate")
        check_integer(log_every, "log_every")
        if clip_grad_norm is not None:
            clip_grad_norm = positive_rate(clip_grad_norm, "clip_grad_norm")
        if clip_grad_value is not None:
            clip_grad_value = positive_rate(clip_grad_value, "clip_grad_value")
        if on_nonfinite not in nonfinite.POLICIES:
            raise ValueError(f"on_nonfinite: got {on_nonfinite!r}{closest(str(on_nonfinite), nonfinite.POLICIES)}")
        if loss is not None and not callable(loss):
            raise TypeError(f"loss: got {loss!r}; give a function or module of (outputs, targets), or None")
        self.loss_module = loss if isinstance(loss, nn.Module) else None
        others = several.scheduled(other_optimizers)
        check_parameters(model, self.loss_module, optimizer, others.values())
        self.optimizer = optimizer if isinstance(optimizer, ScheduledOptim) else ScheduledOptim(optimizer)
        self.other_optimizers = others
        rate_free.warn_of_norms(model, self.optimizers)
        metric_collection = as_collection(metrics, "metrics")
        train_collection = as_collection(train_metrics, "train_metrics")
        callbacks = CallbackList(callbacks).callbacks
        self.engine = LocalEngine(device, precision, channels_last=channels_last, compile=compile)
        reporters: list[Callback] = [ProgressBar()] if progress else []
        if log_dir is not None:
            reporters.append(TensorBoard(log_dir))

        if seed is not None:
            state.seed_everything(seed)
        self.model = model
        self.loss = loss
        self.engine.prepare(model, self.loss_module, *self.optimizers)
        self.metrics = None if metric_collection is None else metric_collection.to(self.engine.device)
        self.train_metrics = None if train_collection is None else train_collection.to(self.engine.device)
        # A checkpoint holds what the other callbacks did in the step, so it comes after them.
        in_order = sorted([*callbacks, *reporters], key=lambda callback: isinstance(callback, Checkpoint))
        self.callbacks = CallbackList(in_order)
        self.log_dir = log_dir
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_value = clip_grad_value
        self.log_every = log_every
        self.progress = progress
        self.history = History()
        self.plan = RunPlan()
        self.run: Run | None = None
        self.step = self.epoch = self.skipped_steps = 0
        self.on_nonfinite = on_nonfinite
        self.micro_batches = 1  # the parts in which a batch is taken, for want of memory
        self.attributes = Attributes(
            {"model": model} | ({} if self.loss_module is None else {"loss": self.loss_module})
        )
        self.kept_buffers: nonfinite.KeptBuffers | None = None
        self._interruption = Interruption()
        self.auto_accumulate = False
        self.fits = 0
        self.skips_in_a_row = 0
        self.stopping = False
        self.sweeping = False
        self.first_batch = True  # until one batch of the current pass went through

    # ---------------------------------------------------------------- what a user overrides

    def training_step(self, batch: batches.Batch) -> Tensor | StepOutput:
        """The loss of one batch, a scalar that `backward` can be called on.

        Return a `StepOutput` to have training metrics computed too.

        Args:
            batch: What the loader yields, on the device.
        """
        return steps.supervised_step(self.model, self.loss, batch, check_labels=self._should_check_labels)

    def evaluation_step(self, batch: batches.Batch) -> Tensor | StepOutput:
        """Loss, outputs and targets of one batch of validation data; no gradient is recorded."""
        return steps.supervised_step(self.model, self.loss, batch, check_labels=self._should_check_labels)

    def prediction_step(self, batch: batches.Batch) -> Any:
        """The model's outputs for one batch. Of an `(x, y)` batch the y is left out."""
        return steps.predictions(self.model, batch)

    # ---------------------------------------------------------------- training

    def fit(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None = None,
        *,
        epochs: int = 1,
        lr: float | LRFinderResult | Literal["keep"] = "keep",
        schedule: str | schedules.Schedule | Callable[[int], float] | LRScheduler | None = None,
        schedule_every: Literal["step", "epoch"] | None = None,
        steps_per_epoch: int | None = None,
        resume: str | Path | None = None,
        auto_accumulate: bool = False,
    ) -> History:
        """Train.

        Each epoch, in this order: train, validate, callbacks (`on_epoch_complete`: early stop, checkpoint), log.

        Args:
            train_data: A DataLoader or any iterable of batches that can be iterated once an epoch.
            val_data: The same, for `evaluate` after each epoch.
            epochs: Passes over the training data.
            lr: The base learning rate of the first parameter group, the ratios between groups being kept; or what
                `find_lr` returned, of which the suggestion for this schedule is taken; or `"keep"`, which leaves
                the rates as they are. None is an error: it is what `found.suggestion` is where nothing was found.
            schedule: A schedule or its name (`"one_cycle"`), begun anew, its length filled in from this run; a
                function of the step; or a `torch.optim.lr_scheduler` scheduler made for this optimizer. None
                goes on with the optimizer's own.
            schedule_every: For a torch scheduler, and required there: whether `step()` is meant for every
                optimizer step or for every epoch.
            steps_per_epoch: Optimizer steps in an epoch, for data without a length; a longer epoch is cut there.
            resume: A checkpoint of this run, from which it goes on bit for bit, in mid-epoch too; or `"auto"`: the
                newest whole one that the `Checkpoint` callback finds in its folder, and none begins the run. See
                docs/checkpoints.md.
            auto_accumulate: When the device's memory is full, take each batch in two parts, then in four, and so on;
                the step is that of the whole batch.

        Returns:
            The history, also of earlier calls.

        Raises:
            ValueError: An argument is off, the data are empty, the checkpoint is of another run (CheckpointError), or
                the first batch can't be trained on; nothing has changed then.
            FloatingPointError: A loss or gradient is not finite; step, batch and layer are named.
            torch.OutOfMemoryError: The device's memory is full; the batch size is named.
            SystemExit: SIGTERM came: the step was finished, the `Checkpoint` callback has saved. The status is 143.
            KeyboardInterrupt: Likewise after Ctrl-C; a second Ctrl-C raises it at once.
        """
        check_integer(epochs, "epochs")
        check_data(train_data, "train_data", passes=epochs)
        if val_data is not None:
            check_data(val_data, "val_data", passes=epochs)
        checkpoints = resuming.check_arguments(self.callbacks.callbacks, resume, self.on_nonfinite, schedule)
        steps_per_epoch = steps_in_epoch(train_data, self.accumulate, steps_per_epoch)
        total_steps = None if steps_per_epoch is None else epochs * steps_per_epoch
        with (
            state.preserved_modes(self.model),
            Interruption() as self._interruption,
            snapshot.undone_without_a_step(self, train_data),
            rate_free.evaluated_afterwards(self.optimizers),
        ):
            scheduler = set_rates(self.optimizer, lr, schedule, schedule_every, total_steps)
            self.plan = RunPlan(epochs, steps_per_epoch, val_data is not None)
            self.fits += 1
            feed = Feed(train_data, self._interruption.check)
            validation = None if val_data is None else Feed(val_data)
            run = self.run = Run(self.fits, self.plan, feed, validation, scheduler, resumes=resume is not None)
            run.settings = resuming.settings_of(self, run, lr, schedule)
            self.auto_accumulate, self.stopping = auto_accumulate, False
            rollback = resuming.Rollback(checkpoints)
            with self.callbacks.running("fit", self):
                if resume is not None:
                    resuming.go_on(self, run, resume, checkpoints)
                while run.epochs_done < epochs and not self.stopping:
                    run.begin_epoch()
                    try:
                        with self.callbacks.running("epoch", self):
                            self._run_epoch(run)
                    except FloatingPointError as error:
                        if self.on_nonfinite != "rollback":
                            raise
                        rollback.go_back(self, run, error)
        return self.history

    def stop(self) -> None:
        """End the run after the current epoch; for callbacks."""
        self.stopping = True

    def _run_epoch(self, run: Run) -> None:
        try:
            figures = run.figures or self._train_epoch(run)
            row = {"epoch": float(self.epoch + 1), **figures}
            if run.validation is not None:
                run.validation.begin_pass()
                row |= self.evaluate(run.validation.data)
                run.validation.end_pass()
        except Interrupted:
            if run.validation is not None:
                run.validation.rewind_pass()
            self.callbacks.call("on_interrupt", self)
            raise
        run.scheduler.after_epoch(row)
        self.epoch += 1
        row |= {"step": float(self.step), "learning_rate": self.optimizer.learning_rate}
        row["seconds"] = time.perf_counter() - run.started
        self.history.rows.append(row)
        run.end_epoch()
        self.callbacks.call("on_epoch_complete", self, row)

    def _train_epoch(self, run: Run) -> dict[str, float]:
        state.set_training_mode(self.model)
        rate_free.set_training_point(self.optimizers)
        self.first_batch = True
        skips = self.on_nonfinite == "skip"
        self.kept_buffers = nonfinite.KeptBuffers(self._modules()) if skips else None
        on_step = self.callbacks.listeners("on_step")
        if run.trained:
            run.feed.skip_rest()
        meter = run.open_meter(self.step + 1, self.train_metrics)
        for window in () if run.trained else batches.windows(run.feed.open(), self.accumulate):
            last = meter.count + 1 == self.plan.steps_per_epoch
            logs = last or (self.step + 1) % self.log_every == 0
            loss, result = self.optimizer_step(window, metrics=run.metrics, measure_norm=logs)
            self.step += 1
            if loss is None:
                meter.skip()
            else:
                meter.add(loss, window.samples, result.bad)
            if result.taken:
                run.scheduler.after_step()
            if logs:
                self._log(meter, result.gradient_norm)
            for listener in on_step:
                listener(self)
            self._interruption.check()
            if last:
                break
        if meter.count == 0:
            raise ValueError("train_data: got a loader that yields no batches; give it at least one")
        if meter.unread:
            self._log(meter, None)
        return run.end_training()

    def optimizer_step(
        self, window: batches.Window, *, metrics: MetricBuffer | None = None, measure_norm: bool = False
    ) -> tuple[Tensor | None, StepResult]:
        """Gradients of a window of batches, then one step of the optimizer. Returns the window's mean loss.

        A step that was skipped because of its numbers has no loss. One that the memory can't hold is taken in parts.
        """
        return stepping.optimizer_step(self, window, metrics, measure_norm)

    def _log(self, meter: LossMeter, gradient_norm: Tensor | None) -> None:
        record = stepping.read_losses(self, meter)
        for index, rate in enumerate(self.optimizer.learning_rates):
            record[f"learning_rate/group{index}"] = rate
        for name, optimizer in self.other_optimizers.items():
            record[f"learning_rate/{name}"] = optimizer.learning_rate
        if gradient_norm is not None:
            record["gradient_norm"] = float(gradient_norm)
        self.history.records.append({"step": float(self.step), **record})
        self.callbacks.call("on_log", self, record)

    # ---------------------------------------------------------------- the learning rate

    def find_lr(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None = None,
        *,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_steps: int = 100,
        schedule: str | schedules.Schedule = "constant",
        training_steps: int | None = None,
        optimizer: str | Optimizer | None = None,
        watch: Callable[[], float | Tensor] | None = None,
    ) -> LRFinderResult:
        """Find a learning rate: the range test of Smith (2015, arXiv 1506.01186, section 3.3), then short trainings.

        The rate rises from `start_lr` to `end_lr`, evenly in its logarithm, over real optimizer steps, while the loss
        on held-out samples is watched. With 300 steps or more the sweep takes 80; the others go to heats: seven short
        trainings from the same state, on the same batches, judged by held-out samples (docs/lr-finder.md).
        Afterwards, also after an error or Ctrl-C, everything is bit for bit what it was: parameters, buffers,
        gradients, optimizer, scaler, random generators, modes, the loader's order. No file is written, except
        to `log_dir`.

        Args:
            train_data: What `fit` will be given. A loader shorter than the sweep is begun again.
            val_data: Where held-out samples come from. Without it a part of the training data, at most a third of a
                pass, is set aside for the search. Neither is used where `training_step` alone was overridden.
            start_lr: The first rate, of the first parameter group; the other groups keep their ratios to it.
            end_lr: The last rate. The sweep ends sooner when the loss diverges.
            num_steps: Optimizer steps to spend: 100 sweep the rate; 500 give the surest answer.
            schedule: What the rate is for: a constant rate and the peak of a one-cycle are not the same.
            training_steps: Optimizer steps of the training that the rate is for: longer ones bear lower rates. Only
                heats use it; None means 300.
            optimizer: The one whose rate is swept, of `other_optimizers`, by name; the others keep theirs. The
                trainer's own when left out.
            watch: Gives the loss to draw after each step, where it is not the one that `training_step` returns.

        Returns:
            The curve, the suggestion with its interval and status, and what other rules would have said.

        Raises:
            ValueError: An argument is off, the first batch can't be trained on, or `training_step` never steps the
                optimizer.
        """
        check_data(train_data, "train_data", passes=2)  # the data must still be there for fit
        if val_data is not None:
            check_data(val_data, "val_data", passes=2)
        swept = several.chosen(self.optimizer, self.other_optimizers, optimizer)
        request = Request.checked(start_lr, end_lr, num_steps, schedule, training_steps, swept, watch)
        result = search.find_lr(self, train_data, val_data, request)
        self.callbacks.call("on_lr_found", self, result)
        return result

    # ---------------------------------------------------------------- evaluation and prediction

    def evaluate(self, data: Iterable[Any], *, prefix: str = "val") -> dict[str, float]:
        """Loss (the mean over samples) and metrics on data; nothing is trained, modes come back as they were.

        Args:
            data: Batches, as for `fit`.
            prefix: Goes before the names: `{"val/loss": ..., "val/accuracy": ...}`.

        Raises:
            ValueError: The data are empty, or the first batch can't be evaluated.
        """
        return evaluation.evaluate(self, data, prefix)

    def predict(self, data: Iterable[Any], *, tta: evaluation.Augmentations = ()) -> Any:
        """The model's outputs for all batches, joined along the first dimension, on the CPU, in float32.

        Args:
            data: Batches of inputs, or of `(inputs, targets)`, of which the targets are left out.
            tta: Test-time augmentation: `"flip"`, or functions of a batch of inputs, such as transforms of torchvision.
                Outputs are the mean over the inputs as they are and each of these.

        Raises:
            ValueError: The data are empty, or the model can't take the first batch; an unknown augmentation.
        """
        return evaluation.predict(self, data, tta)

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write model, optimizer, schedule, scaler, history, callbacks and random states into one file, atomically.

        Called by a callback within `fit`, the place in the run is saved too, and `fit(resume=path)` goes on there.

        Raises:
            OSError: The file can't be written; an older one at `path` is untouched.
        """
        checkpoint.write(path, snapshot.content(self))

    def load(self, path: str | Path) -> None:
        """Go on where `save` was called, with a new run.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: A ValueError: it is no checkpoint, is damaged, or one of another model or optimizer;
                nothing has changed then.
        """
        snapshot.load(self, path)

    def close(self) -> None:
        """Close what callbacks hold open (TensorBoard's file). The trainer can't be used for training after that."""
        for callback in self.callbacks.callbacks:
            callback.close()

    # ---------------------------------------------------------------- helpers

    @property
    def optimizers(self) -> list[ScheduledOptim]:
        """The trainer's optimizer, and the other ones."""
        return [self.optimizer, *self.other_optimizers.values()]

    @property
    def _should_check_labels(self) -> bool:
        """On an accelerator, where the loss can't raise for a bad label, look at the labels of the first batch."""
        return self.first_batch and not self.engine.reads_are_free

    def _modules(self) -> list[nn.Module]:
        return [self.model] if self.loss_module is None else [self.model, self.loss_module]

    def check_interruption(self) -> None:
        """Raise if a signal came while a run validates; for `mxtorch.evaluation`."""
        if self.run is not None and self.run.validating:
            self._interruption.check()

    def capture(self, loader: Any, *, before_first_step: bool = False) -> state.TrainingState:
        """A copy of all that steps change, to be put back."""
        return state.TrainingState(
            self._modules(),
            self.optimizer,
            scaler=self.engine.scaler,
            loader=loader,
            owner=self,
            before_first_step=before_first_step,
        )
