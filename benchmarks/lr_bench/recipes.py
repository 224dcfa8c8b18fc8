"""What is recorded: data, a network, a loss, an optimizer, a batch size and a length, under a name.

Three groups: `long` (trainings of 600 to 5,000 steps, chosen by hand), `cheap` (drawn at random from a grammar) and
`small` (the twenty tasks of `tasks.py`, at 300 and at 1,500 steps).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lr_bench import tasks
from benchmarks.lr_bench.data import Split
from benchmarks.lr_bench.flat_optimizers import ADAPTIVE, OptimizerSpec
from benchmarks.lr_bench.fleet import Augment, Losses

Group = Literal["long", "cheap", "small"]
GROUPS: tuple[Group, ...] = ("long", "cheap", "small")


def classification(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, over scores [N, classes] or [N, classes, positions]."""
    losses = F.cross_entropy(outputs.float(), targets.long(), reduction="none")
    return losses.reshape(len(outputs), -1).mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each sample."""
    return (outputs.float() - targets).square().reshape(len(outputs), -1).mean(1)


@dataclass(frozen=True)
class Recipe:
    """A training to be recorded.

    Attributes:
        name: Says all that matters; decides the half.
        group: One of `GROUPS`.
        load: Gives the samples, from the data folder.
        network: Makes a network from torch's global generator.
        losses: One loss for each sample.
        optimizer: Kind and settings.
        batch_size: Samples a step.
        steps: The length of the training.
        augment: What is done to a training batch.
        clip: The largest norm of the gradient.
        bfloat16: Autocast in the forward pass.
        light: Whether one processor core is enough.
        features: What else is known: architecture, data, normalisation, pretrained.
        fixed_half: For the tasks that had a half before.
        shift: Half-decades by which the grid of rates lies higher than usual.
    """

    name: str
    group: Group
    load: Callable[[Path], Split]
    network: Callable[[], nn.Module]
    optimizer: OptimizerSpec
    batch_size: int
    steps: int
    losses: Losses = classification
    augment: Augment | None = None
    clip: float | None = None
    bfloat16: bool = False
    light: bool = False
    features: tuple[tuple[str, Any], ...] = ()
    fixed_half: str | None = None
    shift: int = 0

    @property
    def half(self) -> str:
        """Development or reporting, by a hash of the name."""
        if self.fixed_half:
            return self.fixed_half
        return "development" if hashlib.sha256(self.name.encode()).digest()[0] % 2 else "reporting"

    @property
    def rates(self) -> list[float]:
        """Half-decade steps: 1e-5 to 10 for the SGD kind, 1e-6 to 1 for the others (3 for Adagrad)."""
        lowest = -10 if self.optimizer.kind not in ADAPTIVE else -11 if self.optimizer.kind == "Adagrad" else -12
        return [float(f"{10 ** ((lowest + self.shift + index) / 2):.6g}") for index in range(13)]


def recipes(group: Group) -> list[Recipe]:
    """All of a group."""
    if group == "long":
        from benchmarks.lr_bench.long_tasks import RECIPES

        return list(RECIPES)
    if group == "cheap":
        from benchmarks.lr_bench.drawn_tasks import drawn

        return drawn()
    return [_of_task(task, steps) for task in tasks.TASKS for steps in (300, 1500)]


def _of_task(task: tasks.Task, steps: int) -> Recipe:
    optimizer = task.optimizer([nn.Parameter(torch.zeros(1))])
    names = {"SGD": ("momentum", "nesterov", "weight_decay")}.get(type(optimizer).__name__, ("weight_decay",))
    settings = {name: optimizer.defaults[name] for name in names if optimizer.defaults[name]}

    return Recipe(
        f"{task.name}, {steps} steps",
        "small",
        task.load,
        task.network,
        OptimizerSpec(type(optimizer).__name__, settings),
        task.batch_size,
        steps,
        losses=squared_error if isinstance(task.loss(), nn.MSELoss) else classification,
        light=task.name.startswith(("digits, ", "breast", "diabetes", "ants")) and "CNN" not in task.name,
        features=(("data", task.name.split(", ")[0]), ("architecture", task.name.split(", ")[1])),
        fixed_half=task.half,
    )
