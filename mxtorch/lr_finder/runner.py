"""The short trainings of a search: each begins from the same snapshot and is judged by held-out samples."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.data.sharding import is_dealt
from mxtorch.engines.base import Engine
from mxtorch.lr_finder.held_out import HeldOutData
from mxtorch.lr_finder.numbers import SWEEP
from mxtorch.lr_finder.range_test import RateSetter, endless
from mxtorch.lr_finder.trainable import Trainable
from mxtorch.lr_finder.trials import Trial
from mxtorch.optim.scheduled import multiplier_of
from mxtorch.schedules import momentum_of
from mxtorch.training.data import Window, windows
from mxtorch.training.modes import preserved_modes
from mxtorch.training.out_of_memory import split
from mxtorch.training.supervised import batch_size

# The standard error of a held-out loss of this many samples is small enough to compare rates. More cost time.
JUDGED_SAMPLES = 512
MOST_JUDGED_BATCHES = 16
# A forward pass costs about a third of a step. With this many held-out batches a step, judging adds a tenth.
BATCHES_PER_STEP = 0.3
# A range test measures the held-out loss often, so on fewer samples.
PROBE_SAMPLES = 64
PROBE_BATCHES = 2
TIMED_STEPS = 5
# A short training checks this many times whether its loss is still a number, and ends if it is not.
LOOKS = 4
# After this many steps in a row without an optimizer step, the search asks whether training_step steps the optimizer at
# all. The processes ask together. So the steps are counted anew in each training: a process runs some trainings alone.
MOST_WITHOUT_A_STEP = 40
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class SearchRunner:
    """The trainings of a search.

    Args:
        trainable: The training whose rate is searched.
        before: The snapshot from which every training begins.
        watch: A function that returns the loss to judge by after each step, in place of the held-out loss; or None.
        advance: A function that is called after every step, for a progress bar.

    Attributes:
        trainable: The training whose rate is searched.
        engine: The engine of the processes that train.
        can_train_alone: Whether one of several processes can train by itself, on the batches of all processes.
        together: The time of a step that all processes take together, divided by the time of a step that one process
            takes alone; see `side_by_side.run_all`.
        windows: A function that opens a pass over the training data.
        is_held_out: Whether there are held-out batches to judge by.
        note: A sentence on what the search could not do as usual; empty if there is nothing to say.
    """

    def __init__(
        self,
        trainable: Trainable,
        before: TrainingState,
        watch: Callable[[], float | Tensor] | None,
        advance: Callable[[], Any],
    ) -> None:
        self.trainable = trainable
        self.engine = trainable.engine
        self._before = before
        self._watch = watch
        self._advance = advance
        self._held_out: list[Any] = []
        self._probed: list[Any] = []
        self._uses_batch_statistics = True
        self._losses_before: dict[int, float] = {}
        self._has_stepped = False
        self._without_a_step = 0
        self.note = ""
        self.can_train_alone = False
        self.together = 0.0
        self._batches = functools.partial(_batches, trainable.accumulate, trainable.engine)
        self._held_out_batches = 1  # to a batch of a step, which several processes have together
        self.windows: Callable[[], Iterable[Window]] = lambda: ()

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out batches to judge by."""
        return bool(self._held_out)

    def begin(self) -> RateSetter:
        """Restore the snapshot and prepare for training; return the function that sets the rate."""
        self._before.restore()
        self._before.set_workers_aside()
        self._without_a_step = 0
        self.trainable.begin()
        return self.trainable.rate_setter()

    def open(self, train_data: Iterable[Any], val_data: Iterable[Any] | None) -> None:
        """Hold batches out, and put them on the device."""
        self.can_train_alone = not self.engine.shards and is_dealt(train_data)
        batches = self._batches  # the functions that open the data do not hold the runner that holds them
        self.windows = lambda: windows(train_data, batches())
        reason = self.trainable.why_training_losses()
        if self._watch is not None or reason is not None:
            self.note = "" if self._watch is not None else reason or ""
            return
        normalises = any(isinstance(part, _BATCH_NORM) for root in self.trainable.modules for part in root.modules())
        with self.engine.whole_data():  # all processes judge by the same samples
            self._held_out_batches = self.engine.dealt
            most = MOST_JUDGED_BATCHES * self.engine.dealt
            data = HeldOutData(train_data, val_data, batches, JUDGED_SAMPLES, most, needs_mixed=normalises)
        self._held_out = [self.trainable.move(batch) for batch in data.batches]
        self._uses_batch_statistics = all(batch_size(batch) != 1 for batch in self._held_out)
        self.windows = data.windows
        self.note = data.note
        if self._held_out:
            self.begin()
            with torch.no_grad(), self._evaluating():
                why_not = self.trainable.why_not_judged(self._held_out[0])
            if why_not:
                self.note = why_not
                self._held_out = []
                self.windows = lambda: windows(train_data, batches())  # none need be held out
        self._probed = self._few_samples()

    def _few_samples(self) -> list[Any]:
        """Return the samples for a range test; a whole batch for a compiled model, which another size compiles anew."""
        first = self._held_out[:1]
        sizes = [batch_size(batch) or 1 for batch in first]
        if sum(sizes) < PROBE_SAMPLES:
            return self._held_out[:PROBE_BATCHES]
        if self.trainable.is_compiled:
            return first
        return split(Window(first, sizes, sum(sizes)), sizes[0] // PROBE_SAMPLES).batches[:1]

    def seconds_per_step(self, rate: float) -> float:
        """Measure the mean time of a step, including the time to open the data, at a rate that changes little.

        Several processes measure two ways to train: all processes take each step together, or each process trains a
        rate of its own. The quotient of the two times is kept in `together`. The method returns the time of the faster
        way, divided by the number of rates that are trained at once.
        """
        engine = self.engine
        if engine.world_size == 1:
            return self._seconds_per_step(rate)
        together: float = engine.broadcast(self._seconds_per_step(rate))
        if not self.can_train_alone:
            return together
        with engine.alone():
            seconds = self._seconds_per_step(rate)
        alone: float = engine.broadcast(seconds)
        self.together = together / max(alone, 1e-9)
        return min(together, alone / engine.world_size)

    def _seconds_per_step(self, rate: float) -> float:
        self.begin()(rate)
        dealt = endless(self.windows)
        seconds = []
        for _ in range(TIMED_STEPS + 1):
            started = time.perf_counter()
            self._next_step(dealt)()  # to read the loss is to wait for the device
            seconds.append(time.perf_counter() - started)
        dealt.close()
        return statistics.fmean(seconds[1:])  # the first step also makes kernels, buffers and the optimizer's state

    def step(self, window: Window) -> tuple[Callable[[], float] | None, bool]:
        """Take one optimizer step.

        Returns:
            A function that reads the loss, or None if no batch of the window has one; and whether the step was taken.
        """
        loss, taken = self.trainable.step(window)
        if loss is None:
            return None, False
        watched = loss if self._watch is None else torch.as_tensor(self._watch())
        self._without_a_step = 0 if taken else self._without_a_step + 1
        self._has_stepped = self._has_stepped or taken
        return self.trainable.read_later(watched), taken

    def train(self, rate: float, steps: int, rung: int, multiplier: Callable[[int], float], *, whole: bool) -> Trial:
        """Train from the snapshot with a schedule.

        Args:
            rate: The base rate.
            steps: Optimizer steps.
            rung: The number of the rung, for the record.
            multiplier: The schedule, squeezed into the steps; its momentum is used, too.
            whole: Whether the training has the full length. It is then judged as in validation, by running statistics.

        Raises:
            ValueError: The schedule gives a multiplier that is negative or not finite.
        """
        count = min(max(round(BATCHES_PER_STEP * steps), 1) * self._held_out_batches, max(len(self._held_out), 1))
        loss_before = self.loss_before(count)
        set_rate = self.begin()
        dealt = endless(self.windows)
        tail: list[Callable[[], float]] = []
        first_of_tail = steps - max(steps // 4, 1)
        look_every = max(steps // LOOKS, 1)
        finite = True
        for step in range(steps):
            set_rate(rate * multiplier_of(multiplier, step), momentum_of(multiplier, step))
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
        """Take a step with the next window that has a loss. A window without a loss does not end a training either."""
        for _ in range(MOST_WITHOUT_A_STEP):
            read, _ = self.step(next(dealt))
            if read is not None:
                return read
        name = self.trainable.step_name
        raise ValueError(f"{name}: it gave no loss for {MOST_WITHOUT_A_STEP} steps in a row; no rate can be tried")

    def check_stepped(self) -> None:
        """Raise if the optimizer took no step at all. In fp16 all steps may have been skipped, which is no error."""
        if not self.engine.agree(self._has_stepped) and not self.trainable.may_skip_steps:
            raise ValueError(
                f"optimizer: {self.trainable.step_name} took no step with it; call its step() there, or search another"
            )

    def loss_before(self, count: int) -> float:
        """Return the loss before any step, on `count` held-out batches or else on the first training windows."""
        if count not in self._losses_before:
            set_rate = self.begin()
            self._losses_before[count] = self._judge(count) if self._held_out else self._training_loss_before(set_rate)
        return self._losses_before[count]

    def _training_loss_before(self, set_rate: RateSetter) -> float:
        set_rate(1e-12)
        dealt = endless(self.windows)
        losses = [self._next_step(dealt)() for _ in range(LOOKS)]
        dealt.close()
        return statistics.fmean(losses)

    def probe(self) -> Callable[[], float]:
        """Measure the held-out loss for a range test; return a function that reads it."""
        return self._mean_loss(self._probed, self._uses_batch_statistics)

    def _judge(self, count: int, *, whole: bool = False) -> float:
        """Return the mean loss on held-out batches.

        Args:
            count: The number of batches.
            whole: Whether batch normalisation uses its running statistics. In short trainings these lag behind the
                weights, so the statistics of the batch are used.
        """
        with self.trainable.judged_weights():
            return self._mean_loss(self._held_out[:count], self._uses_batch_statistics and not whole)()

    @torch.no_grad()
    def _mean_loss(self, held_out: list[Any], uses_batch_statistics: bool) -> Callable[[], float]:
        total, together = torch.zeros(()), torch.zeros(())
        with self._evaluating(uses_batch_statistics):
            for batch in held_out:
                loss, weight = self.trainable.loss_of(batch)
                if loss is None:
                    continue
                part = torch.as_tensor(weight, dtype=torch.float32, device=loss.device)
                total = torch.where(part > 0, loss.detach().float() * part, 0.0) + total  # without targets it is NaN
                together = together + part
        # Several processes have the same weights and batches here, but the last digits could differ.
        return self.trainable.read_later(self.engine.reduce(total / together))

    @torch.no_grad()
    def knowledge(self) -> tuple[bool, bool]:
        """Return whether the network has learnt something, and whether there is nothing left to learn.

        The loss is compared with the loss for the targets of other samples.
        """
        exchanged = self.exchanged_loss()
        if exchanged is None:
            return False, False
        with self._evaluating():
            loss, _ = self.trainable.loss_of(self._held_out[0])
        if loss is None:
            return False, False
        knows = exchanged - float(loss) > SWEEP.knows_something * abs(exchanged)
        return knows, knows and 0 <= float(loss) < SWEEP.nothing_left * exchanged

    @torch.no_grad()
    def exchanged_loss(self) -> float | None:
        """Return the first held-out batch's loss with the targets of other samples; None if that has no meaning."""
        if not self._held_out:
            return None
        with self._evaluating():
            return self.trainable.exchanged_loss(self._held_out[0])

    @contextlib.contextmanager
    def _evaluating(self, uses_batch_statistics: bool | None = None) -> Iterator[None]:
        """Set evaluation mode in the block.

        Args:
            uses_batch_statistics: Whether batch normalisation uses the statistics of the batch. With None, it does if
                all batches have more than one sample, because one sample has no statistics.
        """
        if uses_batch_statistics is None:
            uses_batch_statistics = self._uses_batch_statistics
        roots = self.trainable.modules
        with preserved_modes(*roots):
            modules = [module for root in roots for module in root.modules()]
            training = [module for module in modules if isinstance(module, _BATCH_NORM) and module.training]
            for root in roots:
                root.eval()
            for module in training if uses_batch_statistics else ():
                module.train()
            yield


def _batches(accumulate: int, engine: Engine) -> int:
    """Return the number of batches in a step; a process that trains alone takes the batches of all processes."""
    return accumulate * engine.dealt
