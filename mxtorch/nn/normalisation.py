"""Norms that say how scale and shift are initialised, and norms by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch._checks import closest
from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.layer import ComposedLayer, Layer, own_from

NormLike = str | torch_nn.Module | Callable[[int], torch_nn.Module]
"""A name, a module, or what makes one from a number of channels, such as a class."""

_GROUPS = 32  # Wu and He 2018 (arXiv 1803.08494, sec. 4.1)


class _BatchNorm(ComposedLayer, torch_nn.modules.batchnorm._BatchNorm):
    """The base of the batch norms.

    Args:
        num_features: Channels; None reads them off the first batch.
        eps: Added to the variance.
        momentum: The weight of a batch in the running statistics; None averages over all batches.
        affine: Have scale and shift.
        track_running_stats: Keep running statistics, for evaluation.
        device: Where the parameters are.
        dtype: Their type.
        bias: Have a shift; leaving it out needs a torch that can.
        weight_init: Initialiser of the scale; torch's, ones, when left out.
        bias_init: Initialiser of the shift; torch's, zeros, when left out.
        activation: What follows: a name, a module or its class.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a parameter that the layer hasn't got.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    def __init__(
        self,
        num_features: int | None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        activation = activation_from(activation)
        arguments = {
            "num_features": num_features,
            "eps": eps,
            "momentum": momentum,
            "affine": affine,
            "track_running_stats": track_running_stats,
            "device": device,
            "dtype": dtype,
            **({} if bias else {"bias": bias}),
        }
        self._construct_composed(arguments, own, inferred=("num_features",), activation=activation)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"num_features": input.shape[1]}


class BatchNorm1d(_BatchNorm, torch_nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that says how scale and shift are initialised.

    Shapes: `(N, C)` or `(N, C, L)` to the same.
    """

    torch_class = torch_nn.BatchNorm1d


class BatchNorm2d(_BatchNorm, torch_nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that says how scale and shift are initialised.

    Shapes: `(N, C, H, W)` to the same.
    """

    torch_class = torch_nn.BatchNorm2d


class BatchNorm3d(_BatchNorm, torch_nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that says how scale and shift are initialised.

    Shapes: `(N, C, D, H, W)` to the same.
    """

    torch_class = torch_nn.BatchNorm3d


class GroupNorm(ComposedLayer, torch_nn.GroupNorm):
    """`torch.nn.GroupNorm` that says how scale and shift are initialised.

    Args:
        num_groups: Groups of channels.
        num_channels: Channels, divisible by the groups; None reads them off the first batch.
        eps: Added to the variance.
        affine: Have scale and shift.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the scale; torch's, ones, when left out.
        bias_init: Initialiser of the shift; torch's, zeros, when left out.
        activation: What follows: a name, a module or its class.

    Shapes: `(N, C, ...)` to the same.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a parameter that the layer hasn't got.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.GroupNorm

    def __init__(
        self,
        num_groups: int,
        num_channels: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        activation = activation_from(activation)
        arguments: dict[str, Any] = {
            "num_groups": num_groups,
            "num_channels": num_channels,
            "eps": eps,
            "affine": affine,
        }
        arguments |= {"device": device, "dtype": dtype}
        self._construct_composed(arguments, own, inferred=("num_channels",), activation=activation)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"num_channels": input.shape[1]}


class LayerNorm(ComposedLayer, torch_nn.LayerNorm):
    """`torch.nn.LayerNorm` that says how scale and shift are initialised.

    Args:
        normalized_shape: The trailing dimensions that are normalised; None takes the last one of the first batch.
        eps: Added to the variance.
        elementwise_affine: Have a scale.
        bias: Have a shift too.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the scale; torch's, ones, when left out.
        bias_init: Initialiser of the shift; torch's, zeros, when left out.
        activation: What follows: a name, a module or its class.

    Shapes: `(..., *normalized_shape)` to the same.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a parameter that the layer hasn't got.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.LayerNorm

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | torch.Size | None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        activation = activation_from(activation)
        arguments: dict[str, Any] = {
            "normalized_shape": normalized_shape,
            "eps": eps,
            "elementwise_affine": elementwise_affine,
        }
        arguments |= {"bias": bias, "device": device, "dtype": dtype}
        self._construct_composed(arguments, own, inferred=("normalized_shape",), activation=activation)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"normalized_shape": tuple(input.shape[-1:])}


class ChannelNorm(LayerNorm):
    """A layer norm over the channels of feature maps, at each position by itself (Liu et al. 2022, arXiv 2201.03545).

    What `norm="layer"` is in a convolution.

    Args:
        channels: Channels; None reads them off the first batch.
        dimensions: Dimensions after the channels.

    Shapes: `(..., C, *positions)` to the same.
    """

    def __init__(self, channels: int | None, dimensions: int) -> None:
        super().__init__(channels)
        self.dimensions = dimensions

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        channels = -1 - self.dimensions
        output: Tensor = super().forward(input.movedim(channels, -1))
        return output.movedim(-1, channels)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"normalized_shape": (input.shape[-1 - self.dimensions],)}


_BATCH = {0: BatchNorm1d, 1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
_INSTANCE = {1: torch_nn.InstanceNorm1d, 2: torch_nn.InstanceNorm2d, 3: torch_nn.InstanceNorm3d}
_LAZY_INSTANCE = {1: torch_nn.LazyInstanceNorm1d, 2: torch_nn.LazyInstanceNorm2d, 3: torch_nn.LazyInstanceNorm3d}


def norm_from(norm: NormLike | None, channels: int | None, dimensions: int) -> torch_nn.Module | None:
    """The module for what a user gave as `norm=`; None for None.

    Args:
        norm: A name, a module, or what makes one from a number of channels.
        channels: Channels where it will stand; None where they are not known before the first batch.
        dimensions: Dimensions after the channels; 0 for features alone.

    Raises:
        ValueError: The name is unknown or makes no sense there, the module is for another number of channels, or the
            number is needed and not known.
        TypeError: It is neither a name nor a module, nor makes one from a number of channels.
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
        raise TypeError(f"norm: {norm!r} made a {type(made).__name__}; give what makes a module from the channels")
    _check_channels(made, channels)
    return made


def _norm_by_name(name: str, channels: int | None, dimensions: int) -> torch_nn.Module:
    if name == "batch":
        return _BATCH[dimensions](channels)
    if name == "layer":
        return ChannelNorm(channels, dimensions) if dimensions else LayerNorm(channels)
    if name == "group":
        if channels is None:
            raise ValueError("norm: 'group' stands where the channels are not known yet; give their number")
        return GroupNorm(math.gcd(_GROUPS, channels), channels)
    names = ("batch", "group", "instance", "layer")
    if name != "instance":
        raise ValueError(f"norm: got {name!r}{closest(name, names)}")
    if not dimensions:
        raise ValueError("norm: 'instance' has nothing to average over in a linear layer; give 'layer' or 'batch'")
    if channels is None:
        return _LAZY_INSTANCE[dimensions](affine=True)
    return _INSTANCE[dimensions](channels, affine=True)


def _check_channels(norm: torch_nn.Module, channels: int | None) -> None:
    own = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
    if channels is not None and own and own != channels:
        raise ValueError(
            f"norm: it is for {own} channels and stands where there are {channels}; give one for {channels}"
        )
