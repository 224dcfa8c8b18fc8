"""Linear layers with initialisers, a norm and an activation."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike
from mxtorch.nn.composition import NormedLayer, Order
from mxtorch.nn.layer import Layer
from mxtorch.nn.normalisation import NormLike


class Linear(NormedLayer, torch_nn.Linear):
    """`torch.nn.Linear` with initialisers, norm and activation. Without the last two it is an instance of torch's.

    All other arguments are torch's. With `in_features=None`, the layer reads the number from the first batch. A norm
    directly after the operation removes the effect of the bias, so give `bias=False` in this case.

    Args:
        weight_init: Initialiser of the weight: a name, an initialiser of `mxtorch.init`, or a function that fills a
            tensor in place. Its gain is that of `activation`. The default is torch's own initialisation.
        bias_init: Initialiser of the bias; by default torch's own initialisation.
        activation: A name, a module, or a module's class.
        norm: `"batch"`, `"group"`, `"layer"`, a module, or a callable that returns a module for the number of features.
            The features are the channels of the norm. If the input has more than two dimensions, batch and group norms
            treat each position as a separate sample.
        order: The order of operation (C), norm (N) and activation (A). A missing part is skipped.

    Shapes: `(..., in_features)` to `(..., out_features)`.

    Raises:
        ValueError: A name or the order is unknown, the norm is for another number of features, an initialiser can't
            fill the shape, or there is an initialiser for a missing bias.
        TypeError: An argument is unknown or missing, or an initialiser, norm or activation is neither a name nor
            callable.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> layer = nn.Linear(None, 4, weight_init="kaiming_normal", bias_init="zeros", activation="relu")
        >>> bool((layer(torch.randn(2, 3)) >= 0).all())
        True
        >>> layer
        Linear(
          in_features=3, out_features=4, bias=True, weight_init=KaimingNormal(), bias_init=Zeros(), order=CA
          (activation): ReLU()
        )
    """

    torch_class = torch_nn.Linear
    inferred: ClassVar[tuple[str, ...]] = ("in_features",)
    channels_at: ClassVar[int] = -1

    def _normalise(self, input: Tensor) -> Any:
        if input.dim() <= 2 or isinstance(self.norm, (torch_nn.LayerNorm, torch_nn.RMSNorm)):
            return self.norm(input)
        # The other norms need the channels as the second dimension.
        return self.norm(input.flatten(0, -2)).reshape(input.shape)


class Dense(Linear):
    """`Linear` with Gluon's arguments: first the size of the output and the activation, later the size of the input.

    Args:
        units: The number of features of the output.
        activation: A name, a module, or a module's class.
        bias: Whether there is a bias (`use_bias` in Gluon).
        flatten: Whether all dimensions after the first are flattened.
        in_features: The number of features of the input after `flatten` (`in_units` in Gluon); None reads it from the
            first batch.
        device: The device of the parameters.
        dtype: The type of the parameters.
        weight_init: See `Linear`.
        bias_init: See `Linear`. The default is torch's own initialisation; in Gluon it is `"zeros"`.
        norm: See `Linear`.
        order: See `Linear`.

    Shapes: `(N, ...)` to `(N, units)`; without `flatten` `(..., in_features)` to `(..., units)`.

    Raises:
        ValueError: See `Linear`.
        TypeError: See `Linear`.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> layer = nn.Dense(10, "relu")
        >>> layer(torch.randn(2, 3, 4)).shape, layer.in_features
        (torch.Size([2, 10]), 12)
    """

    def __init__(
        self,
        units: int,
        activation: ActivationLike | None = None,
        bias: bool = True,
        flatten: bool = True,
        in_features: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        norm: NormLike | None = None,
        order: Order = "CNA",
    ) -> None:
        own: Any = {"weight_init": weight_init, "bias_init": bias_init}
        super().__init__(in_features, units, bias, device, dtype, activation=activation, norm=norm, order=order, **own)
        self.flatten = flatten

    def forward(self, input: Tensor) -> Any:
        """Flatten, then run operation, norm and activation in their order."""
        return super().forward(input.flatten(1) if self.flatten else input)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"in_features": math.prod(input.shape[1:]) if self.flatten else input.shape[-1]}


class Bilinear(Layer, torch_nn.Bilinear):
    """`torch.nn.Bilinear` with initialisers and an activation; for their arguments see `Linear`.

    All other arguments are torch's. If `in1_features` or `in2_features` is None, the layer reads it from the first
    batch.

    Shapes: `(..., in1_features)` and `(..., in2_features)` to `(..., out_features)`.
    """

    torch_class = torch_nn.Bilinear
    inferred: ClassVar[tuple[str, ...]] = ("in1_features", "in2_features")

    def forward(self, input1: Tensor, input2: Tensor) -> Any:  # type: ignore[override]
        """Run the operation, then the activation."""
        output = super(Layer, self).forward(input1, input2)
        return self.activation(output) if self._stages != "C" else output

    def _infer_sizes(self, input1: Tensor, input2: Tensor) -> dict[str, Any]:  # type: ignore[override]
        return {"in1_features": input1.shape[-1], "in2_features": input2.shape[-1]}
