"""Initialisers that take no notice of the shape."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from mxtorch.init.base import Initializer, Place


@dataclasses.dataclass(frozen=True)
class Zeros(Initializer):
    """All zeros."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.zeros_(tensor)


@dataclasses.dataclass(frozen=True)
class Ones(Initializer):
    """All ones."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.ones_(tensor)


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """One value everywhere.

    Args:
        value: The value, a finite number.
    """

    value: float

    def __post_init__(self) -> None:
        self._check_numbers("value")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.constant_(tensor, self.value)


@dataclasses.dataclass(frozen=True)
class Uniform(Initializer):
    """Evenly between `a` and `b`; the defaults are those of `torch.nn.init.uniform_`.

    Args:
        a: The lower bound.
        b: The upper bound, not below `a`.
    """

    a: float = 0.0
    b: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers("a", "b")
        if self.a > self.b:
            raise ValueError(f"a: got {self.a} with b={self.b}; give a lower bound that is not above the upper one")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.uniform_(tensor, self.a, self.b, generator=generator)


@dataclasses.dataclass(frozen=True)
class Normal(Initializer):
    """Normally distributed; the defaults are those of `torch.nn.init.normal_`.

    Args:
        mean: The mean.
        std: The standard deviation.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers("mean")
        self._check_numbers("std", low=0.0)

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.normal_(tensor, self.mean, self.std, generator=generator)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normally distributed, without what lies outside of `a` and `b`; the defaults are torch's.

    The bounds are values, not multiples of the deviation: at `std=0.02` the default ones cut nothing off.

    Args:
        mean: The mean before truncation.
        std: The standard deviation before truncation.
        a: The lowest value.
        b: The highest value, above `a`.
    """

    mean: float = 0.0
    std: float = 1.0
    a: float = -2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        self._check_numbers("mean", "a", "b")
        self._check_numbers("std", low=0.0)
        if self.a >= self.b:
            raise ValueError(f"a: got {self.a} with b={self.b}; give a lowest value below the highest")
        if self.std == 0 or not self.a - 2 * self.std <= self.mean <= self.b + 2 * self.std:
            raise ValueError(
                f"mean: got {self.mean} with std={self.std}, a={self.a}, b={self.b}; give a positive std and a mean "
                "within two of them of the bounds, beyond which torch can't draw"
            )

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.trunc_normal_(tensor, self.mean, self.std, self.a, self.b, generator=generator)
