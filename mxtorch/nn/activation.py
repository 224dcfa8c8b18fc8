"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn as torch_nn

from mxtorch._checks import closest

ActivationName = (
    Literal["celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu"]
    | Literal["relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "swish", "tanh"]
)
"""The names that `activation=` takes; "swish" and "silu" are the same activation."""

ActivationLike = ActivationName | torch_nn.Module | Callable[[], torch_nn.Module]
"""A name, a module, or a callable without arguments that returns a module, such as a class."""

_CLASSES = {name.lower(): kind for name, kind in vars(torch_nn).items()}
_BY_NAME: dict[str, Callable[[], torch_nn.Module]] = {
    name: _CLASSES["silu" if name == "swish" else name.replace("_", "")]
    for names in get_args(ActivationName)
    for name in get_args(names)
}


def activation_from(activation: Any) -> torch_nn.Module | None:
    """The module for the value of an argument `activation`; None for None.

    Raises:
        ValueError: The name is unknown.
        TypeError: The value is not an `ActivationLike`.
    """
    if activation is None or isinstance(activation, torch_nn.Module):
        return activation
    if isinstance(activation, str):
        if activation.lower() not in _BY_NAME:
            raise ValueError(f"activation: got {activation!r}{closest(activation.lower(), _BY_NAME)}")
        return _BY_NAME[activation.lower()]()
    advice = "give a name, a module, or its class (for a function such as torch.relu, its module, such as nn.ReLU)"
    if not callable(activation):
        raise TypeError(f"activation: got {activation!r}; {advice}")
    try:
        made = activation()
    except TypeError as error:
        message = f"activation: got {activation!r}, which can't be called without arguments ({error}); {advice}"
        raise TypeError(message) from error
    if not isinstance(made, torch_nn.Module):
        raise TypeError(f"activation: got {activation!r}, which returned a {type(made).__name__}; {advice}")
    return made
