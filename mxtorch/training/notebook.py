"""How a trainer is shown in a notebook."""

from __future__ import annotations

import html

from mxtorch.training.trainer_view import TrainerView


def trainer_as_html(trainer: TrainerView) -> str:
    """A table: the model, its parameters, loss, optimizer with its rates, device, and how far training is."""
    parameters = list(trainer.model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    optimizer = trainer.optimizer
    rates = zip(optimizer.group_names, optimizer.learning_rates, strict=True)
    shown_rates = ", ".join(f"{name} {rate:.2g}" for name, rate in rates)
    schedule = optimizer.schedule
    rows = {
        "model": f"{getattr(trainer.model, 'zoo_name', '') or type(trainer.model).__name__}, {count:,} parameters"
        + ("" if trained == count else f", {trained:,} of them trained"),
        "loss": "the model's own" if trainer.loss is None else getattr(trainer.loss, "__name__", str(trainer.loss)),
        "optimizer": type(optimizer.optimizer).__name__,
        "learning rate": shown_rates if len(optimizer.param_groups) > 1 else f"{optimizer.learning_rate:.2g}",
        "schedule": "none" if schedule is None else str(schedule),
        "metrics": ", ".join(trainer.metrics) if trainer.metrics is not None else "none",
        "device": f"{trainer.engine.device}, {trainer.engine.precision}",
        "trained": f"{trainer.epoch} epochs, {trainer.step} steps",
    }
    lines = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table style='text-align:left'>{lines}</table>"
