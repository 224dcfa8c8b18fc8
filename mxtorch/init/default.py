"""Torch's own initialisation, one parameter at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from mxtorch.init.base import Initializer, Place
from mxtorch.init.initializers import (
    Constant,
    KaimingUniform,
    Normal,
    OfFans,
    Ones,
    Uniform,
    XavierNormal,
    XavierUniform,
    Zeros,
)

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_TORCH_UNIFORM = KaimingUniform(a=math.sqrt(5), nonlinearity="leaky_relu")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, whose weight is a scale and whose bias is a shift."""
    return isinstance(module, _NORMS)


@dataclasses.dataclass(frozen=True)
class Default(OfFans):
    """The initialisation of torch's layer. It gives the same values as `reset_parameters`, for each parameter.

    Norms get scale 1 and shift 0, embeddings standard normal values, recurrent layers uniform values within
    `1 / sqrt(hidden_size)`, attention Xavier uniform values and zero biases, and all other layers uniform values within
    `1 / sqrt(fan_in)`. A tensor without a layer is filled like the last; it must have two dimensions or more.

    Example:
        >>> from mxtorch import nn
        >>> nn.Linear(2, 2, weight_init=Default()).weight.shape
        torch.Size([2, 2])
    """

    splits_blocks: ClassVar[bool] = False

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Accept a parameter of one of torch's layers, or a matrix without a layer."""
        if place is None:
            super().check(shape, place)
        elif default_for(place) is None:
            raise ValueError(
                f"{self!r}: torch has no default for {place.name} of {type(place.module).__name__}; give another "
                "initialiser"
            )

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill the tensor as torch's layer does."""
        initializer = _TORCH_UNIFORM if place is None else default_for(place)
        assert initializer is not None  # `check` was called before
        initializer.fill(tensor, generator, None)


def default_for(place: Place) -> Initializer | None:
    """The initialiser that does what torch's layer does; None for a layer or parameter that is not torch's."""
    module, name = place.module, place.name
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _within(1 / math.sqrt(module.hidden_size))
    if isinstance(module, nn.MultiheadAttention):
        if name in ("bias_k", "bias_v"):
            return XavierNormal()
        return Zeros() if name == "in_proj_bias" else XavierUniform()
    if name not in ("weight", "bias"):
        return None
    if is_norm(module):
        return Ones() if name == "weight" else Zeros()
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Normal()
    if isinstance(module, nn.PReLU):
        return Constant(module.init)
    if isinstance(module, nn.Bilinear):
        return _within(1 / math.sqrt(module.in1_features))
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and name == "bias":
        return Zeros()  # the output projection of attention
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        fan_in = module.weight.shape[1:].numel()
        return _TORCH_UNIFORM if name == "weight" else _within(1 / math.sqrt(fan_in) if fan_in else 0.0)
    return None


def _within(bound: float) -> Initializer:
    return Uniform(-bound, bound)
