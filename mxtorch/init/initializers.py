"""The initialisers. Most of them are a function of `torch.nn.init` with its arguments as checked fields."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mxtorch.init.base import Initializer, Place, choice, globally_seeded, integer, real
from mxtorch.init.gain import calculate_gain, gain_of, known_nonlinearity

Mode = Literal["fan_in", "fan_out"]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


@dataclasses.dataclass(frozen=True)
class Zeros(Initializer):
    """All zeros.

    Example:
        >>> import torch
        >>> Zeros()(torch.empty(2)).tolist()
        [0.0, 0.0]
    """

    torch_function: ClassVar[str] = "zeros_"


@dataclasses.dataclass(frozen=True)
class Ones(Initializer):
    """All ones.

    Example:
        >>> import torch
        >>> Ones()(torch.empty(2)).tolist()
        [1.0, 1.0]
    """

    torch_function: ClassVar[str] = "ones_"


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """One finite value everywhere.

    Example:
        >>> import torch
        >>> Constant(0.5)(torch.empty(2)).tolist()
        [0.5, 0.5]
    """

    torch_function: ClassVar[str] = "constant_"
    value: float = field(metadata=real())


@dataclasses.dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform between a lower bound `a` and an upper bound `b`; the defaults are those of `torch.nn.init.uniform_`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = Uniform()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.29'
    """

    torch_function: ClassVar[str] = "uniform_"
    a: float = field(default=0.0, metadata=real())
    b: float = field(default=1.0, metadata=real())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.a > self.b:
            raise ValueError(f"a: got {self.a} with b={self.b}; give a lower bound that is not above the upper one")


@dataclasses.dataclass(frozen=True)
class Normal(Initializer):
    """Normal with a mean and a standard deviation; the defaults are those of `torch.nn.init.normal_`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = Normal()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '1.00'
    """

    torch_function: ClassVar[str] = "normal_"
    mean: float = field(default=0.0, metadata=real())
    std: float = field(default=1.0, metadata=real(low=0.0))


@dataclasses.dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal, truncated to the range from `a` to `b`; the defaults are those of `torch.nn.init.trunc_normal_`.

    The bounds are values, not multiples of the standard deviation. With `std=0.02`, the default bounds have no effect.

    Args:
        mean: The mean before truncation.
        std: The standard deviation before truncation.
        a: The lowest value.
        b: The highest value, above `a`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = TruncatedNormal()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.88'
    """

    torch_function: ClassVar[str] = "trunc_normal_"
    mean: float = field(default=0.0, metadata=real())
    std: float = field(default=1.0, metadata=real(low=0.0))
    a: float = field(default=-2.0, metadata=real())
    b: float = field(default=2.0, metadata=real())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.a >= self.b:
            raise ValueError(f"a: got {self.a} with b={self.b}; give a lowest value below the highest")
        if self.std == 0 or not self.a - 2 * self.std <= self.mean <= self.b + 2 * self.std:
            raise ValueError(
                f"mean: got {self.mean} with std={self.std}, a={self.a}, b={self.b}; give a positive std and a mean "
                "within two standard deviations of the bounds, because torch can't draw beyond these"
            )


class OfFans(Initializer):
    """The base of initialisers whose scale follows from the numbers of inputs and outputs (the fans)."""

    dimensions: ClassVar[tuple[int, int]] = (2, sys.maxsize)
    needs: ClassVar[str] = "2 or more dimensions; give a bias or scale zeros, ones, constant, uniform or normal"


@dataclasses.dataclass(frozen=True)
class _Gained(OfFans):
    gain: float | None = field(default=None, metadata=real())

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill with the given gain, or with the gain of the activation."""
        gain = self.gain
        if gain is None and place is not None:
            gain = gain_of(place.activation)
        self._draw(tensor, generator, 1.0 if gain is None else gain)


@dataclasses.dataclass(frozen=True)
class XavierUniform(_Gained):
    """Uniform with variance `gain^2 * 2 / (fan_in + fan_out)` (Glorot and Bengio 2010, sec. 4.2.1, eq. 16).

    Args:
        gain: A factor; by default that of the layer's own activation, or 1 for a layer without activation.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = XavierUniform()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.06'
    """

    torch_function: ClassVar[str] = "xavier_uniform_"


@dataclasses.dataclass(frozen=True)
class XavierNormal(_Gained):
    """Normal with variance `gain^2 * 2 / (fan_in + fan_out)` (Glorot and Bengio 2010, sec. 4.2.1, eq. 12).

    Args:
        gain: As in `XavierUniform`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = XavierNormal()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.06'
    """

    torch_function: ClassVar[str] = "xavier_normal_"


@dataclasses.dataclass(frozen=True)
class Orthogonal(_Gained):
    """A (semi-)orthogonal matrix times the gain (Saxe et al. 2013, arXiv 1312.6120, sec. 3).

    Dimensions after the first are flattened. Each gate of a recurrent layer is orthogonal by itself. For tensors in
    half precision, the matrix is computed in float32, because torch has the decomposition for float32.

    Args:
        gain: As in `XavierUniform`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = Orthogonal()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.06'
    """

    torch_function: ClassVar[str] = "orthogonal_"

    def _draw(self, tensor: Tensor, generator: torch.Generator | None, *settings: float) -> None:
        precise = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        super()._draw(precise, generator, *settings)
        if precise is not tensor:
            tensor.copy_(precise)


@dataclasses.dataclass(frozen=True)
class _Kaiming(OfFans):
    a: float = field(default=0.0, metadata=real())
    mode: Mode = field(default="fan_in", metadata=choice(get_args(Mode)))
    nonlinearity: Nonlinearity | None = field(default=None, metadata=choice(get_args(Nonlinearity)))

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill with the gain of the given nonlinearity, or with that of the activation."""
        name: str = self.nonlinearity or "leaky_relu"
        a, factor = self.a, 1.0
        activation = place.activation if place is not None and self.nonlinearity is None else None
        gain = gain_of(activation)
        if activation is not None and gain is not None:
            name, a = known_nonlinearity(activation) or ("linear", 0.0)
            factor = gain / calculate_gain(name, a)
        self._draw(tensor, generator, a, self.mode, name)
        if factor != 1.0:
            tensor.mul_(factor)


@dataclasses.dataclass(frozen=True)
class KaimingUniform(_Kaiming):
    """Uniform with variance `gain^2 / fan` (He et al. 2015, arXiv 1502.01852, sec. 2.2, eq. 10 and 14).

    Args:
        a: The negative slope of a leaky ReLU, for `nonlinearity="leaky_relu"`.
        mode: `"fan_in"` preserves the scale of activations, `"fan_out"` that of gradients. The fans are torch's; for
            the weight of a transposed convolution, torch swaps them.
        nonlinearity: A name that `torch.nn.init.calculate_gain` knows; by default the layer's own activation. For a
            layer without activation, the default is torch's: a leaky ReLU of slope `a`, which is a ReLU at 0.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = KaimingUniform()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.10'
    """

    torch_function: ClassVar[str] = "kaiming_uniform_"


@dataclasses.dataclass(frozen=True)
class KaimingNormal(_Kaiming):
    """Normal with variance `gain^2 / fan` (He et al. 2015, arXiv 1502.01852, sec. 2.2, eq. 10 and 14).

    Args:
        a: As in `KaimingUniform`.
        mode: As in `KaimingUniform`.
        nonlinearity: As in `KaimingUniform`.

    Example:
        >>> import torch
        >>> from mxtorch import init, nn
        >>> weight = nn.Linear(400, 400, activation="relu", weight_init=init.KaimingNormal()).weight
        >>> round(weight.std().item() / (2 / 400) ** 0.5, 1)
        1.0
    """

    torch_function: ClassVar[str] = "kaiming_normal_"


class _Lecun(OfFans):
    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill with a gain of 1."""
        self._draw(tensor, generator, 0.0, "fan_in", "linear")


@dataclasses.dataclass(frozen=True)
class LecunUniform(_Lecun):
    """Uniform with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", sec. 4.6).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = LecunUniform()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.07'
    """

    torch_function: ClassVar[str] = "kaiming_uniform_"


@dataclasses.dataclass(frozen=True)
class LecunNormal(_Lecun):
    """Normal with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", sec. 4.6).

    Self-normalising networks need this initialiser before SELU (Klambauer et al. 2017, arXiv 1706.02515, sec. 2).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = LecunNormal()(torch.empty(300, 200), generator=generator)
        >>> f"{weight.std():.2f}"
        '0.07'
    """

    torch_function: ClassVar[str] = "kaiming_normal_"


@dataclasses.dataclass(frozen=True)
class Fixup(OfFans):
    """Fixup, for the inner layers of residual branches without norms (Zhang et al. 2019, arXiv 1901.09321, sec. 3).

    The values are those of `kaiming_normal` for ReLU, times `blocks ** (-1 / (2 * layers - 2))`. The last layer of each
    branch and the classifier must start at `"zeros"`; give this in `overrides`.

    Args:
        blocks: The number of residual branches in the network.
        layers: The number of layers with weights in each branch, at least 2.
    """

    torch_function: ClassVar[str] = "kaiming_normal_"
    blocks: int = field(metadata=integer(1))
    layers: int = field(default=2, metadata=integer(2))

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill as `kaiming_normal` does, then scale the values."""
        self._draw(tensor, generator, 0.0, "fan_in", "relu")
        tensor.mul_(self.blocks ** (-1 / (2 * self.layers - 2)))


@dataclasses.dataclass(frozen=True)
class Identity(Initializer):
    """Ones on the diagonal of a matrix, and zeros elsewhere. In a recurrent layer, each gate is an identity matrix.

    Recurrent networks with ReLU need this at the start (Le et al. 2015, arXiv 1504.00941, sec. 2).

    Example:
        >>> import torch
        >>> Identity()(torch.empty(2, 2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    torch_function: ClassVar[str] = "eye_"
    dimensions: ClassVar[tuple[int, int]] = (2, 2)
    needs: ClassVar[str] = "2 dimensions; a convolution's identity is dirac"


@dataclasses.dataclass(frozen=True)
class Dirac(Initializer):
    """The kernel of a convolution that returns its input, for as many channels as input and output both have.

    Args:
        groups: The number of groups; by default that of the convolution, or 1 without a convolution.

    Example:
        >>> import torch
        >>> Dirac()(torch.empty(1, 1, 3)).tolist()
        [[[0.0, 1.0, 0.0]]]
    """

    torch_function: ClassVar[str] = "dirac_"
    dimensions: ClassVar[tuple[int, int]] = (3, 5)
    needs: ClassVar[str] = "3 to 5 dimensions, a convolution's weight; a matrix' identity is identity"
    groups: int | None = field(default=None, metadata=integer(1))

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Accept three to five dimensions, the first of which is divisible by the number of groups."""
        super().check(shape, place)
        if shape[0] % self._groups(place):
            self._refuse(shape, f"a first dimension divisible by the {self._groups(place)} groups")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill each group with an identity."""
        self._draw(tensor, generator, self._groups(place))

    def _groups(self, place: Place | None) -> int:
        return self.groups or (1 if place is None else place.groups)


@dataclasses.dataclass(frozen=True)
class Sparse(Initializer):
    """Normal, with a part of each column set to zero (Martens 2010, "Deep learning via Hessian-free optimization").

    Args:
        sparsity: The part of each column that is zero, from 0 to 1.
        std: The standard deviation of the rest; the default is torch's.

    Example:
        >>> import torch
        >>> weight = Sparse(sparsity=0.5)(torch.empty(4, 3))
        >>> (weight == 0).sum(dim=0).tolist()
        [2, 2, 2]
    """

    torch_function: ClassVar[str] = "sparse_"
    dimensions: ClassVar[tuple[int, int]] = (2, 2)
    needs: ClassVar[str] = "2 dimensions"
    sparsity: float = field(metadata=real(0.0, 1.0))
    std: float = field(default=0.01, metadata=real(low=0.0))

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill the tensor. The generator draws the values and the rows of the zeros."""
        if generator is None:
            super().fill(tensor, generator, place)
            return
        with globally_seeded(generator.clone_state(), torch.device("cpu")):  # torch draws the rows on the CPU
            super().fill(tensor, generator, place)


@dataclasses.dataclass(frozen=True)
class Bilinear(Initializer):
    """Linear, bilinear or trilinear interpolation, for a transposed convolution that upsamples.

    Output channel i depends only on input channel i, as in Long et al. 2015 (arXiv 1411.4038, sec. 3.3). With as many
    groups as channels, all kernels are equal. To upsample by `f`, give the convolution `kernel_size=2 * f - f % 2`,
    `stride=f` and `padding=math.ceil((f - 1) / 2)`.

    Example:
        >>> import torch
        >>> Bilinear()(torch.empty(1, 1, 4, 4))[0, 0, 0].tolist()
        [0.0625, 0.1875, 0.1875, 0.0625]
    """

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Accept three to five dimensions, with as many output as input channels, or one channel in each group."""
        if len(shape) not in (3, 4, 5) or (shape[1] != 1 and shape[0] != shape[1]):
            self._refuse(shape, "3 to 5 dimensions, with as many output as input channels, or as many groups")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill the kernels on the diagonal of the channels."""
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
    """Zeros, except `forget` at the forget gate of an LSTM (Gers et al. 2000; Jozefowicz et al. 2015, sec. 2.2).

    torch's LSTM adds two biases. In a layer, the first bias, `bias_ih`, gets the value, and the second bias stays zero,
    so that their sum is `forget`.

    Args:
        forget: The bias of the forget gate; both papers recommend 1.

    Example:
        >>> import torch
        >>> LSTMBias()(torch.empty(8)).tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    splits_blocks: ClassVar[bool] = False
    forget: float = field(default=1.0, metadata=real())

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Accept one dimension of four gates. If the layer is known, it must be an LSTM."""
        if len(shape) != 1 or shape[0] % 4:
            self._refuse(shape, "1 dimension of four gates, the bias of an LSTM")
        if place is not None and not isinstance(place.module, (nn.LSTM, nn.LSTMCell)):
            raise ValueError(f"{self!r}: got the bias of {type(place.module).__name__}; it is only for an LSTM")

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill the gates, whose order in torch is input, forget, cell, output."""
        nn.init.zeros_(tensor)
        if place is None or place.name.startswith("bias_ih"):
            tensor.chunk(4)[1].fill_(self.forget)
