"""Drawing a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(schedule: Callable[[int], float], total_steps: int, axes: Axes | None = None) -> Axes:
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

        _, axes = plt.subplots(figsize=(6, 3), layout="tight")
    filled_in: Any = getattr(schedule, "for_steps", None)
    shown = schedule if filled_in is None else filled_in(total_steps)
    axes.plot(range(total_steps), [shown(step) for step in range(total_steps)], color="#e07a1f")
    axes.set_title(getattr(schedule, "__name__", type(schedule).__name__), loc="left", fontsize=11)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("multiple of the base rate")
    axes.grid(alpha=0.25)
    return axes
