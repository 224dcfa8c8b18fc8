"""What is best: every rate of a grid, trained to the end, with a constant rate and with one-cycle."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mxtorch.lr_finder.heats import Use
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.lr_bench.data import CACHE
from benchmarks.lr_bench.tasks import TASKS, TRAINING_STEPS, Setup, Task
from mxtorch import ScheduledOptim, schedules

# Thirds of a decade from 1e-5 to 20.
GRID = (*(10 ** (-5 + index / 3) for index in range(19)), 20.0)
USES: tuple[Use, ...] = ("constant", "one_cycle")
SEEDS = (100, 101)  # not those of the sweeps
# A loss that is no number, or further above the untrained loss than this many drops, counts as that far.
WORST_REGRET = 3.0


@dataclass(frozen=True)
class Oracle:
    """The validation loss after training at each rate of the grid, the mean of the seeds.

    Attributes:
        untrained: Before training.
        losses: For each use, a loss for each rate.
    """

    untrained: float
    losses: dict[Use, list[float]]

    def best(self, use: Use) -> tuple[float, float]:
        """The best rate of the grid, and its loss."""
        index = int(np.nanargmin(self.losses[use]))
        return GRID[index], self.losses[use][index]

    def regret(self, rate: float, use: Use) -> float:
        """(loss at the rate - best of the grid) / (untrained loss - best of the grid), at most 3.

        Between the rates of the grid the regret is interpolated, linearly in the logarithm of the rate.
        """
        best = self.best(use)[1]
        values = np.array(self.losses[use], dtype=np.float64)
        regrets = np.nan_to_num((values - best) / (self.untrained - best), nan=WORST_REGRET, posinf=WORST_REGRET)
        return float(np.interp(math.log(rate), np.log(GRID), np.minimum(regrets, WORST_REGRET)))


def validation_loss(model: nn.Module, loss: nn.Module, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The mean loss over all samples."""
    model.eval()
    total = count = 0.0
    with torch.inference_mode():
        for inputs, targets in loader:
            total += float(loss(model(inputs), targets)) * len(inputs)
            count += len(inputs)
    model.train()
    return total / count


def train(setup: Setup, rate: float, use: Use, steps: int = TRAINING_STEPS) -> float:
    """Train for so many steps; returns the validation loss, NaN when the training loss was no number."""
    schedule = schedules.OneCycle().for_steps(steps) if use == "one_cycle" else None
    optimizer = ScheduledOptim(setup.optimizer)
    optimizer.set_learning_rate(rate)
    optimizer.schedule = schedule
    step = 0
    while True:
        for inputs, targets in setup.train_loader:
            optimizer.zero_grad()
            loss = setup.loss(setup.model(inputs), targets)
            if not math.isfinite(loss.item()):
                return math.nan
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                return validation_loss(setup.model, setup.loss, setup.val_loader)


def oracle_path(task: Task, folder: Path) -> Path:
    """Where a task's oracle is kept; its name follows from the task's content."""
    return CACHE / "oracles" / f"{task.digest(folder)}.json"


def oracles(tasks: Sequence[Task], folder: Path, pool: Executor) -> dict[str, Oracle]:
    """The oracle of each task, by its name; those that are not in the cache are computed."""
    missing = [task for task in tasks if not oracle_path(task, folder).exists()]
    runs = [(task.name, use, rate, seed, folder) for task in missing for use in USES for rate in GRID for seed in SEEDS]
    bar = tqdm(pool.map(_run, runs), total=len(runs), desc="oracles", disable=not runs)
    results = dict(zip(runs, bar, strict=True))
    for task in missing:
        losses = {
            use: [float(np.mean([results[task.name, use, rate, seed, folder] for seed in SEEDS])) for rate in GRID]
            for use in USES
        }
        setups = [task.setup(folder, seed) for seed in SEEDS]
        untrained = float(np.mean([validation_loss(setup.model, setup.loss, setup.val_loader) for setup in setups]))
        path = oracle_path(task, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"task": task.name, "untrained": untrained, "losses": losses}))
    return {task.name: _read(oracle_path(task, folder)) for task in tasks}


def _run(run: tuple[str, Use, float, int, Path]) -> float:
    name, use, rate, seed, folder = run
    task = next(task for task in TASKS if task.name == name)
    return train(task.setup(folder, seed), rate, use)


def _read(path: Path) -> Oracle:
    content = json.loads(path.read_text())
    return Oracle(content["untrained"], content["losses"])
