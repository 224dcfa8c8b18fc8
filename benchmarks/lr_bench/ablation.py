"""What each part of the estimator contributes: the recorded searches, read again with one part left out.

    python -m benchmarks.lr_bench.ablation --data FOLDER [--half development]

It needs what `python -m benchmarks.lr_bench` has left in `.cache/lr_bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from mxtorch.lr_finder.estimate import Estimate

from benchmarks.lr_bench.oracle import USES, oracles
from benchmarks.lr_bench.report import REGRET_OF_NO_RATE
from benchmarks.lr_bench.suggestions import collect, read
from benchmarks.lr_bench.tasks import TASKS
from mxtorch.lr_finder import heats as racing

Reading = Callable[[dict[str, Any], Any], Estimate]
# The package has a function of the module's name.
estimating = importlib.import_module("mxtorch.lr_finder.estimate")
FAR = 99.0  # decades: a threshold that is never reached


def without_held_out(search: dict[str, Any], held_out: Any) -> Estimate:
    """Read off the training loss."""
    return read(search, [])


def held_out_alone(search: dict[str, Any], held_out: Any) -> Estimate:
    """The training loss not read beside it."""
    with mock.patch.object(estimating, "_lower", lambda from_held_out, *_: from_held_out):
        return read(search, held_out)


def without_heats(search: dict[str, Any], held_out: Any) -> Estimate:
    """The sweep alone."""
    return read(search, held_out, heats=False)


@contextlib.contextmanager
def changed(module: Any, **constants: float) -> Iterator[None]:
    """Constants of a module set to other values."""
    with contextlib.ExitStack() as patches:
        for name, value in constants.items():
            patches.enter_context(mock.patch.object(module, name, value))
        yield


SWEEPS: dict[str, tuple[Reading, Any]] = {
    "as it is": (read, {}),
    "the training loss alone": (without_held_out, {}),
    "the held-out loss alone": (held_out_alone, {}),
    "no rate from the edge alone": (read, {"edge alone": False}),
    "without the middle of the descent": (read, {"GAP_OF_EDGE": FAR, "GAP_OF_FLOOR": FAR + 1}),
    "the edge alone, a fixed divisor": (read, {"ABOVE_FALL": FAR, "GAP_OF_EDGE": FAR, "GAP_OF_FLOOR": FAR + 1}),
    "the fall alone, a fixed factor": (read, {"BELOW_EDGE": -FAR, "GAP_OF_EDGE": FAR, "GAP_OF_FLOOR": FAR + 1}),
    "one rate for both uses": (read, {"ONE_CYCLE_FACTOR": 1.0}),
}
HEATS: dict[str, tuple[Reading, Any]] = {
    "as it is": (read, {}),
    "without heats: a sweep of 80 steps": (without_heats, {}),
    "without the correction for the horizon": (read, {"HORIZON_POWER": 0.0}),
    "the power one half, as for constant rates": (read, {"HORIZON_POWER": 0.5}),
    "without trying the constant rate": (read, {"SHARE_TO_BRING": -FAR}),
    "one rate for both uses": (read, {"ONE_CYCLE_FACTOR": 1.0}),
}


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=["development", "reporting"], default="development")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    tasks = [task for task in TASKS if task.half == options.half]
    with ProcessPoolExecutor(1) as pool:
        best = oracles(tasks, options.data, pool)
        for finder, variants in (("mxtorch, 100 steps", SWEEPS), ("mxtorch, 500 steps", HEATS)):
            found = collect(tasks, [finder], range(options.seeds), options.data, pool)
            print(f"\n{finder}, {options.half}: constant / one-cycle\n")
            print("| part left out | median regret | mean | worst |\n| --- | --- | --- | --- |")
            for label, (reading, change) in variants.items():
                regrets: dict[str, list[float]] = {use: [] for use in USES}
                for (name, _, _), said in found.items():
                    constants = {key: value for key, value in change.items() if key != "edge alone"}
                    module = racing if constants.keys() & {"HORIZON_POWER", "SHARE_TO_BRING"} else estimating
                    with changed(module, **constants):
                        reading_now = reading(said["search"], said["held_out"])
                    refused = change.get("edge alone") is False and reading_now.status == "edge_only"
                    for use in USES:
                        rate = None if refused else reading_now.suggestions.get(use)
                        regrets[use].append(REGRET_OF_NO_RATE if rate is None else best[name].regret(rate, use))
                figures = [(statistics.median(part), statistics.mean(part), max(part)) for part in regrets.values()]
                cells = [" / ".join(f"{value:.3f}" for value in column) for column in zip(*figures, strict=True)]
                print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
