"""The search for a learning rate, from the snapshot to the result: what `Trainer.find_lr` does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mxtorch import batches, memory, rate_free, schedules, state
from mxtorch._validation import positive_rate
from mxtorch.callbacks.progress import progress_bar
from mxtorch.checks import check_integer
from mxtorch.lr_finder.estimate import DEFAULT_TRAINING_STEPS, estimate
from mxtorch.lr_finder.heats import (
    FEWEST_STEPS_FOR_HEATS,
    JUDGING_BATCHES,
    SWEEP_STEPS,
    Heat,
    Use,
    run_heats,
)
from mxtorch.lr_finder.held_out import HeldOutData
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.sweep import endless, geometric_rates, range_test, rate_setter
from mxtorch.optim import ScheduledOptim
from mxtorch.steps import StepOutput, explain_first_batch

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

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
        rate_free.warn_of_sweep(optimizer, stacklevel=4)
        return cls(start_lr, end_lr, num_steps, schedule, training_steps, optimizer, watch)


def find_lr(
    trainer: Trainer, train_data: Iterable[Any], val_data: Iterable[Any] | None, request: Request
) -> LRFinderResult:
    """Sweep the rate, train short heats when there are steps for them, put everything back."""
    with_heats = request.num_steps >= FEWEST_STEPS_FOR_HEATS
    sweep_steps = SWEEP_STEPS if with_heats else request.num_steps
    training_steps = request.training_steps or DEFAULT_TRAINING_STEPS
    bar = progress_bar(request.num_steps, "find_lr") if trainer.progress else None
    before = trainer.capture(train_data)
    search = _Search(trainer, request, before, None if bar is None else lambda: bar.update(1))
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
            read_lag=0 if trainer.engine.reads_are_free else 2,
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
    if sweep.stop_reason == "overflow" and trainer.engine.scaler is None:  # no step was seen, and not for fp16's sake
        raise ValueError("optimizer: training_step took no step with it; call its step() there, or sweep another")
    return LRFinderResult.of(
        sweep,
        request.schedule,
        heats,
        exchanged_loss=exchanged_loss,
        training_steps=training_steps,
    )


class _Search:
    """The steps of a search on a trainer."""

    def __init__(
        self, trainer: Trainer, request: Request, before: state.TrainingState, advance: Callable[[], Any] | None
    ) -> None:
        self._trainer = trainer
        self._request = request
        self._before = before
        self.advance = advance or (lambda: None)
        self._held_out: list[Any] = []
        self._probed: list[Any] = []
        self._batch_statistics = True
        # A step of one's own may do anything; without an evaluation step beside it nothing can be judged.
        self._may_judge = request.watch is None and _evaluates(trainer)

    @property
    def judges(self) -> bool:
        """Whether there are held-out batches."""
        return bool(self._held_out)

    def begin(self) -> None:
        """The state of the snapshot, ready for training."""
        trainer = self._trainer
        self._before.restore()
        self._before.set_workers_aside()
        state.set_training_mode(trainer.model)
        rate_free.set_training_point(trainer.optimizers)
        trainer.sweeping = trainer.first_batch = True

    def open(self, train_data: Iterable[Any], val_data: Iterable[Any] | None, *, wanted: int) -> None:
        """Hold batches out, and put them on the device."""
        accumulate = self._trainer.accumulate
        if not self._may_judge:
            self.windows: Callable[[], Iterable[batches.Window]] = lambda: batches.windows(train_data, accumulate)
            return
        data = HeldOutData(train_data, val_data, accumulate, wanted)
        self._held_out = [self._trainer.engine.move(batch) for batch in data.batches]
        self._batch_statistics = all(batches.batch_size(batch) != 1 for batch in self._held_out)
        self.windows = data.windows
        if self._held_out and _overrides(self._trainer, "evaluation_step") and self._first_output().loss is None:
            self._held_out = []  # a step for metrics alone
        self._probed = self._few_samples()

    def _few_samples(self) -> list[Any]:
        """What the sweep looks at; a compiled model would be compiled anew for a batch of another size."""
        first = self._held_out[:1]
        sizes = [batches.batch_size(batch) or 1 for batch in first]
        if sum(sizes) < PROBE_SAMPLES:
            return self._held_out[:PROBE_BATCHES]
        if self._trainer.engine.compiles:
            return first
        return memory.split(batches.Window(first, sizes, sum(sizes)), sizes[0] // PROBE_SAMPLES).batches[:1]

    def step(self, window: batches.Window) -> tuple[Callable[[], float], bool]:
        """One optimizer step; returns a function that reads the loss, and whether the step was taken."""
        swept, watch = self._request.optimizer, self._request.watch
        steps_before = swept.current_steps
        loss, _ = self._trainer.optimizer_step(window)
        assert loss is not None  # none is skipped while sweeping
        watched = loss if watch is None else torch.as_tensor(watch())
        return self._trainer.engine.read_later(watched), swept.current_steps > steps_before

    def heat(self, loss_before: float, use: Use, rate: float, steps: int) -> Heat:
        """Train from the snapshot, with a one-cycle up to the rate or at the rate."""
        self.begin()
        set_rate = rate_setter(self._request.optimizer)
        multiplier = schedules.get(use).for_steps(steps)
        windows = endless(self.windows)
        for step in range(steps):
            set_rate(rate * multiplier(step))
            self._trainer.optimizer_step(next(windows))
            self.advance()
        windows.close()
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
        sizes = [batches.batch_size(batch) or 1 for batch in held_out]
        total = torch.zeros(())
        with _evaluating(self._trainer.model, self._batch_statistics):
            for batch, size in zip(held_out, sizes, strict=True):
                loss = self._output(batch).loss
                if loss is None:
                    raise ValueError("evaluation_step: got a loss for the first batch and none for a later one")
                total = loss.detach().float() * size + total
        return self._trainer.engine.read_later(total / sum(sizes))

    @torch.no_grad()
    def exchanged_loss(self) -> float | None:
        """The loss of the first held-out batch with the targets of other samples; None where that means nothing."""
        loss = self._trainer.loss
        if loss is None or _overrides(self._trainer, "evaluation_step"):
            return None  # outputs of an evaluation step of one's own are for metrics, and need not suit the loss
        output = self._first_output()
        targets = output.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) < 4:
            return None
        with self._trainer.engine.autocast():
            return float(loss(output.outputs, targets.roll(len(targets) // 2, 0)))

    @torch.no_grad()
    def _first_output(self) -> StepOutput:
        with _evaluating(self._trainer.model, self._batch_statistics):
            return self._output(self._held_out[0])

    def _output(self, batch: Any) -> StepOutput:
        try:
            with self._trainer.engine.autocast():
                output = self._trainer.evaluation_step(batch)
        except torch.OutOfMemoryError as error:
            size = batches.batch_size(batch) or 1
            raise memory.explained(error, batches.Window([batch], [size], size), self._trainer.step + 1, 1) from error
        except Exception as error:
            explain_first_batch(error, batch, "evaluation_step")
            raise
        return StepOutput(output) if isinstance(output, Tensor) else output


def _evaluates(trainer: Trainer) -> bool:
    """Whether `evaluation_step` goes with `training_step`: both are the trainer's own, or it was overridden too."""
    return _overrides(trainer, "evaluation_step") or not _overrides(trainer, "training_step")


def _overrides(trainer: Trainer, step: str) -> bool:
    """Whether a subclass brings this step."""
    return bool(getattr(type(trainer), step).__module__ != "mxtorch.trainer")


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
        state.set_training_mode(model)
