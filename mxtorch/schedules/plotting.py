"""Drawing a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxtorch.schedules.base import Schedule, ScheduleFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(schedule: ScheduleFunction, total_steps: int, axes: Axes | None = None) -> Axes:
    """Draw a schedule over a run.

    Args:
        schedule: A schedule, whose lengths are filled in where they were left out; or any function of the step.
        total_steps: Optimizer steps of the run.
        axes: Where to draw; a new figure when left out.

    Returns:
        The axes.

    Example:
        >>> from mxtorch.schedules import OneCycle
        >>> plot(OneCycle(), total_steps=1000).get_xlabel()
        'optimizer steps'
    """
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(6, 3))
    if isinstance(schedule, Schedule):
        schedule = schedule.for_steps(total_steps)
    axes.plot(range(total_steps), [schedule(step) for step in range(total_steps)], color="#e07a1f")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("multiple of the base rate")
    return axes
