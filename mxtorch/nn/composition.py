"""Layers with a norm and an activation in any order."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from mxtorch._checks import closest
from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike
from mxtorch.nn.layer import Layer
from mxtorch.nn.normalisation import NormLike, norm_from

Order = Literal["CNA", "CAN", "ACN", "ANC", "NCA", "NAC"]
"""The order of the parts: C is the convolution or other operation, N is the norm, A is the activation."""


class NormedLayer(Layer):
    """The base of layers that take a norm and an activation; for their arguments see `Conv2d`."""

    dimensions: ClassVar[int] = 0  # the number of dimensions after the channels

    def __init__(
        self,
        *torchs: Any,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
        norm: NormLike | None = None,
        order: Order = "CNA",
        **named: Any,
    ) -> None:
        arguments = self._bind(torchs, named)
        if order not in get_args(Order):
            needs = "each of C, N and A once"
            raise ValueError(f"order: got {order!r}; it needs {needs}{closest(str(order), get_args(Order))}")
        size = self.inferred[0]
        channels = arguments[size if order.index("N") < order.index("C") else size.replace("in", "out")]
        module = norm_from(norm, channels, self.dimensions)
        self._construct(arguments, {"weight_init": weight_init, "bias_init": bias_init}, activation, module, order)
