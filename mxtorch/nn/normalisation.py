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

    All other arguments are torch's. With `num_features=None`, the layer reads the number of channels from the first
    batch.

    Args:
        weight_init: Initialiser of the scale; by default torch's own, ones.
        bias_init: Initialiser of the shift; by default torch's own, zeros.
        activation: The activation after the norm: a name, a module or its class.

    Shapes: `(N, C, H, W)` to the same.

    Raises:
        ValueError: A name is unknown, or there is an initialiser for a missing parameter.
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

    All other arguments are torch's. Without `num_channels`, the layer reads the number from the first batch.

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

    All other arguments are torch's. `normalized_shape=None` means the last dimension of the first batch.

    Shapes: `(..., *normalized_shape)` to the same.
    """

    torch_class = torch_nn.LayerNorm
    inferred: ClassVar[tuple[str, ...]] = ("normalized_shape",)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"normalized_shape": tuple(input.shape[-1:])}


class ChannelNorm(LayerNorm):
    """A layer norm over the channels of feature maps, at each position (Liu et al. 2022, arXiv 2201.03545).

    It is the norm of a convolution with `norm="layer"`.

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
        channels: The number of channels of the norm's input; None if only the first batch shows it.
        dimensions: The number of dimensions after the channels; 0 for a linear layer.

    Raises:
        ValueError: The name is unknown or has no meaning in this layer, the module is for another number of channels,
            or the number is needed and not known.
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
            f"norm: got {norm!r} before an operation whose number of input channels is not known yet; give the number "
            "of input channels, or a name or a class of mxtorch.nn for the norm"
        )
    given: Any = channels
    made = norm(given)
    if not isinstance(made, torch_nn.Module):
        raise TypeError(f"norm: got {norm!r}, which returned a {type(made).__name__}; give one that returns a module")
    _check_channels(made, channels)
    return made


def _norm_by_name(name: str, channels: int | None, dimensions: int) -> torch_nn.Module:
    if name == "batch":
        return (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)[dimensions](channels)
    if name == "layer":
        return ChannelNorm(channels, dimensions) if dimensions else LayerNorm(channels)
    if name == "group":
        if channels is None:
            raise ValueError("norm: got 'group', but the number of channels is not known yet; give the number")
        return GroupNorm(math.gcd(_GROUPS, channels), channels)
    if name != "instance":
        raise ValueError(f"norm: got {name!r}{closest(name, get_args(NormName))}")
    if not dimensions:
        raise ValueError("norm: got 'instance', which has no positions to average over in a linear layer; give 'layer'")
    if channels is None:
        lazy: torch_nn.Module = getattr(torch_nn, f"LazyInstanceNorm{dimensions}d")(affine=True)
        return lazy
    made: torch_nn.Module = getattr(torch_nn, f"InstanceNorm{dimensions}d")(channels, affine=True)
    return made


def _check_channels(norm: torch_nn.Module, channels: int | None) -> None:
    own = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
    if channels is not None and own and own != channels:
        raise ValueError(
            f"norm: got a norm for {own} channels, but its input has {channels}; give a norm for {channels} channels"
        )
