"""What `Trainer.find_lr` itself suggests for the recorded tasks, by default and with a budget of a fifth.

    python -m benchmarks.lr_bench.record_searches --data FOLDER --workers 8 [--gpus 1]
    python -m benchmarks.lr_bench.record_searches --report [--half development|reporting]

Network, first weights and data are those of the recording of the same seed; the order of the samples is another one, as
it is in a training after a search. The suggestions go to `recordings/searches.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.lr_bench.jobs import run_jobs
from benchmarks.lr_bench.landscape import GROUPS, RECORDINGS, USES, Task, load
from benchmarks.lr_bench.recipes import recipes
from benchmarks.lr_bench.record_peers import setup

SEARCHES = RECORDINGS / "searches.json"
BUDGETS: dict[str, dict[str, Any]] = {"default": {}, "20%": {"budget": 0.2}}


def ask(job: tuple[str, int, str, str, Path, str, float]) -> dict[str, Any] | None:
    """One search."""
    name, seed, use, budget, folder, device, deadline = job
    if time.time() > deadline:
        return None
    from mxtorch import Trainer

    torch.set_num_threads(1)
    recipe = next(recipe for group in GROUPS for recipe in recipes(group) if recipe.name == name)
    line = {"task": name, "seed": seed, "use": use, "budget": budget}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = setup(recipe, folder, seed)
        trainer = Trainer(made.model, made.loss, made.optimizer, progress=False, device=device, channels_last=False)
        found = trainer.find_lr(
            made.train_loader, made.val_loader, schedule=use, training_steps=recipe.steps, **BUDGETS[budget]
        )
    steps = sum(trial.steps for trial in found.trials)
    return {
        **line,
        "rate": found.suggestion,
        "interval": found.interval,
        "status": found.status,
        "steps": steps,
        "longest": max((trial.steps for trial in found.trials), default=0),
        "seconds": round(found.seconds, 2),
        "trials": [
            [trial.rung, trial.steps, *(f"{x:.4g}" for x in (trial.rate, trial.loss))] for trial in found.trials
        ],
    }


def record(options: argparse.Namespace) -> None:
    """Run all searches that there is time for; long ones first."""
    end = time.time() + options.seconds
    devices = [f"cuda:{index}" for index in range(options.gpus)] or ["cpu"]
    jobs = [
        (
            recipe.name,
            seed,
            use,
            budget,
            options.data,
            devices[count % len(devices)] if group == "long" else "cpu",
            end,
        )
        for seed in range(options.seeds)
        for group in options.group
        for count, recipe in enumerate(recipes(group))
        for use in USES
        for budget in BUDGETS
        if not (group != "long" and budget == "20%" and seed > 0)
    ]
    for group in options.group:
        for recipe in recipes(group):
            recipe.load(options.data)
    method = "spawn" if options.gpus else "fork"
    count = run_jobs(ask, jobs, options.out, workers=options.workers, until=end + 20, method=method)
    print(f"{count} of {len(jobs)} searches")


def report(half: str | None) -> str:
    """Tables of what the searches found, beside no finder."""
    tasks = {task.name: task for task in load(half=half)}
    lines = [json.loads(text) for text in SEARCHES.read_text().splitlines()]
    found: list[tuple[Task, dict[str, Any], float]] = [
        (tasks[line["task"]], line, tasks[line["task"]].regret(line["use"], line["rate"]))
        for line in lines
        if line["task"] in tasks
    ]
    rows = []
    for budget in BUDGETS:
        for group in GROUPS:
            for use in USES:
                own = [
                    (task, line, regret)
                    for task, line, regret in found
                    if (task.group, line["use"], line["budget"]) == (group, use, budget)
                ]
                if own:
                    rows.append(_row(f"{budget:8} {group:6} {use:10}", use, own))
    return "\n".join(rows)


def _row(label: str, use: Any, own: list[tuple[Task, dict[str, Any], float]]) -> str:
    names = list(dict.fromkeys(task.name for task, _, _ in own))
    means = [statistics.fmean(regret for task, _, regret in own if task.name == name) for name in names]
    usual = [task.regret(use, task.default_rates[use]) for task in {task.name: task for task, _, _ in own}.values()]
    sure = [regret for _, line, regret in own if line["status"] == "ok"]
    far = sum(
        line["status"] == "ok" and abs(math.log10(line["rate"] / task.best(use)[0])) > math.log10(30) and regret > 0.1
        for task, line, regret in own
    )
    given = [(task, line) for task, line, _ in own if line["interval"]]
    covered = [line["interval"][0] * 0.99 <= task.best(use)[0] <= line["interval"][1] * 1.01 for task, line in given]
    spreads = [
        max(logs) - min(logs)
        for name in names
        if len(logs := [math.log10(line["rate"]) for task, line, _ in own if task.name == name and line["rate"]]) > 1
    ]
    spread = f"{statistics.median(spreads):.2f}/{max(spreads):.1f}" if spreads else "-"
    rates = sum(line["rate"] is not None for _, line, _ in own) / len(own)
    parts = [line["steps"] / task.steps for task, line, _ in own]
    return (
        f"{label} {len(names):3d} tasks {len(own):4d} searches  median {statistics.median(means):.3f} mean "
        f"{statistics.fmean(means):.3f} worst {max(means):.2f} | no finder {statistics.median(usual):.3f} "
        f"{statistics.fmean(usual):.3f} {max(usual):.2f} | ok {len(sure) / len(own):4.0%}, of these >.1 "
        f"{sum(regret > 0.1 for regret in sure)}, 30x off {far} | rate given {rates:4.0%} | interval "
        f"{statistics.fmean(covered):4.0%} | spread {spread} | "
        f"{statistics.median(line['seconds'] for _, line, _ in own):.1f} s, {statistics.median(parts):.2f} trainings"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--out", type=Path, default=SEARCHES)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--half", choices=("development", "reporting"))
    options = parser.parse_args()
    if options.report:
        print(report(options.half))
    elif options.data is None:
        parser.error("--data: give the folder of the data")
    else:
        record(options)


if __name__ == "__main__":
    main()
