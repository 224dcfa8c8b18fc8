"""Short trainings from one snapshot at several rates, in rungs: the best rates go on to longer ones.

The rungs are those of successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016, arXiv 1502.07943). Each
training runs the very schedule that is asked for, squeezed into its steps, since the best constant rate and the best
peak can't be computed from one another. Where there are steps enough, the last rung is the training itself.

Everything here is a pure function of what `run` returns, so that it is tried on recordings as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mxtorch.lr_finder.numbers import NUMBERS, SearchNumbers

# Neighbouring rates are half a decade apart: a finer grid costs more than it gains, as losses hardly differ on it.
SPACING = 0.5


@dataclass(frozen=True)
class Trial:
    """One short training.

    Attributes:
        rate: The base rate: the constant rate, or the peak of the schedule.
        steps: Optimizer steps.
        loss: The held-out loss after them, or the training loss of their last quarter; infinite where it is no number.
        loss_before: The same before them.
        rung: 0 for the first and shortest trainings.
    """

    rate: float
    steps: int
    loss: float
    loss_before: float
    rung: int

    @property
    def fall(self) -> float:
        """How far the loss fell; negative where it rose."""
        return self.loss_before - self.loss


@dataclass(frozen=True)
class Plan:
    """How the steps of a search are spent.

    Attributes:
        steps: Optimizer steps in all, at most.
        training_steps: The length of the training that the rate is for.
        lowest: No rate below it is tried.
        highest: No rate above it is tried.
        usual: The usual rate of the optimizer, where the window is.
        lengths: Steps of a training in each rung.
        narrow: Whether the window is one decade on either side.
    """

    steps: int
    training_steps: int
    lowest: float
    highest: float
    usual: float
    lengths: tuple[int, int, int]
    narrow: bool

    @classmethod
    def of(
        cls,
        steps: int,
        training_steps: int,
        usual: float,
        lowest: float = 0.0,
        highest: float = math.inf,
        numbers: SearchNumbers = NUMBERS,
    ) -> Plan:
        """The plan for a number of steps."""
        narrow = steps < numbers.few_steps
        first = 3 if narrow else numbers.decades_down + numbers.decades_up + 1
        # The second rung has five rates, the last one its three and mostly a fourth beyond one end.
        counts = (first, 5, numbers.rates_of_last_rung + 0.5)
        unit = steps / sum(count * length for count, length in zip(counts, numbers.lengths, strict=True))
        lengths = [max(int(unit * length), 1) for length in numbers.lengths]
        most = [max(int(part * training_steps), 1) for part in numbers.longest]
        shortest, middle, longest = (min(length, limit) for length, limit in zip(lengths, most, strict=True))
        return cls(steps, training_steps, lowest, highest, usual, (shortest, middle, longest), narrow)

    @property
    def most_steps(self) -> int:
        """Steps that can be of use: where the last rung has whole trainings, further ones tell nothing new."""
        first, middle, last = self.lengths
        return min(self.steps, 6 * first + 6 * middle + 6 * last)

    def window(self, numbers: SearchNumbers = NUMBERS) -> list[float]:
        """The rates of the first rung, a decade apart."""
        down, up = (1, 1) if self.narrow else (numbers.decades_down, numbers.decades_up)
        rates = [self.usual * 10.0**decade for decade in range(-down, up + 1)]
        inside = self.within(rates)
        if inside:
            return inside
        if 0 < self.lowest < self.highest < math.inf:
            return [math.sqrt(self.lowest * self.highest)]
        return [min(max(self.usual, self.lowest), self.highest)]

    def within(self, rates: Iterable[float]) -> list[float]:
        """The rates that are allowed, rising; those that differ in the last digits only once."""
        near = [rate for rate in sorted(rates) if self.lowest / 1.01 <= rate <= self.highest * 1.01]
        allowed = [min(max(rate, self.lowest), self.highest) for rate in near]
        return [rate for index, rate in enumerate(allowed) if index == 0 or not same(rate, allowed[index - 1])]


def try_rates(
    run: Callable[[float, int, int], Trial],
    plan: Plan,
    *,
    on_rung: Callable[[Sequence[float], int], None] = lambda rates, steps: None,
    run_rung: Callable[[Sequence[float], int, int], list[Trial]] | None = None,
    numbers: SearchNumbers = NUMBERS,
) -> list[Trial]:
    """All trainings of a search, in their order.

    Args:
        run: `run(rate, steps, rung)` trains from the snapshot.
        plan: How the steps are spent.
        on_rung: Called with the rates and the steps of each rung before it begins.
        run_rung: `run_rung(rates, steps, rung)` runs all trainings of a rung, as several processes do side by side; by
            default they are run one after the other.
        numbers: The settings.
    """
    trials: list[Trial] = []
    left = plan.most_steps

    def rung(rates: Sequence[float], number: int) -> list[Trial]:
        nonlocal left
        steps = plan.lengths[number]
        affordable = max(left // steps, 1) if not trials or number == 0 else left // steps
        on_rung(rates[:affordable], steps)
        if run_rung is not None:
            found = run_rung(rates[:affordable], steps, number)
        else:
            found = [run(rate, steps, number) for rate in rates[:affordable]]
        left -= steps * len(found)
        trials.extend(found)
        return found

    first = rung(plan.window(numbers), 0)
    moved = has_moved(first, numbers)
    # Where nothing has moved yet, no rate may be thrown away: the same ones are trained for longer.
    best = lowest_loss(first).rate
    middle = neighbours(best, plan, 2) if moved else [trial.rate for trial in first]
    second = rung(middle, 1) or first
    moved = has_moved(second, numbers)
    best = lowest_loss(second).rate
    if moved:
        last = rung(by_closeness(neighbours(best, plan, 1), best), 2)
    else:
        # A deep network that learns late learns at a high rate only, which is steady all the same.
        steady = [trial.rate for trial in second if trial.fall >= -numbers.movement * abs(trial.loss_before)]
        highest = max(steady, default=best)
        down = plan.within(highest * 10 ** (-SPACING * index) for index in range(numbers.rates_of_last_rung))
        last = rung(down[::-1], 2)
    while last and left >= plan.lengths[2]:
        tried = [trial.rate for trial in last]
        around = [*neighbours(lowest_loss(last).rate, plan, 1), *neighbours(choose(last, numbers).rate, plan, 1)]
        beyond = [rate for rate in around if not any(same(rate, one) for one in tried)]
        if not beyond:
            break
        last += rung(beyond[:1], 2)
    return trials


def neighbours(rate: float, plan: Plan, count: int) -> list[float]:
    """The rate with `count` rates on either side, half a decade apart."""
    return plan.within(rate * 10 ** (SPACING * index) for index in range(-count, count + 1))


def same(rate: float, other: float) -> bool:
    """Whether two rates are the same but for rounding."""
    return math.isclose(rate, other, rel_tol=0.01)


def by_closeness(rates: Sequence[float], best: float) -> list[float]:
    """The rates with the best first, then the lower ones: if steps run out, a rate too high costs more."""
    return sorted(rates, key=lambda rate: (not same(rate, best), rate))


def lowest_loss(trials: Sequence[Trial]) -> Trial:
    """The training with the lowest loss; of equal ones that with the lowest rate."""
    return min(trials, key=lambda trial: (trial.loss, trial.rate))


def choose(trials: Sequence[Trial], numbers: SearchNumbers = NUMBERS) -> Trial:
    """The training whose rate is taken: of those about as good as the best, that with the lowest rate.

    Below the best rate a loss changes slowly, and above it there may be a cliff; on little data lower rates overfit
    less, which short trainings do not see.
    """
    best = lowest_loss(trials)
    if not math.isfinite(best.fall):  # neither the loss before nor that after need be a number
        return best
    enough = best.fall - numbers.close * abs(best.fall)
    return min((trial for trial in trials if trial.fall >= enough), key=lambda trial: trial.rate)


def is_saturated(trials: Sequence[Trial], numbers: SearchNumbers = NUMBERS) -> bool:
    """Whether the longest trainings gained next to nothing over those of the rung before, which are shorter."""
    rungs = sorted({trial.rung for trial in trials})[-2:]
    if len(rungs) < 2:
        return False
    shorter, longer = (lowest_loss([trial for trial in trials if trial.rung == rung]) for rung in rungs)
    if not numbers.shortest_compared <= shorter.steps < longer.steps or not has_moved([shorter], numbers):
        return False
    gain = (longer.fall - shorter.fall) / abs(longer.fall)
    return gain < numbers.saturated * math.log2(longer.steps / shorter.steps)


def has_moved(trials: Sequence[Trial], numbers: SearchNumbers = NUMBERS) -> bool:
    """Whether the best of the trainings has learnt something."""
    best = lowest_loss(trials)
    return math.isfinite(best.loss) and best.fall > numbers.movement * abs(best.loss_before)
