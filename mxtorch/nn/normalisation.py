"""Norms whose scale and shift have initialisers, and norms by name."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor
from torch import nn as torch_nn

from mxtorch._checks import closest
from mxtorch.nn.layer import Layer

NormName = Literal["batch", "group", "instance", "layer"]
"""The names that `norm=` takes."""

NormLike = NormName | torch_nn.Module | Callable[[int], torch_nn.Module]
"""A name, a module, or a callable that returns a module for a number of channels, such as a class."""

_GROUPS = 32  # Wu and He 2018 (arXiv 1803.08494, sec. 4.1)


class _BatchNorm(Layer, torch_nn.modules.batchnorm._BatchNorm):
    inferred: ClassVar[tuple[str, ...]] = ("num_features",)


class BatchNorm1d(_BatchNorm, torch_nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with initialisers and an activation; see `BatchNorm2d`.

    Shapes: `(N, C)` or `(N, C, L)` to the same.
    """

    torch_class = torch_nn.BatchNorm1d


class BatchNorm2d(_BatchNorm, torch_nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with initialisers and an activation.

    All other arguments are torch's. `num_features=None` reads the number of channels from the first batch.

    Args:
        weight_init: Initialiser of the scale; torch's, ones, when left out.
        bias_init: Initialiser of the shift; torch's, zeros, when left out.
        activation: Follows the norm: a name, a module or its class.

    Shapes: `(N, C, H, W)` to the same.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a parameter that the layer lacks.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> from mxtorch import nn
        >>> nn.BatchNorm2d(8, weight_init="zeros").weight.tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    torch_class = torch_nn.BatchNorm2d


class BatchNorm3d(_BatchNorm, torch_nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with initialisers and an activation; see `BatchNorm2d`.

    Shapes: `(N, C, D, H, W)` to the same.
    """

    torch_class = torch_nn.BatchNorm3d


class GroupNorm(Layer, torch_nn.GroupNorm):
    """`torch.nn.GroupNorm` with initialisers and an activation; for their arguments see `BatchNorm2d`.

    All other arguments are torch's. `num_channels` may be None or left out: the layer then reads it from the first
    batch.

    Shapes: `(N, C, ...)` to the same.
    """

    torch_class = torch_nn.GroupNorm
    inferred: ClassVar[tuple[str, ...]] = ("num_channels",)

    @classmethod
    def _torch_parameters(cls) -> list[inspect.Parameter]:
        parameters = super()._torch_parameters()
        return [p.replace(default=None) if p.name == "num_channels" else p for p in parameters]


class LayerNorm(Layer, torch_nn.LayerNorm):
    """`torch.nn.LayerNorm` with initialisers and an activation; for their arguments see `BatchNorm2d`.

    All other arguments are torch's. `normalized_shape=None` takes the last dimension of the first batch.

    Shapes: `(..., *normalized_shape)` to the same.
    """

    torch_class = torch_nn.LayerNorm
    inferred: ClassVar[tuple[str, ...]] = ("normalized_shape",)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"normalized_shape": tuple(input.shape[-1:])}


class ChannelNorm(LayerNorm):
    """A layer norm over the channels of feature maps, at each position (Liu et al. 2022, arXiv 2201.03545).

    `norm="layer"` in a convolution makes one.

    Args:
        channels: The number of channels; None reads it from the first batch.
        dimensions: The number of dimensions after the channels.

    Shapes: `(..., C, *positions)` to the same.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> output = nn.ChannelNorm(4, dimensions=2)(torch.randn(2, 4, 5, 5))
        >>> torch.allclose(output.mean(1), torch.zeros(()), atol=1e-5)
        True
    """

    def __init__(self, channels: int | None, dimensions: int) -> None:
        super().__init__(channels)
        self.dimensions = operator.index(dimensions)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        channels = -1 - self.dimensions
        output: Tensor = super().forward(input.movedim(channels, -1))
        return output.movedim(-1, channels)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"normalized_shape": (input.shape[-1 - self.dimensions],)}


def norm_from(norm: NormLike | None, channels: int | None, dimensions: int) -> torch_nn.Module | None:
    """The module for the value of an argument `norm`; None for None.

    Args:
        norm: The value.
        channels: The number of channels where the norm stands; None where only the first batch shows it.
        dimensions: The number of dimensions after the channels; 0 for features alone.

    Raises:
        ValueError: The name is unknown or has no meaning there, the module is for another number of channels, or the
            number is needed and not known.
        TypeError: The value is not a `NormLike`.
    """
    if norm is None:
        return None
    if isinstance(norm, torch_nn.Module):
        _check_channels(norm, channels)
        return norm
    if isinstance(norm, str):
        return _norm_by_name(norm, channels, dimensions)
    if not callable(norm):
        raise TypeError(f"norm: got {norm!r}; give a name, a module, or a class that takes the number of channels")
    if channels is None and not (isinstance(norm, type) and issubclass(norm, Layer)):
        raise ValueError(
            f"norm: {norm!r} stands before the operation, whose number of input channels is not known yet; give that "
            "number, a name, or a class of mxtorch.nn"
        )
    given: Any = channels
    made = norm(given)
    if not isinstance(made, torch_nn.Module):
        raise TypeError(f"norm: {norm!r} made a {type(made).__name__}; it must return a module")
    _check_channels(made, channels)
    return made


def _norm_by_name(name: str, channels: int | None, dimensions: int) -> torch_nn.Module:
    if name == "batch":
        return (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)[dimensions](channels)
    if name == "layer":
        return ChannelNorm(channels, dimensions) if dimensions else LayerNorm(channels)
    if name == "group":
        if channels is None:
            raise ValueError("norm: 'group' stands where the channels are not known yet; give their number")
        return GroupNorm(math.gcd(_GROUPS, channels), channels)
    if name != "instance":
        raise ValueError(f"norm: got {name!r}{closest(name, get_args(NormName))}")
    if not dimensions:
        raise ValueError("norm: 'instance' has nothing to average over in a linear layer; give 'layer' or 'batch'")
    if channels is None:
        lazy: torch_nn.Module = getattr(torch_nn, f"LazyInstanceNorm{dimensions}d")(affine=True)
        return lazy
    made: torch_nn.Module = getattr(torch_nn, f"InstanceNorm{dimensions}d")(channels, affine=True)
    return made


def _check_channels(norm: torch_nn.Module, channels: int | None) -> None:
    own = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
    if channels is not None and own and own != channels:
        raise ValueError(
            f"norm: it is for {own} channels and stands where there are {channels}; give one for {channels}"
        )
