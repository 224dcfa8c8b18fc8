"""Convolutions that say how they are initialised, with a norm and an activation beside them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike
from mxtorch.nn.composition import Order, composed
from mxtorch.nn.layer import ComposedLayer, own_from
from mxtorch.nn.normalisation import NormLike

Size = int | tuple[int, ...]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _AnyConvolution(ComposedLayer, torch_nn.modules.conv._ConvNd):
    """What convolutions and transposed ones share."""

    def _construct_convolution(self, arguments: dict[str, Any], own: dict[str, Any], beside: dict[str, Any]) -> None:
        modules = composed(
            **beside,
            channels=(arguments["in_channels"], arguments["out_channels"]),
            dimensions=self._dimensions(),
        )
        self._construct_composed(arguments, own, inferred=("in_channels",), **modules)

    def _infer_sizes(self, input: Tensor, *unused: Any) -> dict[str, Any]:
        dimensions = self._dimensions()
        if input.dim() not in (dimensions + 1, dimensions + 2):
            raise ValueError(
                f"input: got {input.dim()} dimensions; {type(self).__name__} takes (N, C, ...) with {dimensions} after "
                "the channels, or that without N"
            )
        return {"in_channels": input.shape[-1 - dimensions]}

    @classmethod
    def _dimensions(cls) -> int:
        """Dimensions after the channels."""
        return int(cls.torch_class.__name__[-2])


class _Convolution(_AnyConvolution):
    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
        norm: NormLike | None = None,
        order: Order = "CNA",
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        arguments = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": bias,
            "padding_mode": padding_mode,
            "device": device,
            "dtype": dtype,
        }
        self._construct_convolution(arguments, own, {"activation": activation, "norm": norm, "order": order})


class _TransposedConvolution(_AnyConvolution):
    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
        norm: NormLike | None = None,
        order: Order = "CNA",
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        arguments = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "bias": bias,
            "dilation": dilation,
            "padding_mode": padding_mode,
            "device": device,
            "dtype": dtype,
        }
        self._construct_convolution(arguments, own, {"activation": activation, "norm": norm, "order": order})

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Any:
        """Run operation, norm and activation in their order."""
        output = input
        for stage in self._stages or "C":
            operation = super(ComposedLayer, self).forward
            output = operation(output, output_size) if stage == "C" else self._beside(stage, output)
        return output


class Conv1d(_Convolution, torch_nn.Conv1d):
    """`torch.nn.Conv1d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, L)` to `(N, out_channels, L')`.
    """

    torch_class = torch_nn.Conv1d


class Conv2d(_Convolution, torch_nn.Conv2d):
    """`torch.nn.Conv2d` with initialisers, norm and activation. Without the two it is torch's in all that it does.

    Args:
        in_channels: Channels of the input; None reads them off the first batch.
        out_channels: Channels of the output.
        kernel_size: As in torch, like everything up to `dtype`.
        stride: See torch.
        padding: See torch.
        dilation: See torch.
        groups: See torch.
        bias: See torch. A norm right after the operation makes it useless: set it to False there.
        padding_mode: See torch.
        device: See torch.
        dtype: See torch.
        weight_init: Initialiser of the weight: a name, one of `mxtorch.init`, or a function that fills a tensor. Its
            gain is that of `activation`. Torch's own when left out.
        bias_init: Initialiser of the bias; torch's own when left out.
        activation: A name, a module, or its class.
        norm: `"batch"`, `"group"`, `"instance"`, `"layer"` (over the channels, at each position by itself), a module,
            or what makes one from the number of channels.
        order: Convolution, norm and activation in any order; what there is none of is passed over.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.

    Raises:
        ValueError: A name is unknown, letters are missing in the order, the norm is for another number of channels, an
            initialiser can't apply to the shape, or is for a bias that there is none of.
        TypeError: An initialiser, norm or activation is neither a name nor callable.
    """

    torch_class = torch_nn.Conv2d


class Conv3d(_Convolution, torch_nn.Conv3d):
    """`torch.nn.Conv3d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, D, H, W)` to `(N, out_channels, D', H', W')`.
    """

    torch_class = torch_nn.Conv3d


class ConvTranspose1d(_TransposedConvolution, torch_nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, L)` to `(N, out_channels, L')`.
    """

    torch_class = torch_nn.ConvTranspose1d


class ConvTranspose2d(_TransposedConvolution, torch_nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    torch_class = torch_nn.ConvTranspose2d


class ConvTranspose3d(_TransposedConvolution, torch_nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, D, H, W)` to `(N, out_channels, D', H', W')`.
    """

    torch_class = torch_nn.ConvTranspose3d
