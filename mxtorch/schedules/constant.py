"""A constant rate."""

from __future__ import annotations

import dataclasses

from mxtorch.schedules.base import Schedule


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """`factor` for the first `total_iters` steps, then 1, as torch's `ConstantLR`; by default always 1.

    Args:
        factor: The multiplier of the first steps.
        total_iters: How many these are.

    Example:
        >>> [Constant(0.1, total_iters=2)(step) for step in range(4)]
        [0.1, 0.1, 1.0, 1.0]
    """

    factor: float = 1.0
    total_iters: int = 0

    def __post_init__(self) -> None:
        self._check_number("factor")
        self._check_length("total_iters", at_least=0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return self.factor if step < self.total_iters else 1.0
