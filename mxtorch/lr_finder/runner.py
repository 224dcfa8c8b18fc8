"""Trains from one snapshot, again and again, and judges by samples that are not trained on."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.lr_finder.held_out import HeldOutData
from mxtorch.lr_finder.numbers import SWEEP
from mxtorch.lr_finder.range_test import endless, rate_setter
from mxtorch.lr_finder.trials import Trial
from mxtorch.optim.schedule_free import set_training_point
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.schedules import momentum_of
from mxtorch.training.context import Context
from mxtorch.training.data import Window, window_of, windows
from mxtorch.training.loss_weight import as_scalar
from mxtorch.training.modes import preserved_modes, set_training_mode
from mxtorch.training.out_of_memory import explained, split
from mxtorch.training.step import StepRunner, StepSettings
from mxtorch.training.supervised import (
    StepOutput,
    as_step_output,
    batch_size,
    checked_labels,
    explain_first_batch,
    weight_of,
)
from mxtorch.training.trial import in_memory_format

# A held-out loss of this many samples has a standard error small enough to tell rates apart; more cost time.
JUDGED_SAMPLES = 512
MOST_JUDGED_BATCHES = 16
# A forward pass costs about a third of a step, so that with this many batches a step judging adds a tenth to the time.
BATCHES_PER_STEP = 0.3
# A range test looks at the held-out loss often, so at fewer samples.
PROBE_SAMPLES = 64
PROBE_BATCHES = 2
TIMED_STEPS = 5
# A training is given up once its loss is no number; that is looked at this many times within it.
LOOKS = 4
# So many steps of training_step in a row without one of the optimizer: it is not stepped there at all.
MOST_WITHOUT_A_STEP = 40
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class SearchRunner:
    """The steps of a search.

    Args:
        context: The model with everything that computes and changes it.
        settings: How a step is taken.
        optimizer: Whose rate is searched.
        before: The snapshot that every training begins from.
        watch: Gives the loss to judge by after each step, in place of the held-out loss; or None.
        advance: Called after every step, for a progress bar.

    Attributes:
        windows: Opens the training data.
        is_held_out: Whether there are held-out batches to judge by.
        note: What could not be done as wanted, in a sentence; empty if nothing.
    """

    def __init__(
        self,
        context: Context,
        settings: StepSettings,
        optimizer: ScheduledOptim,
        before: TrainingState,
        watch: Callable[[], float | Tensor] | None,
        advance: Callable[[], Any],
    ) -> None:
        self._context = context
        self._accumulate = settings.accumulate
        self._runner = StepRunner(context, settings, trial=True, place=lambda window: "a step of the search")
        self._optimizer = optimizer
        self._before = before
        self._watch = watch
        self._advance = advance
        self._held_out: list[Any] = []
        self._probed: list[Any] = []
        self._uses_batch_statistics = True
        self._losses_before: dict[int, float] = {}
        self._labels_are_known = False
        self._has_stepped = False
        self._without_a_step = 0
        # A training_step of the user's own is judged by itself where no evaluation_step goes with it.
        own_alone = context.has_own_training_step and not context.has_own_evaluation_step
        self._judged_step = context.training_step if own_alone else context.evaluation_step
        self._judged_name = "training_step" if own_alone else "evaluation_step"
        self.note = ""
        self.windows: Callable[[], Iterable[Window]] = lambda: ()

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out batches to judge by."""
        return bool(self._held_out)

    @property
    def read_lag(self) -> int:
        """Steps after which a loss is read, so that an accelerator is not waited for."""
        return 2 if self._context.engine.asynchronous else 0

    def begin(self) -> None:
        """The state of the snapshot, ready for training."""
        self._before.restore()
        self._before.set_workers_aside()
        set_training_mode(self._context.model)
        set_training_point(self._context.optimizers)
        self._runner.begin_pass()

    def open(self, train_data: Iterable[Any], val_data: Iterable[Any] | None) -> None:
        """Hold batches out, and put them on the device."""
        self.windows = lambda: windows(train_data, self._accumulate)
        steps_itself = self._judged_name == "training_step" and self._context.other_optimizers
        if self._watch is not None or steps_itself:
            self.note = "" if self._watch is not None else "training_step steps optimizers itself: its loss is judged"
            return
        normalises = any(isinstance(module, _BATCH_NORM) for module in self._context.model.modules())
        data = HeldOutData(
            train_data, val_data, self._accumulate, JUDGED_SAMPLES, MOST_JUDGED_BATCHES, needs_mixed=normalises
        )
        self._held_out = [self._context.engine.move(batch) for batch in data.batches]
        self._uses_batch_statistics = all(batch_size(batch) != 1 for batch in self._held_out)
        self.windows = data.windows
        self.note = data.note
        if self._held_out and not self._can_judge():
            self._held_out = []
            self.windows = lambda: windows(train_data, self._accumulate)  # none need be held out
        self._probed = self._few_samples()

    def _can_judge(self) -> bool:
        """Whether the step gives a loss in evaluation mode; a step of the user's own may not."""
        if self._judged_name == "evaluation_step":
            has_loss = self._first_output().loss is not None
            if not has_loss:
                self.note = "evaluation_step gives no loss, so training losses are judged"
            return has_loss
        try:
            has_loss = self._first_output().loss is not None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            cause = error if error.__cause__ is None else error.__cause__
            self.note = (
                f"training_step can't be run without gradients ({type(cause).__name__}: "
                f"{str(cause).partition(chr(10))[0]}), so training losses are judged"
            )
            return False
        return has_loss

    def _few_samples(self) -> list[Any]:
        """What a range test looks at; a compiled model would be compiled anew for a batch of another size."""
        first = self._held_out[:1]
        sizes = [batch_size(batch) or 1 for batch in first]
        if sum(sizes) < PROBE_SAMPLES:
            return self._held_out[:PROBE_BATCHES]
        if getattr(self._context.model, "_compiled_call_impl", None) is not None:
            return first
        return split(Window(first, sizes, sum(sizes)), sizes[0] // PROBE_SAMPLES).batches[:1]

    def seconds_per_step(self, rate: float) -> float:
        """The mean time of a step, with that of opening the data again, at a rate that changes little."""
        self.begin()
        rate_setter(self._optimizer)(rate)
        dealt = endless(self.windows)
        seconds = []
        for _ in range(TIMED_STEPS + 1):
            started = time.perf_counter()
            self._next_step(dealt)()  # reading the loss waits for the device
            seconds.append(time.perf_counter() - started)
        dealt.close()
        return statistics.fmean(seconds[1:])  # the first one makes kernels, buffers and the optimizer's state

    def step(self, window: Window) -> tuple[Callable[[], float] | None, bool]:
        """One optimizer step.

        Returns:
            A function that reads the loss, None where no batch of the window has one; and whether the step was taken.
        """
        steps_before = self._optimizer.current_steps
        loss, _ = self._runner.step(window)
        if loss is None:
            return None, False
        watched = loss if self._watch is None else torch.as_tensor(self._watch())
        taken = self._optimizer.current_steps > steps_before
        self._without_a_step += not taken
        self._has_stepped = self._has_stepped or taken
        return self._context.engine.read_later(watched), taken

    def train(self, rate: float, steps: int, rung: int, multiplier: Callable[[int], float], *, whole: bool) -> Trial:
        """Train from the snapshot with a schedule.

        Args:
            rate: The base rate.
            steps: Optimizer steps.
            rung: For the record.
            multiplier: The schedule, squeezed into the steps; its momentum is used, too.
            whole: The training is of full length: it is judged as a validation would, by running statistics.
        """
        count = max(round(min(BATCHES_PER_STEP * steps, len(self._held_out))), 1)
        loss_before = self.loss_before(count)
        self.begin()
        set_rate = rate_setter(self._optimizer)
        dealt = endless(self.windows)
        tail: list[Callable[[], float]] = []
        first_of_tail = steps - max(steps // 4, 1)
        look_every = max(steps // LOOKS, 1)
        finite = True
        for step in range(steps):
            set_rate(rate * multiplier(step), momentum_of(multiplier, step))
            read = self._next_step(dealt)
            self._advance()
            if self._without_a_step >= MOST_WITHOUT_A_STEP:
                self.check_stepped()
            if step >= first_of_tail:
                tail.append(read)
            if (step + 1) % look_every == 0 and not math.isfinite(read()):
                finite = False
                break
        dealt.close()
        if not finite:
            return Trial(rate, steps, math.inf, loss_before, rung)
        loss = self._judge(count, whole=whole) if self._held_out else statistics.fmean(read() for read in tail)
        return Trial(rate, steps, loss if math.isfinite(loss) else math.inf, loss_before, rung)

    def _next_step(self, dealt: Iterator[Window]) -> Callable[[], float]:
        """A step with the next window that has a loss, as a training goes on after one that has none."""
        for _ in range(MOST_WITHOUT_A_STEP):
            read, _ = self.step(next(dealt))
            if read is not None:
                return read
        raise ValueError(
            f"training_step: it gave no loss for {MOST_WITHOUT_A_STEP} steps in a row; no rate can be tried"
        )

    def check_stepped(self) -> None:
        """Raise where the optimizer took no step at all; fp16 may have skipped them all."""
        if not self._has_stepped and self._context.engine.precision != "fp16":
            raise ValueError("optimizer: training_step took no step with it; call its step() there, or search another")

    def loss_before(self, count: int) -> float:
        """The loss before any step: on so many held-out batches, or of the first windows in training."""
        if count not in self._losses_before:
            self.begin()
            self._losses_before[count] = self._judge(count) if self._held_out else self._training_loss_before()
        return self._losses_before[count]

    def _training_loss_before(self) -> float:
        rate_setter(self._optimizer)(1e-12)
        dealt = endless(self.windows)
        losses = [self._next_step(dealt)() for _ in range(LOOKS)]
        dealt.close()
        return statistics.fmean(losses)

    def probe(self) -> Callable[[], float]:
        """A function that reads the held-out loss that a range test looks at."""
        return self._mean_loss(self._probed, self._uses_batch_statistics)

    def _judge(self, count: int, *, whole: bool = False) -> float:
        """The mean loss on held-out batches.

        Args:
            count: On the first so many.
            whole: Use running statistics of batch normalisation. In short trainings these lag behind the weights, so
                those of the batch are used.
        """
        return self._mean_loss(self._held_out[:count], self._uses_batch_statistics and not whole)()

    @torch.no_grad()
    def _mean_loss(self, held_out: list[Any], uses_batch_statistics: bool) -> Callable[[], float]:
        total, together = torch.zeros(()), torch.zeros(())
        with _evaluating(self._context.modules, uses_batch_statistics):
            for batch in held_out:
                output = self._output(batch)
                if output.loss is None:
                    continue
                weight = weight_of(output)
                if weight is None:
                    weight = self._context.count_samples(batch) or 1
                part = torch.as_tensor(as_scalar(weight), dtype=torch.float32, device=output.loss.device)
                loss = output.loss.detach().float()
                total = torch.where(part > 0, loss * part, 0.0) + total  # of no targets at all the mean is NaN
                together = together + part
        return self._context.engine.read_later(total / together)

    @torch.no_grad()
    def knowledge(self) -> tuple[bool, bool]:
        """Whether the network has learnt something, and whether there is nothing left to learn.

        The loss is compared with what it is with the targets of other samples.
        """
        exchanged = self.exchanged_loss()
        loss = None if exchanged is None else self._first_output().loss
        if exchanged is None or loss is None:
            return False, False
        knows = exchanged - float(loss) > SWEEP.knows_something * abs(exchanged)
        return knows, knows and 0 <= float(loss) < SWEEP.nothing_left * exchanged

    @torch.no_grad()
    def exchanged_loss(self) -> float | None:
        """The loss of the first held-out batch with the targets of other samples; None where that means nothing."""
        loss = self._context.loss
        own = self._context.has_own_evaluation_step or self._context.has_own_training_step
        if loss is None or own or not self._held_out:
            return None  # outputs of a step of the user's own may be for metrics, and need not suit the loss
        output = self._first_output()
        targets = output.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) < 4:
            return None
        with _evaluating(self._context.modules, self._uses_batch_statistics), self._context.engine.autocast():
            return float(loss(output.outputs, targets.roll(len(targets) // 2, 0)))

    @torch.no_grad()
    def _first_output(self) -> StepOutput:
        with _evaluating(self._context.modules, self._uses_batch_statistics):
            return self._output(self._held_out[0])

    def _judge_batch(self, batch: Any) -> Any:
        engine = self._context.engine
        batch = engine.move(batch)  # which is on the device, but maybe in another memory format
        with engine.autocast():
            return self._judged_step(batch)

    def _output(self, batch: Any) -> StepOutput:
        checks = self._context.engine.asynchronous and not self._labels_are_known
        try:
            with checked_labels(checks):
                given = in_memory_format(self._context, "evaluation_step", self._judge_batch, batch)
            output = StepOutput(None) if given is None else as_step_output(given)
        except torch.OutOfMemoryError as error:
            raise explained(error, window_of([batch]), "a look of the search", 1) from error
        except Exception as error:
            explain_first_batch(error, batch, self._judged_name)
        self._labels_are_known = True
        return output


@contextlib.contextmanager
def _evaluating(roots: list[nn.Module], uses_batch_statistics: bool) -> Iterator[None]:
    """Evaluation mode; with batch statistics where they are asked for.

    Args:
        roots: The model, in training mode, and the loss.
        uses_batch_statistics: False for batches of one sample, which have none.
    """
    with preserved_modes(*roots):
        modules = [module for root in roots for module in root.modules()]
        training = [module for module in modules if isinstance(module, _BATCH_NORM) and module.training]
        for root in roots:
            root.eval()
        for module in training if uses_batch_statistics else ():
            module.train()
        yield
