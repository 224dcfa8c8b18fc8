"""How good are suggested learning rates? Small real tasks, every tool, regret against the best rate of a grid.

    python -m benchmarks.lr_bench --data FOLDER [--quick] [--json FILE] [--figure FILE]

For each task every rate of a grid is trained to the end (the oracle); then each tool says a rate for three fresh
networks. Regret is (validation loss at the rate - best of the grid) / (untrained loss - best of the grid). Oracles
and suggestions are kept in `.cache/lr_bench`, by content.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.lr_bench import report
from benchmarks.lr_bench.oracle import oracles
from benchmarks.lr_bench.peers import FINDERS
from benchmarks.lr_bench.suggestions import collect
from benchmarks.lr_bench.tasks import TASKS

QUICK_TASKS = (
    "digits, MLP, RMSprop",
    "breast cancer, linear, Adam",
    "ants and bees, linear, momentum",
    "breast cancer, MLP, Nesterov",
    "diabetes, linear, SGD",
    "ants and bees, MLP, AdamW",
)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="has cifar10_subset.npz and hymenoptera/")
    parser.add_argument("--half", choices=["development", "reporting"], help="one half of the tasks")
    parser.add_argument("--quick", action="store_true", help="six small tasks")
    parser.add_argument("--finders", nargs="*", choices=[*FINDERS], default=[*FINDERS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()

    tasks = [task for task in TASKS if options.half in (None, task.half)]
    tasks = [task for task in tasks if not options.quick or task.name in QUICK_TASKS]
    pool = ProcessPoolExecutor(
        options.workers, mp_context=get_context("fork"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        best = oracles(tasks, options.data, pool)
        found = collect(tasks, options.finders, range(options.seeds), options.data, pool)
    rows = report.rows(tasks, best, found)
    print(report.tables(rows))
    for line in report.failures(found):
        print(line, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.figure:
        report.figure(tasks, best, found, options.figure)


if __name__ == "__main__":
    main()
