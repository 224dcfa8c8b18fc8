"""What a run was set up with, as plain values that a logger can show."""

from __future__ import annotations

from typing import Any

import torch

from mxtorch.training.callback import current_run
from mxtorch.training.trainer_view import TrainerView

Setting = str | int | float | bool
# Settings of optimizers that decide how a training goes, as they are named in parameter groups.
_OF_OPTIMIZERS = ("momentum", "betas", "weight_decay", "nesterov")
# Loggers keep numbers as float64, which has all integers up to here.
_LARGEST_NUMBER = 2**53


def run_settings(trainer: TrainerView, input_shape: tuple[int, ...] | None = None) -> dict[str, Setting]:
    """The settings of a run, what matters most first.

    Args:
        trainer: A trainer within `fit`.
        input_shape: The shape of the first input, with the batch as its first dimension, where it is known.
    """
    optimizer, run = trainer.optimizer, current_run(trainer)
    schedule = optimizer.schedule
    group = optimizer.param_groups[0]
    settings: dict[str, Setting] = {
        "model": str(getattr(trainer.model, "zoo_name", "") or type(trainer.model).__name__),
        "optimizer": type(optimizer.optimizer).__name__,
        "learning_rate": optimizer.base_learning_rate,
        "schedule": "none" if schedule is None else getattr(schedule, "__name__", type(schedule).__name__),
        "epochs": run.epochs,
    }
    batch_size = getattr(run.feed.data, "batch_size", None) or (input_shape[0] if input_shape else None)
    if isinstance(batch_size, int):
        settings["batch_size"] = batch_size
    if input_shape is not None and len(input_shape) == 4:
        settings["image_size"] = " x ".join(map(str, input_shape[2:]))
    elif input_shape is not None:
        settings["input_shape"] = " x ".join(map(str, input_shape[1:])) or "1"
    for name in _OF_OPTIMIZERS:
        if group.get(name):
            settings[name] = group[name] if isinstance(group[name], (bool, int, float)) else str(group[name])
    if len(optimizer.param_groups) > 1:
        rates = zip(optimizer.group_names, optimizer.base_learning_rates, strict=True)
        settings |= {f"learning_rate/{name}": rate for name, rate in rates}
    for name, other in trainer.other_optimizers.items():
        settings[f"learning_rate/{name}"] = other.base_learning_rate
    seed = torch.initial_seed()
    weights = getattr(trainer.model, "zoo_weights", None)
    settings |= {
        "accumulate": trainer.settings.accumulate,
        "clip_grad_norm": trainer.settings.clip_grad_norm or 0.0,
        "precision": trainer.engine.precision,
        "device": str(trainer.engine.device),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "seed": seed if seed < _LARGEST_NUMBER else str(seed),
    }
    return settings | ({"pretrained": str(weights)} if weights else {})


def metric_names(trainer: TrainerView) -> list[str]:
    """The names that metrics have in the history: `train/...`, and `val/...` in a run that validates."""
    train = [] if trainer.train_metrics is None else [f"train/{name}" for name in trainer.train_metrics]
    prefixes = [] if trainer.metrics is None else current_run(trainer).validation
    return train + [f"{prefix}/{name}" for prefix in prefixes for name in trainer.metrics]


def as_table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown."""
    if not rows:
        return "none"
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
