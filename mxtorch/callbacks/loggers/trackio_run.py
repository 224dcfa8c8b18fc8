"""Figures in Trackio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxtorch.callbacks.loggers.base import Logger


class TrackioLogger(Logger):
    """Logs to a run of Trackio (`pip install trackio`), which keeps it in a file of this machine.

    Trackio keeps all figures that it is given, so a run that is resumed leaves out the steps that it has already.

    Args:
        project: The project.
        options: Further arguments of `trackio.init`, as `name` or `space_id`.

    Attributes:
        run: The `trackio.Run`; None before the first epoch.
    """

    def __init__(self, project: str, **options: Any) -> None:
        self.project = project
        self.options = options
        self.run: Any = None

    def start(self, settings: Mapping[str, Any], identity: str | None, step: int) -> str:
        """Open the run, or go on with the one of a checkpoint, by its name."""
        import trackio

        options = dict(self.options)
        options["config"] = {**settings, **options.get("config", {})}
        if identity is not None:
            options |= {"name": identity, "resume": "allow"}
        self.run = trackio.init(project=self.project, **options)
        return str(self.run.name)

    def resume(self, step: int) -> int | None:
        """The last step that Trackio has, after which the run would count on by itself."""
        following: int = self.run._next_step  # no public name tells it
        return following - 1 if following else None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures with their step."""
        self.run.log(dict(figures), step=step)

    def finish(self) -> None:
        """Write what is left."""
        self.run.finish()

    def __getstate__(self) -> dict[str, Any]:
        """Without the run."""
        return super().__getstate__() | {"run": None}
