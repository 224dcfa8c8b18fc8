"""Recurrent layers with separate initialisers for input weights, recurrent weights, and biases."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils.rnn import PackedSequence

from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.layer import Layer

_NONLINEARITIES = {torch_nn.Tanh: "tanh", torch_nn.ReLU: "relu"}
_ARGUMENTS = {
    "weight_ih": ("input_init", "weight_init"),
    "weight_hh": ("recurrent_init", "weight_init"),
    "weight_hr": ("weight_init",),
}


class _Recurrent(Layer, torch_nn.RNNBase):
    """The base of recurrent layers. Initialisers fill one gate at a time, so that the fans are those of one gate."""

    inferred: ClassVar[tuple[str, ...]] = ("input_size",)

    def __init__(
        self,
        *torchs: Any,
        weight_init: InitializerLike | None = None,
        input_init: InitializerLike | None = None,
        recurrent_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
        **named: Any,
    ) -> None:
        weights = {"weight_init": weight_init, "input_init": input_init, "recurrent_init": recurrent_init}
        self._construct(self._bind(torchs, named), {**weights, "bias_init": bias_init}, activation)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Run over the sequence, then activate the output. The result has torch's form."""
        output, state = super(Layer, self).forward(input, hx)
        if self._stages == "C":
            return output, state
        if isinstance(output, PackedSequence):
            return output._replace(data=self.activation(output.data)), state
        return self.activation(output), state

    @classmethod
    def _torch_parameters(cls) -> list[inspect.Parameter]:
        parameters = inspect.signature(torch_nn.RNNBase).parameters.values()
        return [parameter for parameter in parameters if parameter.name != "mode"]

    @classmethod
    def _bind(cls, torchs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        arguments = super()._bind(torchs, named)
        if not arguments.get("proj_size"):  # RNN and GRU refuse this keyword, whatever its value
            arguments.pop("proj_size", None)
        return arguments

    def _arguments_for(self, parameter: str) -> tuple[str, ...]:
        return ("bias_init",) if parameter.startswith("bias") else _ARGUMENTS.get(parameter[:9], ())

    def _infer_sizes(self, input: Tensor | PackedSequence, hx: Any = None) -> dict[str, Any]:
        return {"input_size": (input if isinstance(input, Tensor) else input.data).shape[-1]}


class RNN(_Recurrent, torch_nn.RNN):
    """`torch.nn.RNN` with initialisers. Their gains are those of the nonlinearity, which is the activation.

    All other arguments are torch's. With `input_size=None`, the layer reads the size from the first batch.

    Args:
        weight_init: Initialiser of all weights; by default torch's own initialisation.
        input_init: Initialiser of the input weights, instead of `weight_init`.
        recurrent_init: Initialiser of the recurrent weights, instead of `weight_init`.
        bias_init: Initialiser of both biases; by default torch's own initialisation.
        activation: Tanh or ReLU, as a name, a module or its class. It means the same as `nonlinearity`.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, the activation is neither of the two or differs from `nonlinearity`, an
            initialiser can't fill the shape, or there is an initialiser for a missing bias.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> from mxtorch import nn
        >>> layer = nn.RNN(3, 2, activation="relu", recurrent_init="identity", bias_init="zeros")
        >>> layer.weight_hh_l0.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    torch_class = torch_nn.RNN

    @classmethod
    def _torch_parameters(cls) -> list[inspect.Parameter]:
        parameters = super()._torch_parameters()
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [*parameters[:3], inspect.Parameter("nonlinearity", kind, default="tanh"), *parameters[3:]]

    def _take_activation(self, activation: Any, arguments: dict[str, Any]) -> None:
        """Put the activation into the arguments, as torch's `nonlinearity`."""
        made = activation_from(activation)
        given = arguments.pop("nonlinearity", None)
        name = given if made is None else _NONLINEARITIES.get(type(made))
        if made is not None and name is None:
            raise ValueError(
                f"activation: got {activation!r}, but an RNN's activation is its nonlinearity, 'tanh' or 'relu'; add "
                "another activation after the layer"
            )
        if given not in (None, name):
            raise ValueError(f"activation: got {activation!r} with nonlinearity={given!r}; give one of the two")
        if name is not None:
            arguments["nonlinearity"] = name


class LSTM(_Recurrent, torch_nn.LSTM):
    """`torch.nn.LSTM` with initialisers and an activation.

    All other arguments are torch's. With `input_size=None`, the layer reads the size from the first batch. With
    `bias_init="lstm_bias"`, the forget gate is open at the start.

    Args:
        weight_init: Initialiser of all weights, including those of the projection; by default torch's own.
        input_init: Initialiser of the input weights, instead of `weight_init`.
        recurrent_init: Initialiser of the recurrent weights, instead of `weight_init`.
        bias_init: Initialiser of both biases; by default torch's own initialisation.
        activation: The activation of the output of every step: a name, a module or its class. The gates do not change,
            and neither does the second output, the last states.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, an initialiser can't fill the shape, or there is an initialiser for a missing
            bias.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> from mxtorch import nn
        >>> layer = nn.LSTM(3, 2, recurrent_init="orthogonal", bias_init="lstm_bias")
        >>> layer.bias_ih_l0.tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    torch_class = torch_nn.LSTM


class GRU(_Recurrent, torch_nn.GRU):
    """`torch.nn.GRU` with initialisers and an activation; for their arguments see `LSTM`.

    All other arguments are torch's. With `input_size=None`, the layer reads the size from the first batch.

    Shapes: torch's.
    """

    torch_class = torch_nn.GRU
