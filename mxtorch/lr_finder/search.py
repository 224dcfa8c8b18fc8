"""The search for a learning rate, from the snapshot to the result: what every `find_lr` does."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mxtorch import schedules
from mxtorch._checks import closest, positive_rate
from mxtorch.callbacks.bars import progress_bar
from mxtorch.lr_finder import budget as budgets
from mxtorch.lr_finder.numbers import NUMBERS
from mxtorch.lr_finder.range_test import geometric_rates, range_test
from mxtorch.lr_finder.result import LRFinderResult, is_constant
from mxtorch.lr_finder.runner import SearchRunner
from mxtorch.lr_finder.side_by_side import run_all, same_random_numbers
from mxtorch.lr_finder.suggestion import ALREADY_TRAINED, Reading, read_trials, rule_of_thumb
from mxtorch.lr_finder.sweep_reading import read_sweep
from mxtorch.lr_finder.trainable import Trainable
from mxtorch.lr_finder.trials import Plan, Trial, try_rates
from mxtorch.optim.scheduled import check_callable, multiplier_of
from mxtorch.training.epoch_lengths import Accumulations

Method = Literal["trials", "sweep"]
Multiplier = Callable[[int], float]
SWEEP_STEPS, SWEEP_RANGE = 100, (1e-7, 10.0)  # the article's


@dataclass(frozen=True)
class Request:
    """What a user asked for; see `Trainer.find_lr`."""

    method: Method
    schedule: schedules.Schedule | Multiplier
    training_steps: int
    length_is_known: bool
    num_steps: int | None
    budget: float | None
    start_lr: float | None
    end_lr: float | None
    watch: Callable[[], float | Tensor] | None
    passes: float | None

    @property
    def has_budget(self) -> bool:
        """Whether the steps to spend are given, so that no time is measured for them."""
        return self.num_steps is not None or self.budget is not None

    @classmethod
    def checked(
        cls,
        train_data: Any,
        accumulations: Accumulations,
        *,
        schedule: Any,
        method: str = "trials",
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        training_steps: int | None = None,
        num_steps: int | None = None,
        budget: float | None = None,
        start_lr: float | None = None,
        end_lr: float | None = None,
        watch: Callable[[], float | Tensor] | None = None,
    ) -> Request:
        """The request, or a ValueError or TypeError that says what is wrong with it."""
        if method not in ("trials", "sweep"):
            raise ValueError(f"method: got {method!r}{closest(str(method), ('trials', 'sweep'))}")
        start_lr = None if start_lr is None else positive_rate(start_lr, "start_lr")
        end_lr = None if end_lr is None else positive_rate(end_lr, "end_lr")
        if method == "sweep":
            start_lr, end_lr = start_lr or SWEEP_RANGE[0], end_lr or SWEEP_RANGE[1]
        if start_lr is not None and end_lr is not None and start_lr >= end_lr:
            raise ValueError(f"start_lr: got {start_lr}, which is not below end_lr, {end_lr}; give a lower start_lr")
        num_steps, budget = budgets.checked_budget(num_steps, budget)
        length, known = budgets.training_length(train_data, accumulations, epochs, steps_per_epoch, training_steps)
        if isinstance(schedule, (str, schedules.Schedule)):
            schedule = schedules.get(schedule).for_steps(length)
        else:
            check_callable(schedule)
        multiplier_of(schedule, 0)  # so that a wrong function is refused before anything is read; later steps follow
        if watch is not None and not callable(watch):
            raise TypeError(f"watch: got {watch!r}; give a function without arguments that returns the loss")
        method_: Method = "sweep" if method == "sweep" else "trials"
        passes = budgets.passes(train_data, accumulations, length, steps_per_epoch)
        return cls(method_, schedule, length, known, num_steps, budget, start_lr, end_lr, watch, passes)


def search(
    trainable: Trainable,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None,
    request: Request,
    *,
    progress: bool = False,
) -> LRFinderResult:
    """Search a learning rate, and put everything back."""
    with same_random_numbers(trainable.engine):
        return _search(trainable, train_data, val_data, request, progress=progress)


def _search(
    trainable: Trainable,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None,
    request: Request,
    *,
    progress: bool,
) -> LRFinderResult:
    started = time.perf_counter()
    before = trainable.capture(train_data if val_data is None else (train_data, val_data))
    reporter = _Reporter(progress)
    runner = SearchRunner(trainable, before, request.watch, reporter.advance)
    by_method = _sweep if request.method == "sweep" else _trials
    try:
        result = by_method(runner, functools.partial(runner.open, train_data, val_data), request, reporter)
    finally:
        before.restore()
        reporter.close()
    return result.after(time.perf_counter() - started)


def _trials(
    runner: SearchRunner, open_data: Callable[[], None], request: Request, reporter: _Reporter
) -> LRFinderResult:
    """Short trainings at several rates."""
    usual = runner.trainable.usual_rate(is_constant(request.schedule))
    seconds: float | None = None
    if not request.has_budget:
        open_data()
        seconds = runner.seconds_per_step(usual / 100)
    steps = budgets.steps_of(request.num_steps, request.budget, request.training_steps, seconds)
    plan = Plan.of(steps, request.training_steps, usual, request.start_lr or 0.0, request.end_lr or float("inf"))
    trials: list[Trial] = []
    if steps < NUMBERS.fewest_steps:
        reading = rule_of_thumb(plan)
    else:
        if request.has_budget:
            open_data()
        if seconds is None and (runner.engine.world_size > 1 or reporter.shows):
            seconds = runner.seconds_per_step(usual / 100)
        reporter.begin(min(steps, plan.most_steps), seconds)
        reading, trials = _tried(runner, plan, request, reporter)
    return LRFinderResult(
        reading,
        request.schedule,
        method="trials",
        trials=tuple(trials),
        num_steps=steps,
        training_steps=request.training_steps,
        note=runner.note,
        optimizer_name=runner.trainable.optimizer_name,
    )


def _tried(runner: SearchRunner, plan: Plan, request: Request, reporter: _Reporter) -> tuple[Reading, list[Trial]]:
    """The trainings of a plan, and what they say."""
    runner.begin()
    knows_something, nothing_left = runner.engine.broadcast(runner.knowledge())
    if nothing_left:  # what the loss does then is in its last digits
        return Reading("already_trained", ALREADY_TRAINED), []

    def run(rate: float, length: int, rung: int) -> Trial:
        whole = length >= NUMBERS.whole * plan.training_steps
        multiplier = squeezed(request.schedule, plan.training_steps, length)
        return runner.train(rate, length, rung, multiplier, whole=whole)

    def run_rung(rates: Sequence[float], length: int, rung: int) -> list[Trial]:
        return run_all(runner.engine, rates, lambda rate: run(rate, length, rung), together=runner.together)

    trials = try_rates(run, plan, on_rung=reporter.on_rung, run_rung=run_rung)
    runner.check_stepped()
    reading = read_trials(
        trials,
        plan,
        is_constant=is_constant(request.schedule),
        is_held_out=runner.is_held_out,
        length_is_known=request.length_is_known,
        passes=request.passes,
        knows_something=knows_something,
    )
    return reading, trials


def _sweep(
    runner: SearchRunner, open_data: Callable[[], None], request: Request, reporter: _Reporter
) -> LRFinderResult:
    """The range test of the article."""
    assert request.start_lr is not None
    assert request.end_lr is not None
    steps = SWEEP_STEPS
    if request.has_budget:
        steps = max(budgets.steps_of(request.num_steps, request.budget, request.training_steps, None), 2)
    reporter.begin(steps, None)
    open_data()
    set_rate = runner.begin()
    swept = range_test(
        runner.step,
        runner.windows,
        set_rate,
        geometric_rates(request.start_lr, request.end_lr, steps),
        probe=runner.probe if runner.is_held_out else None,
        read_lag=runner.trainable.read_lag,
        on_step=lambda step, loss: reporter.advance(),
    )
    exchanged = None
    if runner.is_held_out:
        runner.begin()
        exchanged = runner.engine.broadcast(runner.exchanged_loss())
    if swept.stop_reason == "overflow":  # no step was seen at all
        runner.check_stepped()
    reading = read_sweep(
        swept.rates,
        swept.losses,
        swept.held_out,
        ended_early=swept.stop_reason != "completed",
        exchanged_loss=exchanged,
        is_constant=is_constant(request.schedule),
    )
    return LRFinderResult(
        reading,
        request.schedule,
        method="sweep",
        sweep=swept,
        num_steps=steps,
        training_steps=request.training_steps,
        note=runner.note,
        optimizer_name=runner.trainable.optimizer_name,
    )


@dataclass(frozen=True)
class Squeezed(schedules.Schedule):
    """A schedule of a training, run through in fewer steps."""

    schedule: Multiplier
    stretch: float

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return multiplier_of(self.schedule, round(step * self.stretch))

    def momentum(self, step: int) -> float | None:
        """The momentum."""
        return schedules.momentum_of(self.schedule, round(step * self.stretch))


def squeezed(schedule: Multiplier, training_steps: int, steps: int) -> Multiplier:
    """A schedule of a training, run through in fewer steps: its first and its last multiplier stay."""
    if steps >= training_steps:
        return schedule
    return Squeezed(schedule, (training_steps - 1) / max(steps - 1, 1))


class _Reporter:
    """Says how long a search will take, and how far it is: a bar in a terminal, a line a rung in a log file."""

    def __init__(self, shows: bool) -> None:
        self.shows = shows
        self._bar: Any = None

    def advance(self) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.update(1)

    def begin(self, steps: int, seconds_per_step: float | None) -> None:
        """Open the bar."""
        if not self.shows:
            return
        takes = "" if seconds_per_step is None else f", about {max(steps * seconds_per_step, 1):.0f} s"
        self._say(f"find_lr: up to {steps} steps{takes}")
        self._bar = progress_bar(steps, "find_lr")

    def on_rung(self, rates: Sequence[float], steps: int) -> None:
        """Show what comes next."""
        if not self.shows or not rates:
            return
        which = f"rates {min(rates):.1e} to {max(rates):.1e}" if len(rates) > 1 else f"rate {rates[0]:.1e}"
        words = f"{len(rates)} training{'s' * (len(rates) > 1)} of {steps} step{'s' * (steps > 1)}, {which}"
        if self._bar is None or self._bar.disable:
            self._say(f"find_lr: {words}")
        else:
            self._bar.set_postfix_str(words)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, words: str) -> None:
        print(words, file=sys.stderr)
