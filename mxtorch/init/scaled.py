"""Initialisers whose scale follows from the shape and from the activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mxtorch._checks import closest, whole_number
from mxtorch.init.base import Initializer, Place
from mxtorch.init.gain import calculate_gain, gain_of, known_nonlinearity

Mode = Literal["fan_in", "fan_out"]


@dataclasses.dataclass(frozen=True)
class _Gained(Initializer):
    """An initialiser of matrices with a gain.

    Args:
        gain: A factor; when left out, that of the layer's own activation, and 1 where it has none.
    """

    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None:
            self._check_numbers("gain")

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Two dimensions or more."""
        self._check_matrix(shape)

    def _gain(self, place: Place | None) -> float:
        if self.gain is not None:
            return self.gain
        gain = gain_of(place.activation) if place is not None else None
        return 1.0 if gain is None else gain


@dataclasses.dataclass(frozen=True)
class XavierUniform(_Gained):
    """Uniform with variance `gain^2 * 2 / (fan_in + fan_out)` (Glorot and Bengio 2010, sec. 4.2.1, eq. 16).

    Args:
        gain: A factor; when left out, that of the layer's own activation, and 1 where it has none.
    """

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.xavier_uniform_(tensor, self._gain(place), generator=generator)


@dataclasses.dataclass(frozen=True)
class XavierNormal(_Gained):
    """Normal with variance `gain^2 * 2 / (fan_in + fan_out)` (Glorot and Bengio 2010, sec. 4.2.1, eq. 12).

    Args:
        gain: A factor; when left out, that of the layer's own activation, and 1 where it has none.
    """

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.xavier_normal_(tensor, self._gain(place), generator=generator)


@dataclasses.dataclass(frozen=True)
class Orthogonal(_Gained):
    """A (semi-)orthogonal matrix times the gain (Saxe et al. 2013, arXiv 1312.6120, sec. 3).

    Dimensions after the first are taken as one. Each gate of a recurrent layer is orthogonal by itself.

    Args:
        gain: A factor; when left out, that of the layer's own activation, and 1 where it has none.
    """

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it; half precision by way of float32, for which the decomposition exists."""
        if tensor.dtype in (torch.float16, torch.bfloat16):
            precise = torch.empty_like(tensor, dtype=torch.float32)
            tensor.copy_(nn.init.orthogonal_(precise, self._gain(place), generator=generator))
        else:
            nn.init.orthogonal_(tensor, self._gain(place), generator=generator)


@dataclasses.dataclass(frozen=True)
class _Kaiming(Initializer):
    """An initialiser with variance `gain^2 / fan` (He et al. 2015)."""

    a: float = 0.0
    mode: Mode = "fan_in"
    nonlinearity: str | None = None

    def __post_init__(self) -> None:
        self._check_numbers("a")
        if self.mode not in ("fan_in", "fan_out"):
            raise ValueError(f"mode: got {self.mode!r}{closest(str(self.mode), ('fan_in', 'fan_out'))}")
        names = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
        if self.nonlinearity is not None and self.nonlinearity not in names:
            raise ValueError(f"nonlinearity: got {self.nonlinearity!r}{closest(str(self.nonlinearity), names)}")

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Two dimensions or more."""
        self._check_matrix(shape)

    def _draw(self, fill: Callable[..., Any], tensor: Tensor, generator: Any, place: Place | None) -> None:
        name, a, factor = self.nonlinearity or "leaky_relu", self.a, 1.0
        activation = place.activation if place is not None and self.nonlinearity is None else None
        gain = gain_of(activation)
        if activation is not None and gain is not None:
            name, a = known_nonlinearity(activation) or ("linear", 0.0)
            factor = gain / calculate_gain(name, a)
        fill(tensor, a, self.mode, name, generator=generator)
        if factor != 1.0:
            tensor.mul_(factor)


@dataclasses.dataclass(frozen=True)
class KaimingUniform(_Kaiming):
    """Uniform with variance `gain^2 / fan` (He et al. 2015, arXiv 1502.01852, sec. 2.2, eq. 10 and 14).

    Args:
        a: The negative slope of a leaky ReLU, where `nonlinearity` is that.
        mode: `"fan_in"` keeps the scale of activations, `"fan_out"` that of gradients. The fans are torch's, which on
            the weight of a transposed convolution are the wrong way round.
        nonlinearity: A name that `torch.nn.init.calculate_gain` knows. When left out, the layer's own activation; where
            it has none, torch's default, a leaky ReLU of slope `a`, which is ReLU at 0.
    """

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        self._draw(nn.init.kaiming_uniform_, tensor, generator, place)


@dataclasses.dataclass(frozen=True)
class KaimingNormal(_Kaiming):
    """Normal with variance `gain^2 / fan` (He et al. 2015, arXiv 1502.01852, sec. 2.2, eq. 10 and 14).

    Args:
        a: The negative slope of a leaky ReLU, where `nonlinearity` is that.
        mode: `"fan_in"` keeps the scale of activations, `"fan_out"` that of gradients. The fans are torch's, which on
            the weight of a transposed convolution are the wrong way round.
        nonlinearity: A name that `torch.nn.init.calculate_gain` knows. When left out, the layer's own activation; where
            it has none, torch's default, a leaky ReLU of slope `a`, which is ReLU at 0.
    """

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        self._draw(nn.init.kaiming_normal_, tensor, generator, place)


@dataclasses.dataclass(frozen=True)
class LecunUniform(Initializer):
    """Uniform with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", sec. 4.6)."""

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Two dimensions or more."""
        self._check_matrix(shape)

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.kaiming_uniform_(tensor, nonlinearity="linear", generator=generator)


@dataclasses.dataclass(frozen=True)
class LecunNormal(Initializer):
    """Normal with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", sec. 4.6).

    What self-normalising networks need before SELU (Klambauer et al. 2017, arXiv 1706.02515, sec. 2).
    """

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Two dimensions or more."""
        self._check_matrix(shape)

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.kaiming_normal_(tensor, nonlinearity="linear", generator=generator)


@dataclasses.dataclass(frozen=True)
class Fixup(Initializer):
    """For the inner layers of residual branches without norms (Zhang et al. 2019, arXiv 1901.09321, sec. 3).

    `kaiming_normal` for ReLU times `blocks ** (-1 / (2 * layers - 2))`. The last layer of each branch and the
    classifier start at `"zeros"`: give them that by pattern.

    Args:
        blocks: Residual branches in the network.
        layers: Layers with weights in each branch, at least 2.
    """

    blocks: int
    layers: int = 2

    def __post_init__(self) -> None:
        for field, least in (("blocks", 1), ("layers", 2)):
            value = whole_number(getattr(self, field))
            if value is None or value < least:
                raise ValueError(f"{field}: got {getattr(self, field)!r}; give an integer of at least {least}")
            object.__setattr__(self, field, value)

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Two dimensions or more."""
        self._check_matrix(shape)

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        tensor.mul_(self.blocks ** (-1 / (2 * self.layers - 2)))
