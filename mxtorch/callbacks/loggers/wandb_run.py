"""Figures in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxtorch.callbacks.loggers.base import Logger


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases (`pip install wandb`).

    Figures are drawn over the optimizer step, which is logged with them, because wandb's own count can't go back after
    a resume. A run that is resumed leaves out the steps that wandb has already. With `mode="offline"` it is a new run,
    with the steps from the checkpoint on.

    Args:
        project: The project.
        options: Further arguments of `wandb.init`, as `name`, `dir` or `mode="offline"`.

    Attributes:
        run: The `wandb.Run`; None before the first epoch.
    """

    def __init__(self, project: str, **options: Any) -> None:
        self.project = project
        self.options = options
        self.run: Any = None

    def start(self, settings: Mapping[str, Any], identity: str | None, step: int) -> str:
        """Open the run, or go on with the one of a checkpoint."""
        import wandb

        options = {"reinit": "create_new", **self.options}
        options["config"] = {**settings, **options.get("config", {})}
        if identity is not None and options.get("mode") != "offline":  # an offline run can't be gone on with
            options |= {"id": identity, "resume": "allow"}
        self.run = wandb.init(project=self.project, **options)
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def resume(self, step: int) -> int | None:
        """The last step that wandb has: the summary of a run comes back with it."""
        last = self.run.summary.get("step")
        return None if last is None else int(last)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures with their step."""
        self.run.log({**figures, "step": step})

    def finish(self) -> None:
        """Upload, or write, what is left."""
        self.run.finish()

    def __getstate__(self) -> dict[str, Any]:
        """Without the run."""
        return super().__getstate__() | {"run": None}
