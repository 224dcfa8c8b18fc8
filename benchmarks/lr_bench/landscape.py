"""The recordings, to try an estimator of the rate on: what each rate would have cost, and tables of it.

    >>> from benchmarks.lr_bench.landscape import load, report
    >>> def suggest(task, seed, use, budget):  # the lowest of the short trainings of 60 steps
    ...     short = seed.short(use)[60]
    ...     return float(short.rates[short.losses.argmin()]), "ok"
    >>> print(report(load(), {"60 steps": suggest}))  # doctest: +SKIP

`python -m benchmarks.lr_bench.landscape` prints some simple rules. `recordings/README.md` describes the format.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RECORDINGS = Path(__file__).parent / "recordings"
Use = Literal["constant", "one_cycle"]
USES: tuple[Use, ...] = ("constant", "one_cycle")
GROUPS = ("long", "cheap", "small")
WORST_REGRET = 1.5
# A suggestion of None counts as a training that changes nothing.
REGRET_OF_NO_RATE = 1.0
Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Short:
    """Short trainings of one length, one for each rate.

    Attributes:
        steps: Their length; a one-cycle schedule is squeezed into it.
        rates: The rates, ascending.
        slices: Held-out loss after them, the means of eight slices of the samples [rates, 8]; inf where it broke.
        batch_slices: The same with batch normalisation by the held-out samples; the same as `slices` without any.
        train: The mean training loss over their last quarter.
    """

    steps: int
    rates: Array
    slices: Array
    batch_slices: Array
    train: Array

    @property
    def losses(self) -> Array:
        """The held-out loss of each rate."""
        return self.slices.mean(1)

    @property
    def batch_losses(self) -> Array:
        """The held-out loss of each rate, normalised by the batch."""
        return self.batch_slices.mean(1)

    @property
    def errors(self) -> Array:
        """The standard error of each loss."""
        with np.errstate(invalid="ignore"):
            return self.slices.std(1, ddof=1) / math.sqrt(self.slices.shape[1])

    def error_of_difference(self, first: int, second: int) -> float:
        """The standard error of the difference of two rates' losses, of the same samples."""
        with np.errstate(invalid="ignore"):
            difference = self.slices[first] - self.slices[second]
            return float(difference.std(ddof=1) / math.sqrt(len(difference)))


@dataclasses.dataclass(frozen=True, eq=False)
class Seed:
    """One recording of a task: initial weights and orders of the samples by this seed.

    Attributes:
        seed: Which.
        untrained: The validation loss before training.
        untrained_slices: Of the held-out samples, the means of eight slices.
        seconds_per_step: Of one network trained alone in a plain loop.
        val: For each use the validation loss after 25, 50, 75 and 100% of the training [rates, 4]; inf where it broke.
        train: For each use the mean training loss of the last 5% of the steps [rates].
        sweeps: Two range tests: rates [100], training loss before each step [100], steps of the held-out looks [33],
            held-out losses [33, 8].
    """

    seed: int
    rates: Array
    untrained: float
    untrained_slices: Array
    seconds_per_step: float
    val: dict[Use, Array]
    train: dict[Use, Array]
    sweeps: list[dict[str, Array]]
    _short: dict[str, Any]

    def short(self, use: Use) -> dict[int, Short]:
        """The short trainings of a use by their length; empty where none were recorded."""
        return {int(steps): self._one(int(steps), content) for steps, content in self._short[use].items()}

    def _one(self, steps: int, content: dict[str, Any]) -> Short:
        held_out = content["held_out"]
        slices = numbers(held_out["running"])
        batch = numbers(held_out.get("batch", held_out["running"]))
        return Short(steps, self.rates, slices, batch, numbers(content["train"]))


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task and its recordings.

    Attributes:
        name: Unique.
        group: `long`, `cheap` or `small`.
        half: `development` or `reporting`.
        features: Optimizer, batch size, sizes, normalisation and so on.
        rates: The grid.
        default_rates: What people take without a finder, for each use.
        seeds: The recordings.
    """

    name: str
    group: str
    half: str
    features: dict[str, Any]
    rates: Array
    default_rates: dict[Use, float]
    seeds: tuple[Seed, ...]

    @property
    def steps(self) -> int:
        """The length of the training."""
        return int(self.features["steps"])

    @functools.cached_property
    def untrained(self) -> float:
        """Validation loss before training, the mean of the seeds."""
        return statistics.mean(seed.untrained for seed in self.seeds)

    @functools.cache  # noqa: B019, tasks live as long as the program
    def losses(self, use: Use) -> Array:
        """Final validation loss of each rate: the mean of the seeds, each no higher than 1.5 drops over the best."""
        best = min(float(seed.val[use][:, -1].min()) for seed in self.seeds)
        ceiling = best + WORST_REGRET * (self.untrained - best)
        return np.mean([np.minimum(seed.val[use][:, -1], ceiling) for seed in self.seeds], axis=0)

    def best(self, use: Use) -> tuple[float, float]:
        """The best rate of the grid, and its loss."""
        losses = self.losses(use)
        index = int(losses.argmin())
        return float(self.rates[index]), float(losses[index])

    def regret(self, use: Use, rate: float | None) -> float:
        """(loss at the rate - best) / (untrained - best), from 0 to 1.5, linear in log rate between the grid's rates.

        Beyond the ends of the grid it is that of the end, or 1 where that is more. No rate counts as 1.
        """
        if rate is None or not math.isfinite(rate) or rate <= 0:
            return REGRET_OF_NO_RATE
        best = self.best(use)[1]
        regrets = np.clip((self.losses(use) - best) / (self.untrained - best), 0, WORST_REGRET)
        value = float(np.interp(math.log(rate), np.log(self.rates), regrets))
        outside = not self.rates[0] / 1.01 <= rate <= self.rates[-1] * 1.01
        return max(value, 1.0) if outside else value

    @property
    def learns(self) -> bool:
        """Whether some rate brings the validation loss down by 2% of it or more, with either use."""
        return min(self.best(use)[1] for use in USES) < 0.98 * self.untrained


def numbers(values: Any) -> Array:
    """An array; null is infinite."""
    return np.nan_to_num(np.array(values, dtype=np.float64), nan=math.inf)


def load(groups: Iterable[str] = GROUPS, *, half: str | None = None, folder: Path = RECORDINGS) -> list[Task]:
    """All recorded tasks of these groups, of one half if asked."""
    tasks: list[Task] = []
    for group in groups:
        path = folder / f"{group}.json"
        recorded = json.loads(path.read_text()) if path.exists() else []
        tasks += [_task(raw) for raw in recorded if half in (None, raw["half"])]
    return tasks


def _task(raw: dict[str, Any]) -> Task:
    rates = np.array(raw["rates"])
    seeds = []
    for recorded in raw["seeds"]:
        landscape = recorded["landscape"]
        sweeps = [
            {
                "rates": np.logspace(-7, 1, len(sweep["train"])),
                "train": numbers(sweep["train"]),
                "looks": np.arange(3, len(sweep["train"]) + 1, 3),
                "held_out": numbers(sweep["held_out"]["running"]),
                "batch_held_out": numbers(sweep["held_out"].get("batch", sweep["held_out"]["running"])),
            }
            for sweep in recorded["sweeps"]
        ]
        seeds.append(
            Seed(
                recorded["seed"],
                rates,
                recorded["untrained"],
                numbers(recorded["held_out"]["running"]),
                recorded["seconds_per_step"],
                {use: numbers(landscape[use]["val"]) for use in USES},
                {use: numbers(landscape[use]["train"]) for use in USES},
                sweeps,
                recorded["short"],
            )
        )
    return Task(raw["name"], raw["group"], raw["half"], raw["features"], rates, raw["default_rates"], tuple(seeds))


# (task, seed, use, budget) to (rate or None, status); None where there is nothing to judge.
Suggest = Callable[[Task, Seed, Use, "float | None"], "tuple[float | None, str] | None"]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One suggestion and what it costs."""

    task: Task
    seed: int
    use: Use
    rate: float | None
    status: str
    regret: float

    @property
    def bias(self) -> float | None:
        """log10(rate / best)."""
        return None if self.rate is None else math.log10(self.rate / self.task.best(self.use)[0])


def rows(tasks: Sequence[Task], suggest: Suggest, budget: float | None = None) -> list[Row]:
    """Ask for every task, seed and use; seeds that are recorded in part and tasks where nothing learns are left out."""
    result = []
    for task in tasks:
        for seed in task.seeds:
            if not task.learns or not seed.sweeps:
                continue
            for use in USES:
                said = suggest(task, seed, use, budget)
                if said is not None:
                    result.append(Row(task, seed.seed, use, *said, task.regret(use, said[0])))
    return result


def report(
    tasks: Sequence[Task], suggesters: Mapping[str, Suggest], budget: float | None = None, *, halves: bool = True
) -> str:
    """A table for each group (and half): regret, closeness, and how often `ok` lies, constant / one-cycle."""
    found = {name: rows(tasks, suggest, budget) for name, suggest in suggesters.items()}
    parts = []
    for group in GROUPS:
        for half in ("development", "reporting") if halves else (None,):
            chosen = {
                name: [row for row in part if row.task.group == group and half in (None, row.task.half)]
                for name, part in found.items()
            }
            if any(chosen.values()):
                count = len({row.task.name for part in chosen.values() for row in part})
                parts.append(f"{group}, {half or 'both halves'}: {count} tasks\n{_table(chosen)}")
    return "\n\n".join(parts)


def _table(found: Mapping[str, Sequence[Row]]) -> str:
    head = ("rule", "median", "mean", "worst", "> .1", "within 3x", "bias", "ok", "ok > .1", "spread")
    width = max(map(len, found))
    lines = [f"{head[0]:{width}}  " + "  ".join(f"{cell:>13}" for cell in head[1:])]
    for name, part in found.items():
        if not part:
            continue
        columns: list[list[str]] = []
        for use in USES:
            own = [row for row in part if row.use == use]
            # Each task weighs the same, however many seeds it has.
            by_task = [[row.regret for row in own if row.task is task] for task in dict.fromkeys(r.task for r in own)]
            regrets = [statistics.fmean(of_task) for of_task in by_task]
            biases = [row.bias for row in own if row.bias is not None]
            ok = [row.regret for row in own if row.status == "ok"]
            columns.append(
                [
                    f"{statistics.median(regrets):.3f}",
                    f"{statistics.mean(regrets):.3f}",
                    f"{max(regrets):.2f}",
                    f"{statistics.mean(regret > 0.1 for regret in regrets):.0%}",
                    f"{sum(abs(bias) <= math.log10(3) + 0.03 for bias in biases) / len(own):.0%}",
                    f"{statistics.mean(biases):+.2f}" if biases else "-",
                    f"{len(ok) / len(own):.0%}",
                    f"{statistics.mean(regret > 0.1 for regret in ok):.0%}" if ok else "-",
                    _spread(own),
                ]
            )
        cells = [f"{first} {second}" for first, second in zip(*columns, strict=True)]
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def _spread(own: Sequence[Row]) -> str:
    """The median over the tasks with several seeds of the highest rate over the lowest, in decades."""
    by_task: dict[str, list[float]] = {}
    for row in own:
        if row.rate is not None:
            by_task.setdefault(row.task.name, []).append(math.log10(row.rate))
    spreads = [max(rates) - min(rates) for rates in by_task.values() if len(rates) > 1]
    return f"{statistics.median(spreads):.2f}" if spreads else "-"


# Simple rules, to compare with


def default_rate(task: Task, seed: Seed, use: Use, budget: float | None) -> tuple[float, str]:
    """No finder: 1e-3 or 1e-2, three times that for one-cycle."""
    return task.default_rates[use], "ok"


def default_rate_for_every_use(task: Task, seed: Seed, use: Use, budget: float | None) -> tuple[float, str]:
    """No finder: 1e-3 or 1e-2."""
    return task.default_rates["constant"], "ok"


def tenth_for_sgd(task: Task, seed: Seed, use: Use, budget: float | None) -> tuple[float, str]:
    """No finder: 1e-1 as one-cycle's peak with the SGD kind, else as `default_rate`."""
    sgd = task.features["optimizer"] == "SGD" and use == "one_cycle"
    return 0.1 if sgd else task.default_rates[use], "ok"


def lowest_after(steps: int, *, cliff: float = 0.0) -> Suggest:
    """The rate with the lowest held-out loss after short trainings of its own schedule.

    Args:
        steps: Their length, or the longest below it that was recorded.
        cliff: How many decades to go down where the next rate up ends worse than untrained.
    """

    def suggest(task: Task, seed: Seed, use: Use, budget: float | None) -> tuple[float, str]:
        recorded = seed.short(use)
        short = recorded[max(length for length in recorded if length <= steps)]
        index = int(np.nan_to_num(short.losses, nan=math.inf).argmin())
        worse = index + 1 < len(short.rates) and short.losses[index + 1] > seed.untrained_slices.mean()
        return float(short.rates[index]) * (10**-cliff if worse else 1), "ok"

    return suggest


def peers(folder: Path = RECORDINGS) -> dict[str, Suggest]:
    """What the other tools said, one rate for both uses; seeds that were not asked are left out."""
    path = folder / "peers.json"
    suggestions = json.loads(path.read_text())["suggestions"] if path.exists() else {}

    def rule(tool: str) -> Suggest:
        def suggest(task: Task, seed: Seed, use: Use, budget: float | None) -> tuple[float | None, str] | None:
            said = suggestions.get(task.name, {}).get(tool, {})
            if str(seed.seed) not in said:
                return None
            rate = said[str(seed.seed)]
            return rate, "ok" if rate is not None else "none"

        return suggest

    return {tool: rule(tool) for tool in dict.fromkeys(tool for said in suggestions.values() for tool in said)}


RULES: dict[str, Suggest] = {
    "no finder": default_rate,
    "no finder, not tripled": default_rate_for_every_use,
    "no finder, 0.1 for SGD": tenth_for_sgd,
    **{f"lowest after {steps}": lowest_after(steps) for steps in (20, 60, 120, 240, 480)},
    **{f"lowest after {steps}, cliff": lowest_after(steps, cliff=0.5) for steps in (60, 240)},
}


def main() -> None:
    """Print what the simple rules cost, or one task's landscape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=["development", "reporting"])
    parser.add_argument("--show", action="store_true", help="the regrets of every rate of every task")
    options = parser.parse_args()
    tasks = load(half=options.half)
    if options.show:
        for task in tasks:
            print(f"\n{task.group}, {task.half}: {task.name}; untrained {task.untrained:.3g}, {len(task.seeds)} seeds")
            print("            " + " ".join(f"{rate:6.0e}" for rate in task.rates))
            for use in USES:
                print(
                    f"{use:10}  " + " ".join(f"{task.regret(use, rate):6.3f}" for rate in task.rates),
                    f"  best {task.best(use)[1]:.4g}",
                )
        return
    print(report(tasks, {**RULES, **peers()}))


if __name__ == "__main__":
    main()
