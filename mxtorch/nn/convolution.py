"""Convolutions with initialisers, a norm and an activation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch import nn as torch_nn

from mxtorch.nn.composition import NormedLayer
from mxtorch.nn.layer import Layer


class _Convolution(NormedLayer, torch_nn.modules.conv._ConvNd):
    inferred: ClassVar[tuple[str, ...]] = ("in_channels",)

    def _infer_sizes(self, input: Tensor, *unused: Any) -> dict[str, Any]:
        if input.dim() not in (self.dimensions + 1, self.dimensions + 2):
            raise ValueError(
                f"input: got {input.dim()} dimensions; give {type(self).__name__} a tensor (N, C, ...) or (C, ...) "
                f"with {self.dimensions} dimensions after the channels"
            )
        return {"in_channels": input.shape[-1 - self.dimensions]}


class _TransposedConvolution(_Convolution):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Any:
        """Run operation, norm and activation in their order."""
        output = input
        for stage in self._stages:
            operation = super(Layer, self).forward
            output = operation(output, output_size) if stage == "C" else self._run_part(stage, output)
        return output


class Conv1d(_Convolution, torch_nn.Conv1d):
    """`torch.nn.Conv1d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, L)` to `(N, out_channels, L')`.
    """

    torch_class = torch_nn.Conv1d
    dimensions = 1


class Conv2d(_Convolution, torch_nn.Conv2d):
    """`torch.nn.Conv2d` with initialisers, norm and activation. Without the last two it is an instance of torch's.

    All other arguments are torch's. With `in_channels=None`, the layer reads the number from the first batch. A norm
    directly after the convolution removes the effect of the bias, so give `bias=False` in this case.

    Args:
        weight_init: Initialiser of the weight: a name, an initialiser of `mxtorch.init`, or a function that fills a
            tensor in place. Its gain is that of `activation`. The default is torch's own initialisation.
        bias_init: Initialiser of the bias; by default torch's own initialisation.
        activation: A name, a module, or a module's class.
        norm: `"batch"`, `"group"`, `"instance"`, `"layer"` (over the channels, at each position), a module, or a
            callable that returns a module for the number of channels.
        order: The order of convolution (C), norm (N) and activation (A). A missing part is skipped.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.

    Raises:
        ValueError: A name or the order is unknown, the norm is for another number of channels, an initialiser can't
            fill the shape, or there is an initialiser for a missing bias.
        TypeError: An argument is unknown or missing, or an initialiser, norm or activation is neither a name nor
            callable.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> type(nn.Conv2d(3, 8, 3, weight_init="orthogonal")) is torch.nn.Conv2d
        True
        >>> layer = nn.Conv2d(None, 8, 3, bias=False, norm="batch", activation="relu")
        >>> layer(torch.randn(2, 3, 6, 6)).shape
        torch.Size([2, 8, 4, 4])
        >>> layer.in_channels
        3
    """

    torch_class = torch_nn.Conv2d
    dimensions = 2


class Conv3d(_Convolution, torch_nn.Conv3d):
    """`torch.nn.Conv3d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, D, H, W)` to `(N, out_channels, D', H', W')`.
    """

    torch_class = torch_nn.Conv3d
    dimensions = 3


class ConvTranspose1d(_TransposedConvolution, torch_nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, L)` to `(N, out_channels, L')`.
    """

    torch_class = torch_nn.ConvTranspose1d
    dimensions = 1


class ConvTranspose2d(_TransposedConvolution, torch_nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> upsample = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, bias=False, weight_init="bilinear")
        >>> upsample(torch.ones(1, 8, 5, 5)).shape
        torch.Size([1, 8, 10, 10])
    """

    torch_class = torch_nn.ConvTranspose2d
    dimensions = 2


class ConvTranspose3d(_TransposedConvolution, torch_nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with initialisers, norm and activation; see `Conv2d`.

    Shapes: `(N, in_channels, D, H, W)` to `(N, out_channels, D', H', W')`.
    """

    torch_class = torch_nn.ConvTranspose3d
    dimensions = 3
