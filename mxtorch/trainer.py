"""The trainer: what a user sets up and calls. One call of `fit` is `mxtorch.training.fitting`, its loop `.loop`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch import schedules
from mxtorch._checks import check_data, check_integer, check_loss_function, check_parameters
from mxtorch.callbacks import Checkpoint, ProgressBar, TensorBoard
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.engines.base import Engine, Precision, StepResult
from mxtorch.engines.choice import chosen_engine
from mxtorch.optim import schedule_free
from mxtorch.optim.external_scheduler import ExternalScheduler
from mxtorch.optim.run_schedule import check_layer_scales
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.optim.several import as_scheduled, chosen_optimizer
from mxtorch.training import evaluation
from mxtorch.training.agreement import alike_on_all_processes, on_all_processes
from mxtorch.training.callback import Callback, CallbackList
from mxtorch.training.data import Window
from mxtorch.training.fitting import FitArguments, Fitting
from mxtorch.training.history import History
from mxtorch.training.limits import ValidateEvery
from mxtorch.training.metrics import as_collection
from mxtorch.training.notebook import trainer_as_html
from mxtorch.training.step import NonfinitePolicy, StepRunner, StepSettings
from mxtorch.training.trainer_state import TrainerState

if TYPE_CHECKING:  # these are imported on first use
    from mxtorch.exporting.outputs import Outputs
    from mxtorch.fine_tuning.recipe import Cache, FineTuning
    from mxtorch.interpretation import Interpretation
    from mxtorch.lr_finder.result import LRFinderResult
    from mxtorch.training.profiling import StepProfile


class Trainer(TrainerState):
    """Trains a model, and finds the learning rate to train it with.

    Nothing is wrapped or hidden: `trainer.model` is the module that was given, `trainer.optimizer` a torch optimizer.
    Override `training_step` (and `evaluation_step`, `prediction_step`) for anything that `(x, y)` or dictionary batches
    and one loss do not cover; `find_lr` and `fit` call the same step.

    Args:
        model: Any module. It is moved to the device in place.
        loss: `loss(outputs, targets) -> scalar`. None for models that return their own `.loss` (Hugging Face) and
            for an overridden `training_step`.
        optimizer: A `ScheduledOptim`, or any torch optimizer, which is wrapped in one.
        other_optimizers: Further optimizers by name, for a `training_step` that steps them itself (see
            docs/how-to/several-optimizers.md). They are moved, saved, and restored after `find_lr`.
        metrics: For validation: a metric of torchmetrics, a MetricCollection, or a dictionary by name of metrics and of
            plain functions, `{"rmse": f}`, where `f(outputs, targets)` is given all of the validation data. For several
            outputs, a dictionary of such dictionaries by the key of the output.
        train_metrics: The same for training batches. They are computed from the outputs of the training steps, that is,
            in training mode and while the weights change.
        callbacks: Instances of `mxtorch.callbacks.Callback`, called in order.
        log_dir: A folder for TensorBoard, such as `"runs/dogs"`; None writes no file.
        device: `"auto"` takes CUDA, else MPS, else the CPU.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (with a gradient scaler); parameters stay in float32.
        accumulate: Batches in an optimizer step. Each batch weighs what its loss is a mean of
            (docs/explanation/training.md), so a window of batches equals one large batch, also the shorter last one.
            `{1: 8, 3: 2}` changes the number over the epochs of a run, which count from 1.
        clip_grad_norm: The largest norm of all gradients together; None does not clip.
        clip_grad_value: The largest absolute value of each element of the gradients, applied before the norm.
        channels_last: The memory format for images; `"auto"` uses it for convolutional networks on devices where it is
            faster, if the first batch shows that the network can take it.
        compile: True, or arguments for `torch.nn.Module.compile`.
        engine: Your own engine, in place of `device`, `precision`, `channels_last` and `compile`; see
            `mxtorch.engines.Engine`.
        on_nonfinite: What happens after a loss or gradient that is NaN or infinite. `"raise"` raises an error that
            names the step, its batches and the first bad layer. `"skip"` leaves the step out and counts it (on an
            accelerator use a fused optimizer; others are undone from a copy of weights and state). `"rollback"` goes
            back to the last checkpoint and continues from there at half the rate.
        seed: Seeds Python, NumPy and torch now.
        log_every: Steps between two readings of loss, rate, gradient norm and speed. Only these readings wait for an
            accelerator.
        progress: Whether to show a progress bar (in a terminal or notebook) and a line for each epoch.

    Attributes:
        run: The current or the last `fit`; None before the first.
        history: The figures of all runs.
        settings: How a step is taken: `accumulate`, clipping, `on_nonfinite`, `log_every`.
        fine_tuning: What the last `fine_tune` did; None before.

    Raises:
        ValueError: The model has no trainable parameters, the optimizer holds none of them, the device or precision
            is not available, or the log_dir can't be written.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> net = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, seed=0)
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
        settings = StepSettings.checked(accumulate, clip_grad_norm, clip_grad_value, on_nonfinite, log_every)
        check_loss_function(loss)
        loss_module = loss if isinstance(loss, nn.Module) else None
        others = as_scheduled(other_optimizers)
        left_out = check_parameters(model, loss_module, optimizer, others.values())
        optimizer = optimizer if isinstance(optimizer, ScheduledOptim) else ScheduledOptim(optimizer)
        schedule_free.warn_of_norms(model, [optimizer, *others.values()])
        metrics, train_metrics = as_collection(metrics, "metrics"), as_collection(train_metrics, "train_metrics")
        callback_list = CallbackList(callbacks, self)
        engine = chosen_engine(engine, device, precision, channels_last, compile)
        reporters: list[Callback] = [ProgressBar()] if progress and engine.is_main else []
        if log_dir is not None and engine.is_main:
            reporters.append(TensorBoard(log_dir))

        if seed is not None:
            seed_everything(seed)
        with engine.together():
            engine.prepare(model, loss_module, optimizer, *others.values())
        if engine.rank:  # dropout and augmentation of its own, while the main process draws as it would alone
            seed_everything(torch.initial_seed() + engine.rank)
        # A checkpoint holds what the other callbacks did in the step, so it comes after them.
        callback_list.callbacks += reporters
        callback_list.callbacks.sort(key=lambda callback: isinstance(callback, Checkpoint))
        super().__init__(
            model, loss, optimizer, others, engine, settings, callback_list,
            metrics, train_metrics,
        )  # fmt: skip
        self.log_dir = log_dir
        self.progress = progress and engine.is_main
        self._left_out = left_out

    # ---------------------------------------------------------------- training

    @alike_on_all_processes
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

        Before the first step, a validation batch is tried and undone, and the first batch is examined, so that errors
        of later steps appear at once (docs/explanation/training.md).

        Each epoch does, in this order: train, validate, write the row of the epoch into the history, call
        `on_epoch_complete` of the callbacks: yours in their order, then progress bar and TensorBoard. `Checkpoint` is
        last, so that its file holds what the others did.

        Args:
            train_data: A DataLoader, or any iterable of batches that can be iterated once an epoch.
            val_data: The same, for `evaluate` after each epoch; or several sets by name, with figures such as
                `val/<name>/loss`. Where `val/loss` is watched, it is that of the first set.
            epochs: Passes over the training data. The default is as many as `max_steps` needs, else one.
            lr: The base learning rate of the first parameter group (the ratios between groups are kept); or the result
                of `find_lr`, whose suggestion for this schedule is used. `"keep"` leaves the rates as they are. None is
                an error, because `found.suggestion` is None where nothing was found.
            schedule: A schedule or its name (`"one_cycle"`), which begins anew with the length of this run; a function
                of the step; or a scheduler of `torch.optim.lr_scheduler` or `timm.scheduler` for this optimizer (that
                of torch continues from its position, that of timm begins anew). None keeps the optimizer's own.
            schedule_every: Whether a torch scheduler counts optimizer steps or epochs. It is required there, except for
                ReduceLROnPlateau, which can only count epochs; the schedulers of timm know it.
            schedule_monitor: The column of the history for a scheduler that watches a figure (ReduceLROnPlateau). The
                default is the validation loss, or the training loss without validation; a scheduler with `mode="max"`
                needs a name, such as "val/accuracy".
            steps_per_epoch: Optimizer steps in an epoch, for data without a length. Longer data are cut there, and the
                next epoch continues from the cut; when the data end, they begin again.
            resume: A checkpoint of this run, from which it continues bit for bit, also within an epoch; or `"auto"`:
                the newest undamaged checkpoint in the folder of the `Checkpoint` callback; if there is none, the run
                begins. The same call again goes on with a run that an error or Ctrl-C has broken off. See
                docs/explanation/checkpoints.md.
            auto_accumulate: When the memory of the device is full, take each batch in two parts, then in four, and so
                on; the step is that of the whole batch. Optimizers with a closure (LBFGS, SAM) refuse it.
            max_steps: The run ends after this number of optimizer steps, also within an epoch, which is then validated
                and written into the history. A schedule gets this length.
            max_time: The run ends likewise after this number of seconds (or a `timedelta`), including those before a
                resume. The length of a schedule does not take it into account.
            validate_every: Validate within an epoch, too: after this number of its steps, or this part of it, as 0.25.
                The figures are in `history.records`, and callbacks that watch a figure use them. A number of steps that
                is larger than an epoch counts over epochs: the run is validated after each such number, and at its end.
            val_batches: Use only the first batches of the validation data. With `max_steps`, that is a smoke run.

        Returns:
            The history, also of earlier calls.

        Raises:
            ValueError: An argument is wrong, the data are empty, the checkpoint is of another run (CheckpointError), or
                the first batch can't be trained on; nothing has changed then.
            FloatingPointError: A loss or gradient is not finite; step, batch and layer are named.
            torch.OutOfMemoryError: The memory of the device is full; the batch size is named.
            SystemExit: SIGTERM came. The step was finished, and `Checkpoint` has saved. The status is 143.
            KeyboardInterrupt: Ctrl-C, likewise; a second Ctrl-C raises at once.
        """
        loss_module = self.loss if isinstance(self.loss, nn.Module) else None
        others = self.other_optimizers.values()
        self._left_out = check_parameters(self.model, loss_module, self.optimizer, others, known=self._left_out)
        arguments = FitArguments(
            train_data, val_data, epochs, lr, schedule, schedule_every, schedule_monitor, steps_per_epoch, resume,
            auto_accumulate, max_steps, max_time, validate_every, val_batches,
        )  # fmt: skip
        checkpoints = [callback for callback in self.callbacks.callbacks if isinstance(callback, Checkpoint)]
        fitting = Fitting(arguments, self._saving, self.settings, self.metrics, checkpoints, self.progress)
        with fitting.prepared() as loop:
            self.run = loop.run
            fitting.train(loop)
        return self.history

    def optimizer_step(self, window: Window, *, measure_norm: bool = False) -> tuple[Tensor | None, StepResult]:
        """Take one optimizer step, which counts for no run and calls no callback.

        Args:
            window: The batches of the step, from `mxtorch.training.data.window_of([batch, ...])`.
            measure_norm: Whether to measure the norm of the gradient.

        Returns:
            The loss as of one large batch (None for a step that was left out), and what the step did.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the first bad layer is named.
        """
        runner = StepRunner(self.context, self.settings)
        runner.begin_pass()
        return runner.step(window, measure_norm=measure_norm)

    # ---------------------------------------------------------------- the learning rate

    @alike_on_all_processes
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

        Each short training begins from the same state, reads the same batches, and runs the given schedule, squeezed
        into its steps; the best rates continue in longer ones (docs/explanation/lr-finder.md). Give the same `schedule`
        and `epochs` as to `fit`. Afterwards, also after an error or Ctrl-C, everything is bit for bit what it was:
        parameters, buffers, gradients, optimizer, scaler, random generators, modes, the order of the loader. No file is
        written, except to `log_dir`.

        Args:
            train_data: The data for `fit`. A loader that is shorter than a short training begins again.
            val_data: The source of held-out samples; of several sets by name, the first one. Without it, a part of the
                training data, at most a third of a pass, is set aside for the search.
            schedule: The use of the rate: a schedule, its name, or a function of the step. A constant rate and the peak
                of a one-cycle differ, and neither can be computed from the other.
            epochs: Of the training, as for `fit`. Without it, and without `training_steps`, 300 steps are assumed.
            steps_per_epoch: As for `fit`, for data without a length.
            training_steps: Optimizer steps of the training, in place of `epochs`.
            budget: Steps of the search, as a part of the training's steps. The default is 0.2 or about 20 seconds,
                whichever is more, so that a training of seconds is tried whole.
            num_steps: Steps of the search, in place of `budget`. `found.num_steps` of an earlier search repeats it
                exactly.
            method: `"trials"`, or `"sweep"` for the range test of Smith (2015, arXiv 1506.01186, section 3.3): the rate
                rises from step to step, and the suggestion is a guess from the curve.
            start_lr: The lowest rate, of the first parameter group; the other groups keep their ratios to it. By
                default, the rates reach from a hundredth of the optimizer's usual rate to a thousand times it; a sweep
                begins at 1e-7.
            end_lr: The highest rate. By default, a sweep ends at 10, or sooner when the loss diverges.
            optimizer: The name of the optimizer in `other_optimizers` whose rate is searched, while the others keep
                theirs. The default is the trainer's own.
            watch: A function that returns the loss of a step, if it is not the one that `training_step` returns.

        Returns:
            The suggestion with its interval and its status, a promise or a guess, and the data of the search.

        Raises:
            ValueError: An argument is wrong, the first batch can't be trained on, or `training_step` never steps the
                optimizer.
        """
        from mxtorch.lr_finder.held_out import judged_set
        from mxtorch.lr_finder.search import Request, search
        from mxtorch.lr_finder.trainable import TrainerSteps

        check_data(train_data, "train_data", passes=2)  # the data must still be there for fit
        val_data = judged_set(val_data)
        train_data = self.engine.share(train_data)
        swept = chosen_optimizer(self.optimizer, self.other_optimizers, optimizer)
        check_layer_scales(swept)
        request = Request.checked(
            train_data, self.settings.accumulations, method=method, schedule=schedule, epochs=epochs,
            steps_per_epoch=steps_per_epoch, training_steps=training_steps, num_steps=num_steps, budget=budget,
            start_lr=start_lr, end_lr=end_lr, watch=watch,
        )  # fmt: skip
        schedule_free.warn_of_search(swept.optimizer, request.method)
        trainable = TrainerSteps(self.context, self.settings, swept)
        result = search(trainable, train_data, val_data, request, progress=self.progress)
        self.callbacks.call("on_lr_found", result)
        return result

    @alike_on_all_processes
    def evaluate(self, data: Iterable[Any] | Mapping[str, Iterable[Any]], *, prefix: str = "val") -> dict[str, float]:
        """Compute loss and metrics on data, as of one large batch. Nothing is trained, and modes are restored.

        Args:
            data: Batches, as for `fit`; or several sets by name.
            prefix: The beginning of the names: `{"val/loss": ..., "val/accuracy": ...}`.

        Raises:
            ValueError: The data are empty, the first batch can't be evaluated, or there are neither losses nor metrics.
        """
        return evaluation.evaluate(self.context, self.engine.share(data), self.callbacks, self.metrics, prefix)

    @alike_on_all_processes
    def predict(self, data: Iterable[Any], *, tta: evaluation.Augmentations = ()) -> Any:
        """Compute the model's outputs for all batches, joined along the first dimension, on the CPU, in float32.

        Args:
            data: Batches of inputs, or of `(inputs, targets)`, whose targets are ignored.
            tta: Test-time augmentation: `"flip"`, or functions of a batch of inputs, such as transforms of torchvision.
                Outputs are the mean over the inputs as they are and each augmentation of them.

        Raises:
            ValueError: The data are empty, the model can't take the first batch, or an augmentation is unknown.
        """
        with self.callbacks.judged_weights():
            return evaluation.predict(self.context, self.engine.share(data), tta)

    # ---------------------------------------------------------------- what is built on the loop

    @on_all_processes
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

        self.fine_tuning = fine_tune(
            self, train_data, val_data, epochs=epochs, freeze_epochs=freeze_epochs, lr=lr, head=head, groups=groups,
            decay=decay, train_norms=train_norms, schedule=schedule, cache=cache, views=views, half=half, exact=exact,
        )  # fmt: skip
        return self.fine_tuning

    @on_all_processes
    def interpret(
        self, val_data: Iterable[Any], *, classes: Sequence[str] | None = None, pictures: int = 12
    ) -> Interpretation:
        """Analyse a classifier's predictions: confusion, precision and recall, highest losses, calibration.

        The result has plots and rows, also for TensorBoard. See `mxtorch.interpretation.interpret` for the arguments.
        """
        from mxtorch.interpretation import interpret

        with self.callbacks.judged_weights():
            result = interpret(self, val_data, classes=classes, pictures=pictures)
        self.callbacks.call("on_interpreted", result)
        return result

    @on_all_processes
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
        outputs: Outputs | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model for use without its training code, and a model card in Markdown beside it.

        See `mxtorch.exporting.export` for the arguments; `mxtorch.exporting.load(path)` opens the file.
        """
        from mxtorch.exporting import export  # it imports the zoo, which is imported on first use

        with self.callbacks.judged_weights():
            return export(
                self, path, val_data, train_data=train_data, classes=classes, preprocessing=preprocessing,
                example=example, about=about, outputs=outputs, overwrite=overwrite,
            )  # fmt: skip

    def summary(self, batch: Any, *, depth: int = 3) -> Any:
        """Describe the layers of the model for a batch: shapes, parameters, which are trained, multiply-adds, memory.

        It needs torchinfo (`pip install mxtorch[summary]`). The model runs once, in evaluation mode.

        Args:
            batch: As a loader gives it, with or without targets.
            depth: The number of levels of nested modules that are listed.

        Returns:
            The `torchinfo.ModelStatistics`: printing it gives the table; it has `total_params`, `total_mult_adds`, ...

        Raises:
            ImportError: torchinfo is not installed.
            ValueError: The model can't take the batch.
        """
        from mxtorch.training.summary import summarize

        return summarize(self.context, batch, check_integer(depth, "depth"))

    @alike_on_all_processes
    def profile(
        self, data: Iterable[Any], *, steps: int = 20, warmup: int = 5, trace: str | Path | None = None
    ) -> StepProfile:
        """Take a few steps to see which part of them is slow: the data, the host, or the device. Nothing is changed.

        Args:
            data: Training data, as for `fit`. With workers, the batches that are ready at the start cost no time: take
                more steps than those.
            steps: Optimizer steps that are measured, and one more by torch.profiler.
            warmup: Steps before these.
            trace: A file for the profiler's trace, such as `"step.json"`, which https://ui.perfetto.dev draws.

        Returns:
            The times of a step and its operators; printing them gives a table and advice.

        Raises:
            ValueError: The data are empty, or the first batch can't be trained on.
        """
        from mxtorch.training.profiling import profile

        data = self.engine.share(data)
        return profile(self.context, self.settings, data, steps=steps, warmup=warmup, trace=trace)

    def _repr_html_(self) -> str:
        return trainer_as_html(self)
