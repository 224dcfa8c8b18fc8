"""Initialisers that give a tensor a structure: identities, interpolation, sparsity, gates."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from mxtorch._checks import whole_number
from mxtorch.init.base import Initializer, Place, globally_seeded


@dataclasses.dataclass(frozen=True)
class Identity(Initializer):
    """The identity matrix; ones on the diagonal where it is not square. Each gate of a recurrent layer is one.

    What lets a ReLU network with recurrence start (Le et al. 2015, arXiv 1504.00941, sec. 2).
    """

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Exactly two dimensions."""
        if len(shape) != 2:
            self._refuse(shape, "2 dimensions; a convolution's identity is dirac")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.eye_(tensor)


@dataclasses.dataclass(frozen=True)
class Dirac(Initializer):
    """A convolution that passes its input on, as far as there are channels.

    Args:
        groups: Groups of channels; the convolution's own when left out, 1 without one.
    """

    groups: int | None = None

    def __post_init__(self) -> None:
        if self.groups is not None:
            groups = whole_number(self.groups)
            if groups is None or groups < 1:
                raise ValueError(f"groups: got {self.groups!r}; give an integer of at least 1")
            object.__setattr__(self, "groups", groups)

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Three to five dimensions, the first divisible by the groups."""
        if len(shape) not in (3, 4, 5):
            self._refuse(shape, "3 to 5 dimensions, a convolution's weight; a matrix' identity is identity")
        if shape[0] % self._groups(place):
            self._refuse(shape, f"a first dimension divisible by the {self._groups(place)} groups")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        nn.init.dirac_(tensor, self._groups(place))

    def _groups(self, place: Place | None) -> int:
        return self.groups or (1 if place is None else place.groups)


@dataclasses.dataclass(frozen=True)
class Sparse(Initializer):
    """Normal, with a part of each column set to zero (Martens 2010, "Deep learning via Hessian-free optimization").

    Args:
        sparsity: The part of each column that is zero, from 0 to 1.
        std: The standard deviation of the rest; the default is torch's.
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        self._check_numbers("sparsity", low=0.0, high=1.0)
        self._check_numbers("std", low=0.0)

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Exactly two dimensions."""
        if len(shape) != 2:
            self._refuse(shape, "2 dimensions")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        if generator is None:
            nn.init.sparse_(tensor, self.sparsity, self.std)
            return
        with globally_seeded(generator.clone_state(), torch.device("cpu")):  # torch draws the rows that are zero there
            nn.init.sparse_(tensor, self.sparsity, self.std, generator=generator)


@dataclasses.dataclass(frozen=True)
class Bilinear(Initializer):
    """Linear, bilinear or trilinear interpolation, for a transposed convolution that upsamples.

    Channel i goes to channel i alone, as in Long et al. 2015 (arXiv 1411.4038, sec. 3.3); with as many groups as
    channels every kernel is the same. Upsampling by `f` takes `kernel_size=2 * f - f % 2`, `stride=f`,
    `padding=math.ceil((f - 1) / 2)`.
    """

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Three to five dimensions, and as many channels out as in, or one in each group."""
        if len(shape) not in (3, 4, 5) or (shape[1] != 1 and shape[0] != shape[1]):
            self._refuse(shape, "3 to 5 dimensions, with as many output as input channels, or as many groups")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it."""
        kernel = torch.ones((), dtype=tensor.dtype, device=tensor.device)
        for size in tensor.shape[2:]:
            half = (size + 1) // 2
            center = half - 1 if size % 2 else half - 0.5
            position = torch.arange(size, dtype=tensor.dtype, device=tensor.device)
            kernel = kernel.unsqueeze(-1) * (1 - (position - center).abs() / half)
        if tensor.shape[1] == 1:
            tensor.copy_(kernel.expand_as(tensor))
            return
        nn.init.zeros_(tensor)
        channels = range(tensor.shape[0])
        tensor[channels, channels] = kernel


@dataclasses.dataclass(frozen=True)
class LSTMBias(Initializer):
    """Zeros, but `forget` at the forget gate of an LSTM (Gers et al. 2000; Jozefowicz et al. 2015, sec. 2.2).

    torch's LSTM adds two biases: in a layer the first, `bias_ih`, gets the value and the second stays zero, so that
    their sum is `forget`.

    Args:
        forget: The bias of the forget gate; 1 is what both papers recommend.
    """

    splits_blocks: ClassVar[bool] = False

    forget: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers("forget")

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """One dimension of four gates, in an LSTM where the layer is known."""
        if len(shape) != 1 or shape[0] % 4:
            self._refuse(shape, "1 dimension of four gates, the bias of an LSTM")
        if place is not None and not isinstance(place.module, (nn.LSTM, nn.LSTMCell)):
            raise ValueError(f"{self!r}: got the bias of {type(place.module).__name__}; it is for an LSTM's alone")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill it; the order of gates is torch's: input, forget, cell, output."""
        nn.init.zeros_(tensor)
        if place is None or place.name.startswith("bias_ih"):
            tensor.chunk(4)[1].fill_(self.forget)
