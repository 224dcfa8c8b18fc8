"""The search for a learning rate, from the snapshot to the result: what `Trainer.find_lr` does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mxtorch import schedules
from mxtorch._checks import check_integer, positive_rate
from mxtorch.callbacks.progress import progress_bar
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.lr_finder.held_out import HeldOutData
from mxtorch.lr_finder.range_test import endless, geometric_rates, range_test, rate_setter
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.suggestion import DEFAULT_TRAINING_STEPS, estimate
from mxtorch.lr_finder.trials import (
    FEWEST_STEPS_FOR_HEATS,
    JUDGING_BATCHES,
    SWEEP_STEPS,
    Heat,
    Use,
    run_heats,
)
from mxtorch.optim.schedule_free import set_training_point, warn_of_sweep
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.context import Context
from mxtorch.training.data import Window, windows
from mxtorch.training.modes import set_training_mode
from mxtorch.training.out_of_memory import explained, split
from mxtorch.training.step import StepRunner, StepSettings
from mxtorch.training.supervised import StepOutput, batch_size, checked_labels, explain_first_batch

# The sweep looks at the held-out loss often: at no more samples than so many, from no more batches than so many.
PROBE_SAMPLES = 64
PROBE_BATCHES = 2
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Request(NamedTuple):
    """What a user asked for; see `Trainer.find_lr`."""

    start_lr: float
    end_lr: float
    num_steps: int
    schedule: schedules.Schedule
    training_steps: int | None
    optimizer: ScheduledOptim
    watch: Callable[[], float | Tensor] | None

    @classmethod
    def checked(
        cls,
        start_lr: float,
        end_lr: float,
        num_steps: int,
        schedule: str | schedules.Schedule,
        training_steps: int | None,
        optimizer: ScheduledOptim,
        watch: Callable[[], float | Tensor] | None,
    ) -> Request:
        """The request, or a ValueError or TypeError that says what is wrong with it."""
        start_lr, end_lr = positive_rate(start_lr, "start_lr"), positive_rate(end_lr, "end_lr")
        if start_lr >= end_lr:
            raise ValueError(f"start_lr: got {start_lr}, which is not below end_lr, {end_lr}; give a lower start_lr")
        check_integer(num_steps, "num_steps", at_least=2)
        if training_steps is not None:
            check_integer(training_steps, "training_steps")
        schedule = schedules.get(schedule)
        if watch is not None and not callable(watch):
            raise TypeError(f"watch: got {watch!r}; give a function without arguments that returns the loss to draw")
        warn_of_sweep(optimizer, stacklevel=4)
        return cls(start_lr, end_lr, num_steps, schedule, training_steps, optimizer, watch)


def find_lr(
    context: Context,
    settings: StepSettings,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None,
    request: Request,
    *,
    progress: bool = False,
) -> LRFinderResult:
    """Sweep the rate, train short heats when there are steps for them, put everything back."""
    with_heats = request.num_steps >= FEWEST_STEPS_FOR_HEATS
    sweep_steps = SWEEP_STEPS if with_heats else request.num_steps
    training_steps = request.training_steps or DEFAULT_TRAINING_STEPS
    bar = progress_bar(request.num_steps, "find_lr") if progress else None
    before = context.capture(train_data)
    search = _Search(context, settings, request, before, None if bar is None else lambda: bar.update(1))
    heats: list[Heat] = []
    exchanged_loss = None
    try:
        search.open(train_data, val_data, wanted=JUDGING_BATCHES if with_heats else PROBE_BATCHES)
        search.begin()
        sweep = range_test(
            search.step,
            search.windows,
            request.optimizer,
            geometric_rates(request.start_lr, request.end_lr, sweep_steps),
            probe=search.probe if search.judges else None,
            read_lag=2 if context.engine.asynchronous else 0,
            on_step=lambda step, loss: search.advance(),
        )
        if search.judges:
            search.begin()
            exchanged_loss = search.exchanged_loss()
        if with_heats and search.judges and sweep.losses:
            ended_early = sweep.stop_reason != "completed"
            edge = estimate(sweep.rates, sweep.losses, sweep.held_out, ended_early=ended_early).edge
            heats = run_heats(
                functools.partial(search.heat, search.held_out_loss()),
                edge or sweep.rates[-1],
                request.num_steps - sweep_steps,
                training_steps=training_steps,
                on_progress=(lambda message: None) if bar is None else bar.set_postfix_str,
            )
    finally:
        before.restore()
        if bar is not None:
            bar.close()
    if (
        sweep.stop_reason == "overflow" and context.engine.precision != "fp16"
    ):  # no step was seen, and not for fp16's sake
        raise ValueError("optimizer: training_step took no step with it; call its step() there, or sweep another")
    return LRFinderResult.of(
        sweep,
        request.schedule,
        heats,
        exchanged_loss=exchanged_loss,
        training_steps=training_steps,
    )


class _Search:
    """The steps of a search."""

    def __init__(
        self,
        context: Context,
        settings: StepSettings,
        request: Request,
        before: TrainingState,
        advance: Callable[[], Any] | None,
    ) -> None:
        self._context = context
        self._accumulate = settings.accumulate
        self._runner = StepRunner(context, settings, trial=True, place=lambda window: "a step of the search")
        self._request = request
        self._before = before
        self.advance = advance or (lambda: None)
        self._held_out: list[Any] = []
        self._probed: list[Any] = []
        self._batch_statistics = True
        # A step of one's own may do anything; without an evaluation step beside it nothing can be judged.
        self._may_judge = request.watch is None and (
            context.has_own_evaluation_step or not context.has_own_training_step
        )
        self._labels_are_known = False

    @property
    def judges(self) -> bool:
        """Whether there are held-out batches."""
        return bool(self._held_out)

    def begin(self) -> None:
        """The state of the snapshot, ready for training."""
        self._before.restore()
        self._before.set_workers_aside()
        set_training_mode(self._context.model)
        set_training_point(self._context.optimizers)
        self._runner.begin_pass()

    def open(self, train_data: Iterable[Any], val_data: Iterable[Any] | None, *, wanted: int) -> None:
        """Hold batches out, and put them on the device."""
        accumulate = self._accumulate
        if not self._may_judge:
            self.windows: Callable[[], Iterable[Window]] = lambda: windows(train_data, accumulate)
            return
        data = HeldOutData(train_data, val_data, accumulate, wanted)
        self._held_out = [self._context.engine.move(batch) for batch in data.batches]
        self._batch_statistics = all(batch_size(batch) != 1 for batch in self._held_out)
        self.windows = data.windows
        if self._held_out and self._context.has_own_evaluation_step and self._first_output().loss is None:
            self._held_out = []  # a step for metrics alone
        self._probed = self._few_samples()

    def _few_samples(self) -> list[Any]:
        """What the sweep looks at; a compiled model would be compiled anew for a batch of another size."""
        first = self._held_out[:1]
        sizes = [batch_size(batch) or 1 for batch in first]
        if sum(sizes) < PROBE_SAMPLES:
            return self._held_out[:PROBE_BATCHES]
        if getattr(self._context.model, "_compiled_call_impl", None) is not None:
            return first
        return split(Window(first, sizes, sum(sizes)), sizes[0] // PROBE_SAMPLES).batches[:1]

    def step(self, window: Window) -> tuple[Callable[[], float], bool]:
        """One optimizer step; returns a function that reads the loss, and whether the step was taken."""
        swept, watch = self._request.optimizer, self._request.watch
        steps_before = swept.current_steps
        loss, _ = self._runner.step(window)
        assert loss is not None  # none is skipped while sweeping
        watched = loss if watch is None else torch.as_tensor(watch())
        return self._context.engine.read_later(watched), swept.current_steps > steps_before

    def heat(self, loss_before: float, use: Use, rate: float, steps: int) -> Heat:
        """Train from the snapshot, with a one-cycle up to the rate or at the rate."""
        self.begin()
        set_rate = rate_setter(self._request.optimizer)
        multiplier = schedules.get(use).for_steps(steps)
        dealt = endless(self.windows)
        for step in range(steps):
            set_rate(rate * multiplier(step))
            self._runner.step(next(dealt))
            self.advance()
        dealt.close()
        loss = self.held_out_loss()
        return Heat(use, rate, steps, loss if loss == loss else float("inf"), loss_before)

    def probe(self) -> Callable[[], float]:
        """A function that reads the held-out loss that the sweep looks at."""
        return self._mean_loss(self._probed)

    def held_out_loss(self) -> float:
        """The mean loss on all held-out batches."""
        return self._mean_loss(self._held_out)()

    @torch.no_grad()
    def _mean_loss(self, held_out: list[Any]) -> Callable[[], float]:
        sizes = [batch_size(batch) or 1 for batch in held_out]
        total = torch.zeros(())
        with _evaluating(self._context.model, self._batch_statistics):
            for batch, size in zip(held_out, sizes, strict=True):
                loss = self._output(batch).loss
                if loss is None:
                    raise ValueError("evaluation_step: got a loss for the first batch and none for a later one")
                total = loss.detach().float() * size + total
        return self._context.engine.read_later(total / sum(sizes))

    @torch.no_grad()
    def exchanged_loss(self) -> float | None:
        """The loss of the first held-out batch with the targets of other samples; None where that means nothing."""
        loss = self._context.loss
        if loss is None or self._context.has_own_evaluation_step:
            return None  # outputs of an evaluation step of one's own are for metrics, and need not suit the loss
        output = self._first_output()
        targets = output.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) < 4:
            return None
        with self._context.engine.autocast():
            return float(loss(output.outputs, targets.roll(len(targets) // 2, 0)))

    @torch.no_grad()
    def _first_output(self) -> StepOutput:
        with _evaluating(self._context.model, self._batch_statistics):
            return self._output(self._held_out[0])

    def _output(self, batch: Any) -> StepOutput:
        try:
            checks = self._context.engine.asynchronous and not self._labels_are_known
            with self._context.engine.autocast(), checked_labels(checks):
                output = self._context.evaluation_step(batch)
            self._labels_are_known = True
        except torch.OutOfMemoryError as error:
            size = batch_size(batch) or 1
            raise explained(error, Window([batch], [size], size), "a step of the search", 1) from error
        except Exception as error:
            explain_first_batch(error, batch, "evaluation_step")
            raise
        return StepOutput(output) if isinstance(output, Tensor) else output


@contextlib.contextmanager
def _evaluating(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Evaluation mode, but batch statistics: running ones lag behind weights that change this fast.

    Args:
        model: Is in training mode before and after.
        batch_statistics: False for batches of one sample, which have none.
    """
    training = [module for module in model.modules() if isinstance(module, _BATCH_NORM) and module.training]
    model.eval()
    for module in training if batch_statistics else ():
        module.train()
    try:
        yield
    finally:
        set_training_mode(model)
