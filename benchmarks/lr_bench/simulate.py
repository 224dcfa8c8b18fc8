"""The search of `find_lr`, run on recordings: what its rules for spending steps and for reading trials are worth.

    python -m benchmarks.lr_bench.simulate [--half development|reporting]

`mxtorch.lr_finder.trials.try_rates` asks for short trainings and gets recorded ones: of the nearest rate of the grid,
and of the longest recorded length that is not longer. A whole training is one of another seed, so that no landscape
judges itself: the regret of a suggestion is then judged by the remaining seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.lr_bench.landscape import GROUPS, USES, Seed, Task, Use, load
from mxtorch.lr_finder.numbers import NUMBERS
from mxtorch.lr_finder.suggestion import Reading, read_trials, rule_of_thumb
from mxtorch.lr_finder.trials import Plan, Trial, try_rates

# Steps that the default's 20 seconds are: at 10 ms a step for the long trainings, 5 ms for the others.
STEPS_OF_DEFAULT = {"long": 2000, "cheap": 4000, "small": 4000}


RUNS: dict[str, Callable[[Task], int]] = {
    "100 steps": lambda task: 100,
    "400 steps": lambda task: 400,
    "20%": lambda task: round(0.2 * task.steps),
    "default": lambda task: max(round(0.2 * task.steps), STEPS_OF_DEFAULT[task.group]),
}


@dataclass(frozen=True)
class Found:
    """One simulated search."""

    task: Task
    use: Use
    reading: Reading
    regret: float
    steps: int


def search(task: Task, index: int, use: Use, steps: int) -> Reading:
    """The search with a number of steps, from the recordings of one seed."""
    seed = task.seeds[index]
    plan = Plan.of(steps, task.steps, task.default_rates[use], float(task.rates[0]), float(task.rates[-1]))
    if steps < NUMBERS.fewest_steps:
        return rule_of_thumb(plan)
    shorts = seed.short(use)
    other = _other(task, index, use)
    before = float(seed.untrained_slices.mean())

    def run(rate: float, length: int, rung: int) -> Trial:
        place = int(np.argmin(np.abs(np.log10(task.rates) - math.log10(rate))))
        rate = float(task.rates[place])
        if length >= NUMBERS.whole * task.steps and other is not None:
            return Trial(rate, length, float(_final(other, use)[place]), other.untrained, rung)
        usable = [n for n in shorts if n <= max(length, min(shorts))]
        recorded = shorts[max(usable)]
        loss = float(recorded.batch_slices.mean(1)[place])
        taken = max(usable) if length >= min(shorts) else length  # so that lengths are compared as they were recorded
        return Trial(rate, taken, loss if math.isfinite(loss) else math.inf, before, rung)

    trials = try_rates(run, plan)
    return read_trials(trials, plan, is_constant=use == "constant", is_held_out=True, passes=task.features["epochs"])


def _final(seed: Seed, use: Use) -> np.ndarray:
    return seed.val[use][:, -1]


def _other(task: Task, index: int, use: Use) -> Seed | None:
    """The next seed with a landscape, for whole trainings."""
    others = [seed for seed in (*task.seeds[index + 1 :], *task.seeds[:index]) if use in seed.val]
    return others[0] if others else None


def judged(task: Task, index: int, use: Use, rate: float | None, *, whole: bool) -> float:
    """The regret by all seeds but the one whose landscape was searched."""
    used = _other(task, index, use) if whole else None
    seeds = [seed for seed in task.seeds if use in seed.val and seed is not used] or list(task.seeds)
    losses = np.mean([_final(seed, use) for seed in seeds], axis=0)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    best, untrained = float(losses.min()), float(np.mean([seed.untrained for seed in seeds]))
    if rate is None:
        return 1.0
    regrets = np.clip((losses - best) / max(untrained - best, 1e-12), 0, 1.5)
    return float(np.interp(math.log10(rate), np.log10(task.rates), regrets))


def run_all(tasks: list[Task], steps_of: Callable[[Task], int]) -> list[Found]:
    """A search for every task, seed and use."""
    found = []
    for task in tasks:
        for use in USES:
            for index, seed in enumerate(task.seeds):
                if not seed.short(use) or use not in seed.val:
                    continue
                steps = steps_of(task)
                reading = search(task, index, use, steps)
                plan = Plan.of(steps, task.steps, 1.0)
                whole = plan.lengths[2] >= NUMBERS.whole * task.steps
                regret = judged(task, index, use, reading.suggestion, whole=whole)
                found.append(Found(task, use, reading, regret, steps))
    return found


def table(label: str, found: list[Found]) -> str:
    """A line for each group and use."""
    lines = []
    for group in GROUPS:
        for use in USES:
            own = [one for one in found if one.task.group == group and one.use == use]
            if not own:
                continue
            names = list(dict.fromkeys(one.task.name for one in own))
            means = [statistics.fmean(one.regret for one in own if one.task.name == name) for name in names]
            sure = [one.regret for one in own if one.reading.status == "ok"]
            covered = [
                one.reading.interval[0] * 0.99 <= one.task.best(use)[0] <= one.reading.interval[1] * 1.01
                for one in own
                if one.reading.interval is not None
            ]
            lies = f"{sum(regret > 0.1 for regret in sure)}/{len(sure)}"
            lines.append(
                f"{label:10} {group:6} {use:10} {len(names):3d} tasks  median {statistics.median(means):.3f}  mean "
                f"{statistics.fmean(means):.3f}  worst {max(means):.2f}  >.1 {sum(m > 0.1 for m in means):3d}  ok "
                f"{len(sure) / len(own):4.0%}  ok>.1 {lies:>7}  interval {statistics.fmean(covered):4.0%}"
            )
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "reporting"))
    parser.add_argument("--show", action="store_true", help="list the searches with a regret above .1")
    options = parser.parse_args()
    tasks = load(half=options.half)
    for label, steps_of in RUNS.items():
        found = run_all(tasks, steps_of)
        print(table(label, found))
        for one in found if options.show else ():
            if one.regret > 0.1:
                best = one.task.best(one.use)[0]
                print(
                    f"    {one.task.name[:60]:60} {one.use:10} {one.reading.status:6} {one.reading.suggestion}", end=" "
                )
                print(f"best {best:.2g} regret {one.regret:.2f}")


if __name__ == "__main__":
    main()
