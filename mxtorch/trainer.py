"""The trainer: what a user sets up and calls. The loop itself is `mxtorch.training.loop`."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch import schedules
from mxtorch._checks import (
    check_data,
    check_integer,
    check_loss_function,
    check_parameters,
    closest,
    length,
    local_path,
    positive_rate,
)
from mxtorch.callbacks import Checkpoint, ProgressBar, TensorBoard
from mxtorch.checkpointing import file, sharded
from mxtorch.checkpointing.contents import undone_without_a_step
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.checkpointing.resume import Rollback, check_arguments
from mxtorch.checkpointing.serialization import Attributes
from mxtorch.data.sharding import batch_size_of_all, check_enough
from mxtorch.engines.base import Engine, Precision, StepResult
from mxtorch.engines.local import LocalEngine
from mxtorch.engines.processes import launched
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.search import Request, search
from mxtorch.lr_finder.trainable import TrainerSteps
from mxtorch.optim import schedule_free
from mxtorch.optim.external_scheduler import ExternalScheduler, mode_of
from mxtorch.optim.run_schedule import check_end, check_layer_scales, set_run_schedule
from mxtorch.optim.scheduled import ScheduledOptim, as_scheduled, chosen_optimizer
from mxtorch.training import evaluation
from mxtorch.training.callback import Callback, CallbackList
from mxtorch.training.context import Context
from mxtorch.training.data import Feed, Window
from mxtorch.training.history import History
from mxtorch.training.interruption import Interruption
from mxtorch.training.limits import (
    Limits,
    ValidateEvery,
    figure_of,
    first_set,
    steps_in_epoch,
    validation_sets,
    without_set,
)
from mxtorch.training.loop import Loop, place_of_next
from mxtorch.training.metrics import as_collection
from mxtorch.training.modes import preserved_modes
from mxtorch.training.monitor import check_watched
from mxtorch.training.notebook import trainer_as_html
from mxtorch.training.rehearsal import rehearse_validations
from mxtorch.training.run import Position, Run
from mxtorch.training.saving import Saving, fingerprint
from mxtorch.training.step import NonfinitePolicy, StepRunner, StepSettings, accumulations
from mxtorch.training.supervised import SupervisedSteps

if TYPE_CHECKING:  # these are imported on first use
    from mxtorch.fine_tuning.recipe import Cache, FineTuning
    from mxtorch.interpretation import Interpretation
    from mxtorch.training.profiling import StepProfile

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_POLICIES = ("raise", "skip", "rollback")


def _on_all_processes(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A method of the trainer that all processes are in together: an error on one ends the others."""

    @functools.wraps(method)
    def call(*arguments: Parameters.args, **named_arguments: Parameters.kwargs) -> Result:
        trainer: Any = arguments[0]
        with trainer.engine.together():
            return method(*arguments, **named_arguments)

    return call


class Trainer(SupervisedSteps):
    """Trains a model, and finds the learning rate to train it with.

    Nothing is wrapped or hidden: `trainer.model` is the module that was handed in, `trainer.optimizer` a torch
    optimizer. Override `training_step` (and `evaluation_step`, `prediction_step`) for anything that `(x, y)` or
    dictionary batches and one loss do not cover; `find_lr` and `fit` call the same one.

    Args:
        model: Any module. It is moved to the device in place.
        loss: `loss(outputs, targets) -> scalar`. None for models that return their own `.loss` (Hugging Face) and
            for an overridden `training_step`.
        optimizer: A `ScheduledOptim`, or any torch optimizer, which is wrapped in one.
        other_optimizers: Further optimizers by name, for a `training_step` that steps them itself (see
            docs/how-to/several-optimizers.md): they are on the device, in checkpoints and in what `find_lr` puts back.
        metrics: For validation: a metric of torchmetrics, a MetricCollection, or a dict by name of metrics and of plain
            functions, `{"rmse": f}`, where `f(outputs, targets)` is given all of the validation data. With several
            outputs, a dict of such dicts by the key of the output.
        train_metrics: The same for training batches. They are computed from the outputs of the training steps, so
            in training mode and while the weights change.
        callbacks: Instances of `mxtorch.callbacks.Callback`, called in order.
        log_dir: A folder for TensorBoard, as `"runs/dogs"`; None writes no file.
        device: `"auto"` takes CUDA, else MPS, else the CPU.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (with a gradient scaler); parameters stay in float32.
        accumulate: Batches to an optimizer step. Each batch weighs what its loss is a mean of
            (docs/explanation/training.md), so a window equals one large batch, the last and shorter window too.
            `{1: 8, 3: 2}` changes it over the epochs of a run, which count from 1.
        clip_grad_norm: Clip the norm of all gradients together to this.
        clip_grad_value: Clip every single value of the gradients to this, before the norm.
        channels_last: Memory format for images; `"auto"` uses it for convolutional networks where it is faster, and
            where the first batch shows that the network can take it.
        compile: True, or arguments for `torch.nn.Module.compile`.
        engine: An engine of your own in place of `device`, `precision`, `channels_last` and `compile`; see
            `mxtorch.engines.Engine`.
        on_nonfinite: What happens after a loss or gradient that is NaN or infinite. `"raise"` raises, and names the
            step, its batches and the first bad layer. `"skip"` leaves the step out and counts it (on an accelerator use
            a fused optimizer; others are undone from a copy of weights and state). `"rollback"` goes back to the last
            checkpoint and on from there at half the rate.
        seed: Seeds Python, NumPy and torch now.
        log_every: Steps between two readings of loss, rate, gradient norm and speed. Only then does the loop wait for
            an accelerator.
        progress: Show a progress bar (in a terminal or notebook) and a line for each epoch.

    Attributes:
        run: Where the current or the last `fit` stands; None before the first.
        history: The figures of all runs.
        settings: How a step is taken: `accumulate`, clipping, `on_nonfinite`, `log_every`.
        fine_tuning: What the last `fine_tune` did; None before.

    Raises:
        ValueError: The model has no trainable parameters, the optimizer holds none of them, the device or
            precision is not to be had, the log_dir can't be written.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> net = nn.Linear(4, 2)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu",
        ...                   progress=False, seed=0)
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(10)]
        >>> history = trainer.fit(batches, epochs=2)
        >>> len(history), trainer.step
        (2, 20)
    """

    fine_tuning: FineTuning | None = None

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
        device: Any = "auto",
        precision: Precision = "fp32",
        accumulate: int | Mapping[int, int] = 1,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | dict[str, Any] = False,
        engine: Engine | None = None,
        on_nonfinite: NonfinitePolicy = "raise",
        seed: int | None = None,
        log_every: int = 50,
        progress: bool = True,
    ) -> None:
        batches_to_a_step, changes = accumulations(accumulate)
        settings = StepSettings(
            batches_to_a_step,
            None if clip_grad_norm is None else positive_rate(clip_grad_norm, "clip_grad_norm"),
            None if clip_grad_value is None else positive_rate(clip_grad_value, "clip_grad_value"),
            on_nonfinite,
            check_integer(log_every, "log_every"),
            changes,
        )
        if on_nonfinite not in _POLICIES:
            raise ValueError(f"on_nonfinite: got {on_nonfinite!r}{closest(str(on_nonfinite), _POLICIES)}")
        check_loss_function(loss)
        loss_module = loss if isinstance(loss, nn.Module) else None
        others = as_scheduled(other_optimizers)
        left_out = check_parameters(model, loss_module, optimizer, others.values())
        optimizer = optimizer if isinstance(optimizer, ScheduledOptim) else ScheduledOptim(optimizer)
        schedule_free.warn_of_norms(model, [optimizer, *others.values()])
        metric_collection = as_collection(metrics, "metrics")
        train_collection = as_collection(train_metrics, "train_metrics")
        callback_list = CallbackList(callbacks, self)
        engine = _engine(engine, device, precision, channels_last, compile)
        reporters: list[Callback] = [ProgressBar()] if progress and engine.is_main else []
        if log_dir is not None and engine.is_main:
            reporters.append(TensorBoard(log_dir))

        if seed is not None:
            seed_everything(seed)
        with engine.together():
            engine.prepare(model, loss_module, optimizer, *others.values())
        if engine.rank:  # dropout and augmentation of its own, while the main process draws as it would alone
            seed_everything(torch.initial_seed() + engine.rank)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.other_optimizers = others
        self.engine = engine
        self.metrics = None if metric_collection is None else metric_collection.to(engine.device)
        self.train_metrics = None if train_collection is None else train_collection.to(engine.device)
        self.settings = settings
        # A checkpoint holds what the other callbacks did in the step, so it comes after them.
        callback_list.callbacks += reporters
        callback_list.callbacks.sort(key=lambda callback: isinstance(callback, Checkpoint))
        self.callbacks = callback_list
        self.log_dir = log_dir
        self.progress = progress and engine.is_main
        self.history = History()
        self.run: Run | None = None
        self._left_out = left_out
        self._position = Position()
        self._attributes = Attributes({"model": model} | ({} if loss_module is None else {"loss": loss_module}))

    # ---------------------------------------------------------------- training

    @_on_all_processes
    def fit(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        *,
        epochs: int | None = None,
        lr: float | LRFinderResult | Literal["keep"] = "keep",
        schedule: (
            schedules.ScheduleName | schedules.Schedule | Callable[[int], float] | ExternalScheduler | None
        ) = None,
        schedule_every: Literal["step", "epoch"] | None = None,
        schedule_monitor: str | None = None,
        steps_per_epoch: int | None = None,
        resume: str | Path | None = None,
        auto_accumulate: bool = False,
        max_steps: int | None = None,
        max_time: float | datetime.timedelta | None = None,
        validate_every: ValidateEvery = "epoch",
        val_batches: int | None = None,
    ) -> History:
        """Train.

        Before the first step a validation batch is tried and undone, and the first batch is looked at, so that what
        would go wrong later is said now (docs/explanation/training.md).

        Each epoch, in this order: train, validate, write the epoch's row into the history, call `on_epoch_complete` of
        the callbacks: yours in their order, then progress bar and TensorBoard, and `Checkpoint` last, so that a file
        holds what the others did.

        Args:
            train_data: A DataLoader or any iterable of batches that can be iterated once an epoch.
            val_data: The same, for `evaluate` after each epoch; or several sets by name, whose figures are
                `val/<name>/loss` and so on. Where `val/loss` is watched, it is that of the first set.
            epochs: Passes over the training data; when left out, as many as `max_steps` needs, else one.
            lr: The base learning rate of the first parameter group, the ratios between groups being kept; or what
                `find_lr` returned, of which the suggestion for this schedule is taken; or `"keep"`, which leaves
                the rates as they are. None is an error: it is what `found.suggestion` is where nothing was found.
            schedule: A schedule or its name (`"one_cycle"`), begun anew, its length filled in from this run; a
                function of the step; or a scheduler of `torch.optim.lr_scheduler` or `timm.scheduler` made for this
                optimizer: torch's goes on where it stands, timm's begins anew. None goes on with the optimizer's own.
            schedule_every: For a torch scheduler, and required there: whether `step()` is meant for every
                optimizer step or for every epoch. ReduceLROnPlateau can only be meant for every epoch, and the
                schedulers of timm know it, so it can be left out with them.
            schedule_monitor: For a scheduler that watches a figure (ReduceLROnPlateau): which column of the history.
                By default it is the validation loss, or the training loss in a run without validation; a scheduler with
                `mode="max"` needs a name here, as "val/accuracy".
            steps_per_epoch: Optimizer steps in an epoch, for data without a length. Longer data are cut there, and the
                next epoch goes on where this one was cut; when they end, it begins them again.
            resume: A checkpoint of this run, from which it goes on bit for bit, in mid-epoch too; or `"auto"`: the
                newest whole checkpoint in the folder of the `Checkpoint` callback; where there is none the run begins.
                See docs/explanation/checkpoints.md.
            auto_accumulate: When the device's memory is full, take each batch in two parts, then in four, and so on;
                the step is that of the whole batch.
            max_steps: The run ends after so many optimizer steps, within an epoch too, which is then validated and
                written into the history as others are. A schedule is made for these steps.
            max_time: The run ends likewise after so many seconds (or a `timedelta`), those before a resume included.
                The schedule does not know of it.
            validate_every: Validate within an epoch, too: after so many steps of it, or each part of it, as 0.25. The
                figures are in `history.records`, and are judged by the callbacks that watch one. More steps than an
                epoch has are counted over epochs: the run is then validated after every so many, and at its end.
            val_batches: Take only the first batches of validation data. With `max_steps` that is a smoke run.

        Returns:
            The history, also of earlier calls.

        Raises:
            ValueError: An argument is wrong, the data are empty, the checkpoint is of another run (CheckpointError), or
                the first batch can't be trained on; nothing has changed then.
            FloatingPointError: A loss or gradient is not finite; step, batch and layer are named.
            torch.OutOfMemoryError: The device's memory is full; the batch size is named.
            SystemExit: SIGTERM came: the step was finished, the `Checkpoint` callback has saved. The status is 143.
            KeyboardInterrupt: Likewise after Ctrl-C; a second Ctrl-C raises it at once.
        """
        settings = self.settings
        bounds = (epochs, max_steps, max_time, validate_every, val_batches)
        limits = Limits.checked(*bounds, validates=val_data is not None)
        most_steps = None if steps_per_epoch is None else check_integer(steps_per_epoch, "steps_per_epoch")
        check_data(train_data, "train_data", passes=1)
        given_data, train_data = train_data, self.engine.share(train_data)

        def steps_in(epoch: int) -> int | None:
            return steps_in_epoch(train_data, settings.accumulate_in(epoch), most_steps)

        epochs = limits.epochs(epochs, steps_in(0))
        check_data(given_data, "train_data", passes=epochs if most_steps is None else 1)
        validation: dict[str, Any] = self.engine.share(validation_sets(val_data, passes=epochs))
        given: dict[str, Any] = {"epochs": epochs, "lr": lr, "schedule": schedule, "schedule_every": schedule_every}
        given |= {"steps_per_epoch": steps_per_epoch, "resume": resume, "auto_accumulate": auto_accumulate}
        self._check_same("fit", train_data, validation, given | {"limits": str(limits)})
        check_enough(train_data, self.engine.world_size)
        watches = mode_of(schedule) is not None and not (schedule_monitor or "").startswith("train/")
        limits = limits.of_run(epochs, steps_in, watches=watches)
        total_steps = limits.total_steps(epochs, steps_in)
        loss_module = self.loss if isinstance(self.loss, nn.Module) else None
        others = self.other_optimizers.values()
        self._left_out = check_parameters(self.model, loss_module, self.optimizer, others, known=self._left_out)
        if auto_accumulate and self.engine.shards:
            raise ValueError("auto_accumulate: fsdp2 can't take it; give the loader a smaller batch_size")
        context, position, saving = self.context, self._position, self._saving
        checkpoints = [one for one in self.callbacks.callbacks if isinstance(one, Checkpoint)]
        check_arguments(checkpoints, resume, settings.on_nonfinite, schedule)
        watched = None if schedule_monitor is None else figure_of(schedule_monitor, validation)
        plain = None if watched is None else without_set(watched, validation)
        check_watched(mode_of(schedule), plain, bool(validation), self.metrics, self.train_metrics)
        # training_step steps other optimizers itself, so with them the first failed step has changed weights.
        before = context.capture(train_data, before_first_step=not self.other_optimizers)
        with (
            preserved_modes(self.model),
            Interruption() as interruption,
            undone_without_a_step(before, position),
            schedule_free.evaluated_afterwards(context.optimizers),
        ):
            figures: list[str] | None = []
            if validation:
                wants_trial = resume is None or resume == "auto"
                rehearsed = (context, validation, self.metrics, self.callbacks, before)
                figures = rehearse_validations(*rehearsed) if wants_trial else None
            scheduler = set_run_schedule(self.optimizer, lr, schedule, schedule_every, total_steps, watched)
            position.fits += 1
            feed = Feed(train_data, interruption.check)
            feeds = {prefix: Feed(data) for prefix, data in validation.items()}
            run = Run(position, position.fits, epochs, steps_in(0), feed, feeds, scheduler, limits=limits)
            run.resumes, run.most_steps = resume is not None, most_steps
            run.steps_in = steps_in if settings.accumulate_from else None
            run.expect(figures, train_metrics=self.train_metrics is not None)
            run.fingerprint = fingerprint(run, context, settings, lr, schedule)
            self.run = run
            if self._reports and self.engine.world_size > 1:
                print(_sentence_of(self.engine.world_size, train_data, settings.accumulate))
            runner = StepRunner(
                context, settings, auto_accumulate=auto_accumulate, place=lambda window: place_of_next(run, window)
            )
            loop = Loop(
                context, settings, run, runner, self.callbacks, self.history, self.metrics, self.train_metrics,
                interruption,
            )  # fmt: skip
            if settings.on_nonfinite == "rollback":
                load = functools.partial(saving.resume, run)
                loop.roll_back = Rollback(checkpoints, load, self.optimizer, position)
            with self.callbacks.fitting():
                if resume is not None and (file_ := saving.go_on(run, resume, checkpoints)) and self._reports:
                    print(f"resumed from {file_}: step {self.step}, epoch {run.epochs_done + 1}/{run.epochs}")
                check_end(self.optimizer, scheduler, run.steps_to_come, run.epochs_to_come)
                loop.run_epochs()
            if self._reports and (words := run.ended_early()):
                print(words)
        return self.history

    def stop(self, *, within_epoch: bool = False) -> None:
        """End the run after the current epoch; for callbacks.

        Args:
            within_epoch: End it after the current step; the epoch is validated and written into the history as it is.
        """
        if self.run is not None:
            self.run.stopping = True
            self.run.ending = within_epoch and self.run.meter is not None

    def optimizer_step(self, window: Window, *, measure_norm: bool = False) -> tuple[Tensor | None, StepResult]:
        """One optimizer step by hand: the gradients of a window of batches, then the update.

        It counts as no step of a run, and calls no callback.

        Args:
            window: The batches, as `mxtorch.training.data.window_of([batch, ...])` makes it.
            measure_norm: Measure the norm of the gradient, too.

        Returns:
            The loss as of one large batch, None for a step that was left out; and what the step did.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the first bad layer is named.
        """
        runner = StepRunner(self.context, self.settings)
        runner.begin_pass()
        return runner.step(window, measure_norm=measure_norm)

    # ---------------------------------------------------------------- the learning rate

    @_on_all_processes
    def find_lr(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        *,
        schedule: schedules.ScheduleName | schedules.Schedule | Callable[[int], float] = "constant",
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        training_steps: int | None = None,
        budget: float | None = None,
        num_steps: int | None = None,
        method: Literal["trials", "sweep"] = "trials",
        start_lr: float | None = None,
        end_lr: float | None = None,
        optimizer: str | Optimizer | None = None,
        watch: Callable[[], float | Tensor] | None = None,
    ) -> LRFinderResult:
        """Find a learning rate for a training, by short trainings at several rates.

        Each short training begins from the same state, sees the same batches and runs the schedule that is asked for,
        squeezed into its steps; the best rates go on to longer ones (docs/explanation/lr-finder.md). Give the same
        `schedule` and `epochs` as to `fit`. By default a search takes 20% of the training's steps or about 20 seconds,
        whichever is more, so that a training of seconds is tried whole. Afterwards, also after an error or Ctrl-C,
        everything is bit for bit what it was: parameters, buffers, gradients, optimizer, scaler, random generators,
        modes, the loader's order. No file is written, except to `log_dir`.

        Args:
            train_data: What `fit` will be given. A loader shorter than a short training is begun again.
            val_data: Where held-out samples come from; of several sets by name the first one. Without it a part of the
                training data, at most a third of a pass, is set aside for the search.
            schedule: What the rate is for: a schedule, its name, or a function of the step. A constant rate and the
                peak of a one-cycle are not the same, and neither can be computed from the other.
            epochs: Of the training, as for `fit`. Without it, and without `training_steps`, 300 steps are assumed.
            steps_per_epoch: As for `fit`, for data without a length.
            training_steps: Optimizer steps of the training, in place of `epochs`.
            budget: Steps to spend, as a part of the training's steps: 0.2 is a fifth of the training.
            num_steps: Steps to spend; in place of `budget`. `found.num_steps` of an earlier search repeats it exactly.
            method: `"trials"`, or `"sweep"` for the range test of Smith (2015, arXiv 1506.01186, section 3.3): the rate
                rises from step to step, and the suggestion is a guess that is read off the curve.
            start_lr: No lower rate is tried. The rates are those of the first parameter group; the other groups keep
                their ratios to it. Left out, the rates reach from a hundredth of the optimizer's usual rate to a
                thousand times it; a sweep begins at 1e-7.
            end_lr: No higher rate is tried. A sweep ends at 10 when left out, or sooner when the loss diverges.
            optimizer: The one whose rate is searched, of `other_optimizers`, by name; the others keep theirs. The
                trainer's own when left out.
            watch: Gives the loss to judge by after each step, where it is not the one that `training_step` returns.

        Returns:
            The suggestion with its interval and its status, a promise or a guess, and the data behind them.

        Raises:
            ValueError: An argument is wrong, the first batch can't be trained on, or `training_step` never steps the
                optimizer.
        """
        check_data(train_data, "train_data", passes=2)  # the data must still be there for fit
        val_data = first_set(val_data)
        if val_data is not None:
            check_data(val_data, "val_data", passes=2)
        train_data = self.engine.share(train_data)
        given: dict[str, Any] = {
            "schedule": schedule,
            "epochs": epochs,
            "steps_per_epoch": steps_per_epoch,
            "method": method,
        }
        given |= {"training_steps": training_steps, "budget": budget, "num_steps": num_steps}
        given |= {"start_lr": start_lr, "end_lr": end_lr, "optimizer": optimizer, "watch": watch}
        self._check_same("find_lr", train_data, val_data, given)
        swept = chosen_optimizer(self.optimizer, self.other_optimizers, optimizer)
        check_layer_scales(swept)
        request = Request.checked(
            train_data,
            self.settings.accumulate,
            method=method,
            schedule=schedule,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            training_steps=training_steps,
            num_steps=num_steps,
            budget=budget,
            start_lr=start_lr,
            end_lr=end_lr,
            watch=watch,
        )
        schedule_free.warn_of_sweep(swept.optimizer)
        trainable = TrainerSteps(self.context, self.settings, swept)
        result = search(trainable, train_data, val_data, request, progress=self._reports)
        self.callbacks.call("on_lr_found", result)
        return result

    # ---------------------------------------------------------------- evaluation and prediction

    @_on_all_processes
    def evaluate(self, data: Iterable[Any] | Mapping[str, Iterable[Any]], *, prefix: str = "val") -> dict[str, float]:
        """Loss and metrics on data, as of one large batch; nothing is trained, modes come back as they were.

        Args:
            data: Batches, as for `fit`; or several sets by name.
            prefix: Goes before the names: `{"val/loss": ..., "val/accuracy": ...}`.

        Raises:
            ValueError: The data are empty, the first batch can't be evaluated, or there is nothing to report, as where
                `training_step` alone was overridden and there are no metrics.
        """
        data = self.engine.share(data)
        self._check_same("evaluate", data, None, {"prefix": prefix})
        return evaluation.evaluate(self.context, data, self.callbacks, self.metrics, prefix)

    @_on_all_processes
    def predict(self, data: Iterable[Any], *, tta: evaluation.Augmentations = ()) -> Any:
        """The model's outputs for all batches, joined along the first dimension, on the CPU, in float32.

        Args:
            data: Batches of inputs, or of `(inputs, targets)`, of which the targets are left out.
            tta: Test-time augmentation: `"flip"`, or functions of a batch of inputs, such as transforms of torchvision.
                Outputs are the mean over the inputs as they are and each of these.

        Raises:
            ValueError: The data are empty, or the model can't take the first batch; an unknown augmentation.
        """
        data = self.engine.share(data)
        self._check_same("predict", data, None, {})
        with self.callbacks.judged_weights():
            return evaluation.predict(self.context, data, tta)

    # ---------------------------------------------------------------- what is built on the loop

    @_on_all_processes
    def fine_tune(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None = None,
        *,
        epochs: int,
        freeze_epochs: int = 1,
        lr: float | Sequence[float | None] | None = None,
        head: str | nn.Module | None = None,
        groups: Mapping[str, Any] | Sequence[Any] | None = None,
        decay: float = 0.3,
        train_norms: bool | None = None,
        schedule: str | schedules.Schedule = "one_cycle",
        cache: Cache = "auto",
        views: int = 1,
        half: bool = False,
        exact: bool = False,
    ) -> FineTuning:
        """Train the head on the frozen network, then all layers, at rates found for each.

        See `mxtorch.fine_tuning.fine_tune` for the arguments, and docs/how-to/fine-tuning.md.
        """
        from mxtorch.fine_tuning import fine_tune

        options: dict[str, Any] = {
            "epochs": epochs,
            "freeze_epochs": freeze_epochs,
            "lr": lr,
            "head": head,
            "groups": groups,
        }
        options |= {"decay": decay, "train_norms": train_norms, "schedule": schedule}
        options |= {"cache": cache, "views": views, "half": half, "exact": exact}
        self.fine_tuning = fine_tune(self, train_data, val_data, **options)
        return self.fine_tuning

    @_on_all_processes
    def interpret(
        self, val_data: Iterable[Any], *, classes: Sequence[str] | None = None, pictures: int = 12
    ) -> Interpretation:
        """Look at a classifier's predictions: confusion, precision and recall, highest losses, calibration.

        Plots and rows are in what is returned; with `log_dir` they go to TensorBoard as well. See
        `mxtorch.interpretation.interpret` for the arguments.
        """
        from mxtorch.interpretation import interpret

        with self.callbacks.judged_weights():
            result = interpret(self, val_data, classes=classes, pictures=pictures)
        self.callbacks.call("on_interpreted", result)
        return result

    @_on_all_processes
    def export(
        self,
        path: str | Path,
        val_data: Iterable[Any] | None = None,
        *,
        train_data: Iterable[Any] | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Any = None,
        example: Tensor | None = None,
        about: str = "",
        outputs: Literal["softmax", "sigmoid", "exp", "probabilities", "raw"] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model for use without its training code, and a model card in Markdown beside it.

        See `mxtorch.exporting.export` for the arguments. `mxtorch.exporting.load(path).predict("picture.jpg")` opens
        the file.
        """
        from mxtorch.exporting import export  # it imports the zoo, which is imported on first use

        options: dict[str, Any] = {"train_data": train_data, "classes": classes, "preprocessing": preprocessing}
        options["outputs"] = outputs
        path = local_path(path, "path")
        if self.engine.shards:
            raise ValueError("export: the model is sharded; load a checkpoint of it in one process, and export there")
        with self.callbacks.judged_weights():
            if self.engine.is_main:
                with self.engine.alone():
                    path = export(self, path, val_data, example=example, about=about, overwrite=overwrite, **options)
            written: Path = self.engine.broadcast(path)
            return written

    def summary(self, batch: Any, *, depth: int = 3) -> Any:
        """The layers of the model for a batch: shapes, parameters, which of them are trained, multiply-adds, memory.

        It needs torchinfo (`pip install mxtorch[summary]`). The model runs once, in evaluation mode, and is as before.

        Args:
            batch: As a loader gives it, with or without targets.
            depth: Modules within modules so far down are listed.

        Returns:
            The `torchinfo.ModelStatistics`: printing it gives the table; it has `total_params`, `total_mult_adds`, ...

        Raises:
            ImportError: torchinfo is not installed.
            ValueError: The model can't take the batch.
        """
        from mxtorch.training.summary import summarize

        return summarize(self.context, batch, check_integer(depth, "depth"))

    @_on_all_processes
    def profile(
        self, data: Iterable[Any], *, steps: int = 20, warmup: int = 5, trace: str | Path | None = None
    ) -> StepProfile:
        """Take a few steps to see what is slow in them: the data, the host, or the device. Nothing is changed.

        Args:
            data: Training data, as for `fit`. With workers the batches that wait from the start are free: take more
                steps than those.
            steps: Optimizer steps that are measured, by torch.profiler one more.
            warmup: Steps before these.
            trace: A file for the profiler's trace, as `"step.json"`, which https://ui.perfetto.dev draws.

        Returns:
            Times of a step and its operators; printing it gives a table and a word on what helps.

        Raises:
            ValueError: The data are empty, or the first batch can't be trained on.
        """
        from mxtorch.training.profiling import profile

        data = self.engine.share(data)
        self._check_same("profile", data, None, {"steps": steps, "warmup": warmup})
        return profile(self.context, self.settings, data, steps=steps, warmup=warmup, trace=trace)

    # ---------------------------------------------------------------- files

    @_on_all_processes
    def save(self, path: str | Path) -> None:
        """Write model, optimizer, schedule, scaler, history, callbacks and random states into one file, atomically.

        Called by a callback within `fit`, the place in the run is saved too, and `fit(resume=path)` goes on there.

        Raises:
            OSError: The file can't be written; an older file at `path` is untouched.
        """
        path = local_path(path, "path")
        content = self.checkpoint_content()
        if self.engine.shards:
            plain, tensors = sharded.split(content)
            sharded.write(path, plain, tensors, self.engine.file_group(), is_main=self.engine.is_main)
        elif self.engine.is_main:
            file.write(path, content)

    @_on_all_processes
    def load(self, path: str | Path) -> None:
        """Go on where `save` was called, with a new run.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: A ValueError: it is no checkpoint, is damaged, or is of another model or optimizer;
                nothing has changed then.
        """
        self._saving.load(local_path(path, "path"))

    def judged_weights(self) -> AbstractContextManager[Mapping[str, Any]]:
        """In a `with` block within `fit`, the model has the weights that are judged; for callbacks.

        After `fit` the model has them anyway. See docs/explanation/checkpoints.md.
        """
        return self.callbacks.judged_weights()

    def checkpoint_content(self) -> dict[str, Any]:
        """Everything that a checkpoint holds, copied: later steps do not change it.

        Raises:
            TypeError: A callback, scheduler or loader has a state that no file can hold; its place is named.
        """
        return self._saving.content(self.run)

    def close(self) -> None:
        """Close what callbacks hold open (TensorBoard's file)."""
        self.callbacks.close()

    # ---------------------------------------------------------------- where it stands

    @property
    def step(self) -> int:
        """Optimizer steps of all runs."""
        return self._position.step

    @property
    def epoch(self) -> int:
        """Epochs of all runs that are over."""
        return self._position.epoch

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because a number was not finite."""
        return self._position.skipped_steps

    def __getstate__(self) -> dict[str, Any]:
        """All but the run, whose data and handlers of signals belong to this process; a copy begins a new one."""
        return vars(self) | {"run": None}

    def __repr__(self) -> str:
        return (
            f"Trainer(model={type(self.model).__name__}, device={self.engine.device}, precision={self.engine.precision}"
            f", optimizer={type(self.optimizer.optimizer).__name__}, learning_rate={self.optimizer.learning_rate:g}"
            f", step={self.step})"
        )

    def _repr_html_(self) -> str:
        return trainer_as_html(self)

    # ---------------------------------------------------------------- helpers

    @property
    def optimizers(self) -> list[ScheduledOptim]:
        """The trainer's optimizer and the other ones."""
        return [self.optimizer, *self.other_optimizers.values()]

    @property
    def context(self) -> Context:
        """The model with everything that computes and changes it, as steps and searches are given it."""
        return Context(
            self.model,
            self.loss,
            self.optimizer,
            self.engine,
            self.training_step,
            self.evaluation_step,
            self.prediction_step,
            self.other_optimizers,
            owner=self,
            count_samples=self.count_samples,
        )

    def _check_same(self, call: str, train_data: Any, val_data: Any, given: Mapping[str, Any]) -> None:
        """Raise on all processes where one of them calls something else, or with other arguments or data."""
        if self.engine.world_size > 1:
            kinds = [type(callback).__name__ for callback in self.callbacks.callbacks]
            facts = {name: _plain(value) for name, value in given.items()}
            facts |= {"train_data": _facts_of(train_data), "val_data": _facts_of(val_data)}
            facts |= {f"Trainer's {name}": value for name, value in vars(self.settings).items()}
            facts |= {"Trainer's metrics": None if self.metrics is None else list(self.metrics)}
            facts |= {"callbacks": [kind for kind in kinds if kind not in ("ProgressBar", "TensorBoard")]}
            facts |= {"precision": self.engine.precision, "rates": self.optimizer.learning_rates, "step": self.step}
            self.engine.check_same(call, facts)

    @property
    def _reports(self) -> bool:
        return self.progress

    @property
    def _saving(self) -> Saving:
        return Saving(self.context, self.callbacks, self.history, self._position, self._attributes, self.train_metrics)


def _plain(value: Any) -> Any:
    """A value that can be compared between processes: of objects, what they are."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return str(value) if isinstance(value, (Path, schedules.Schedule)) else type(value).__name__


def _facts_of(data: Any) -> Any:
    """What the processes must have the same of data."""
    if data is None or data == {}:
        return None
    if isinstance(data, Mapping):
        return {name: _facts_of(one) for name, one in data.items()}
    workers = getattr(data, "num_workers", None)
    samples = length(data.dataset) if hasattr(data, "dataset") else None
    return {
        "batches": length(data), "batch_size": batch_size_of_all(data), "samples": samples, "num_workers": workers
    }  # fmt: skip


def _sentence_of(processes: int, data: Any, accumulate: int) -> str:
    """How many samples a step takes, which is what a rate is for."""
    size = batch_size_of_all(data)
    accumulated = f", {accumulate} of them to a step" if accumulate > 1 else ""
    if size is None:
        return f"{processes} processes train together{accumulated}"
    return f"{processes} processes: batches of {size // processes} x {processes} = {size} samples{accumulated}"


def _engine(engine: Engine | None, device: Any, precision: Any, channels_last: Any, compile: Any) -> Engine:
    """The engine that was handed in, or one made from the other arguments.

    Raises:
        TypeError: It lacks a method of the protocol.
        ValueError: Another argument was given beside it.
    """
    if engine is None:
        if launched() is None:
            kind: type[LocalEngine] = LocalEngine
        else:
            from mxtorch.engines.distributed import DistributedEngine

            kind = DistributedEngine
        return kind(device, precision, channels_last=channels_last, compile=compile)
    if not isinstance(engine, Engine):
        raise TypeError(f"engine: got {engine!r}; give an object with the methods of mxtorch.engines.Engine")
    given = {"device": (device, "auto"), "precision": (precision, "fp32"), "channels_last": (channels_last, "auto")}
    beside = [name for name, (value, default) in given.items() if value != default]
    if beside or compile:
        names = ", ".join([*beside, *(["compile"] if compile else [])])
        raise ValueError(
            f"engine: it was given together with {names}; give these to the engine in place of the Trainer"
        )
    return engine
