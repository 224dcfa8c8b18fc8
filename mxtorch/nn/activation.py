"""Activations: by name, and PReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch._checks import closest
from mxtorch.init import InitializerLike
from mxtorch.nn.layer import ComposedLayer, own_from

ActivationLike = str | torch_nn.Module | Callable[[], torch_nn.Module]
"""A name, a module, or what makes one when called without arguments, such as a class."""


class PReLU(ComposedLayer, torch_nn.PReLU):
    """`torch.nn.PReLU` that says how its slopes are initialised.

    Args:
        num_parameters: Slopes: 1, or one a channel. None reads the channels off the first batch.
        init: The slope at the start; the default is that of He et al. 2015 (arXiv 1502.01852, sec. 2.1).
        device: Where the slopes are.
        dtype: Their type.
        weight_init: Initialiser of the slopes, instead of `init`.
        bias_init: There is no bias: an error, as in any layer without one.
        activation: What follows, which is rarely anything: the layer is an activation itself.

    Shapes: `(N, C, ...)` to the same.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a bias.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.PReLU

    def __init__(
        self,
        num_parameters: int | None = 1,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        arguments = {"num_parameters": num_parameters, "init": init, "device": device, "dtype": dtype}
        activation = activation_from(activation)
        self._construct_composed(arguments, own, inferred=("num_parameters",), activation=activation)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        return {"num_parameters": input.shape[1]}


_BY_NAME: dict[str, Callable[[], torch_nn.Module]] = {
    "celu": torch_nn.CELU,
    "elu": torch_nn.ELU,
    "gelu": torch_nn.GELU,
    "hardsigmoid": torch_nn.Hardsigmoid,
    "hardswish": torch_nn.Hardswish,
    "hardtanh": torch_nn.Hardtanh,
    "leaky_relu": torch_nn.LeakyReLU,
    "mish": torch_nn.Mish,
    "prelu": PReLU,
    "relu": torch_nn.ReLU,
    "relu6": torch_nn.ReLU6,
    "selu": torch_nn.SELU,
    "sigmoid": torch_nn.Sigmoid,
    "silu": torch_nn.SiLU,
    "softplus": torch_nn.Softplus,
    "softsign": torch_nn.Softsign,
    "swish": torch_nn.SiLU,
    "tanh": torch_nn.Tanh,
}


def activation_from(activation: ActivationLike | None) -> torch_nn.Module | None:
    """The module for what a user gave as `activation=`; None for None.

    Raises:
        ValueError: The name is unknown.
        TypeError: It is neither a name nor a module, nor makes one when called without arguments.
    """
    if activation is None or isinstance(activation, torch_nn.Module):
        return activation
    if isinstance(activation, str):
        if activation.lower() not in _BY_NAME:
            raise ValueError(f"activation: got {activation!r}{closest(activation.lower(), _BY_NAME)}")
        return _BY_NAME[activation.lower()]()
    advice = "give a name, a module, or its class (a function such as torch.relu has a module such as nn.ReLU)"
    if not callable(activation):
        raise TypeError(f"activation: got {activation!r}; {advice}")
    try:
        made = activation()
    except TypeError as error:
        raise TypeError(f"activation: {activation!r} can't be called without arguments ({error}); {advice}") from error
    if not isinstance(made, torch_nn.Module):
        raise TypeError(f"activation: {activation!r} made a {type(made).__name__}; {advice}")
    return made
