"""Linear layers that say how they are initialised, with a norm and an activation beside them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.composition import Order, composed
from mxtorch.nn.layer import ComposedLayer, own_from
from mxtorch.nn.normalisation import NormLike


class Linear(ComposedLayer, torch_nn.Linear):
    """`torch.nn.Linear` with initialisers, norm and activation. Without the two it is torch's in all that it does.

    Args:
        in_features: Features of the input; None reads them off the first batch.
        out_features: Features of the output.
        bias: Add a bias. A norm right after the operation makes it useless: set it to False there.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the weight: a name, one of `mxtorch.init`, or a function that fills a tensor. Its
            gain is that of `activation`. Torch's own when left out.
        bias_init: Initialiser of the bias; torch's own when left out.
        activation: A name, a module, or its class.
        norm: `"batch"`, `"group"`, `"layer"`, a module, or what makes one from the number of features. All but layer
            norms see each position as a sample of its own, so that features are their channels.
        order: Operation ("C"), norm and activation in any order; what there is none of is passed over.

    Shapes: `(..., in_features)` to `(..., out_features)`.

    Raises:
        ValueError: A name is unknown, letters are missing in the order, the norm is for another number of features, an
            initialiser can't apply to the shape, or is for a bias that there is none of.
        TypeError: An initialiser, norm or activation is neither a name nor callable.
    """

    torch_class = torch_nn.Linear

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        bias: bool = True,
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
        channels = (in_features, out_features)
        beside = composed(activation=activation, norm=norm, order=order, channels=channels, dimensions=0)
        arguments: dict[str, Any] = {"in_features": in_features, "out_features": out_features, "bias": bias}
        arguments |= {"device": device, "dtype": dtype}
        self._construct_composed(arguments, own, inferred=("in_features",), **beside)

    def _normalise(self, input: Tensor) -> Any:
        if input.dim() <= 2 or isinstance(self.norm, (torch_nn.LayerNorm, torch_nn.RMSNorm)):
            return self.norm(input)
        return self.norm(input.flatten(0, -2)).reshape(input.shape)  # these norms have the channels second

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"in_features": input.shape[-1]}


class Dense(Linear):
    """`Linear` as Gluon spells it: the output's size and the activation first, the input's size from the first batch.

    Args:
        units: Features of the output.
        activation: A name, a module, or its class.
        bias: Add a bias (`use_bias` in Gluon).
        flatten: Take all dimensions after the first as one.
        in_features: Features of the input, flattened (`in_units` in Gluon); None reads them off the first batch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: See `Linear`.
        bias_init: See `Linear`. When left out it is torch's; Gluon's is `"zeros"`.
        norm: See `Linear`.
        order: See `Linear`.

    Shapes: `(N, ...)` to `(N, units)`; without `flatten` `(..., in_features)` to `(..., units)`.

    Raises:
        ValueError: See `Linear`.
        TypeError: See `Linear`.
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
        super().__init__(
            in_features,
            units,
            bias,
            device,
            dtype,
            weight_init=weight_init,
            bias_init=bias_init,
            activation=activation,
            norm=norm,
            order=order,
        )
        self.flatten = flatten

    def forward(self, input: Tensor) -> Any:
        """Flatten, then run operation, norm and activation in their order."""
        return super().forward(input.flatten(1) if self.flatten else input)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"in_features": math.prod(input.shape[1:]) if self.flatten else input.shape[-1]}


class Bilinear(ComposedLayer, torch_nn.Bilinear):
    """`torch.nn.Bilinear` with initialisers and an activation.

    Args:
        in1_features: Features of the first input; None reads them off the first batch.
        in2_features: Features of the second input; None reads them off the first batch.
        out_features: Features of the output.
        bias: Add a bias.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the weight; torch's own when left out.
        bias_init: Initialiser of the bias; torch's own when left out.
        activation: What follows: a name, a module or its class.

    Shapes: `(..., in1_features)` and `(..., in2_features)` to `(..., out_features)`.

    Raises:
        ValueError: A name is unknown, or an initialiser can't apply to the shape or is for a bias that isn't there.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.Bilinear

    def __init__(
        self,
        in1_features: int | None,
        in2_features: int | None,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        arguments: dict[str, Any] = {
            "in1_features": in1_features,
            "in2_features": in2_features,
            "out_features": out_features,
        }
        arguments |= {"bias": bias, "device": device, "dtype": dtype}
        inferred = ("in1_features", "in2_features")
        self._construct_composed(arguments, own, inferred=inferred, activation=activation_from(activation))

    def forward(self, input1: Tensor, input2: Tensor) -> Any:  # type: ignore[override]
        """Run the operation, then the activation."""
        output = super(ComposedLayer, self).forward(input1, input2)
        return self.activation(output) if self._stages else output

    def _infer_sizes(self, input1: Tensor, input2: Tensor) -> dict[str, Any]:
        return {"in1_features": input1.shape[-1], "in2_features": input2.shape[-1]}
