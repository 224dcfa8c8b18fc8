"""Recurrent layers that say how they are initialised: input, recurrent and bias apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils.rnn import PackedSequence

from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.layer import ComposedLayer, own_from

_NONLINEARITIES = {"tanh": torch_nn.Tanh, "relu": torch_nn.ReLU}
_ARGUMENT_BY_KIND = {"weight_ih": "input_init", "weight_hh": "recurrent_init"}


class _Recurrent(ComposedLayer, torch_nn.RNNBase):
    """What recurrent layers share. Initialisers fill gate by gate, so that fans are those of one gate."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Run over the sequence, then activate the output; what is returned is torch's."""
        output, state = super(ComposedLayer, self).forward(input, hx)
        if not self._stages:
            return output, state
        if isinstance(output, PackedSequence):
            return output._replace(data=self.activation(output.data)), state
        return self.activation(output), state

    def _by_parameter(self, own: dict[str, Initializer]) -> dict[str, Initializer]:
        self._check_wanted("bias_init", own, self.bias)
        found = {}
        for name in self._flat_weights_names:
            general = "bias_init" if name.startswith("bias") else "weight_init"
            given = own.get(_ARGUMENT_BY_KIND.get(name[:9], general), own.get(general))
            if given is not None:
                found[name] = given
        return found

    def _infer_sizes(self, input: Tensor | PackedSequence, hx: Any = None) -> dict[str, Any]:
        return {"input_size": (input if isinstance(input, Tensor) else input.data).shape[-1]}


class RNN(_Recurrent, torch_nn.RNN):
    """`torch.nn.RNN` with initialisers; gains are those of its nonlinearity, which is its activation.

    Args:
        input_size: Features of the input; None reads them off the first batch.
        hidden_size: Features of the state.
        num_layers: See torch.
        nonlinearity: `"tanh"`, the default, or `"relu"`.
        bias: See torch.
        batch_first: See torch.
        dropout: See torch.
        bidirectional: See torch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of all weights; torch's own when left out.
        input_init: Initialiser of the weights of the input, instead.
        recurrent_init: Initialiser of the weights of the state, instead.
        bias_init: Initialiser of both biases; torch's own when left out.
        activation: The nonlinearity, by the name that it has in other layers: tanh or ReLU, as a name, a module or its
            class.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, the activation is neither of the two or not the nonlinearity that was given too,
            or an initialiser can't apply to the shape or is for a bias that isn't there.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.RNN

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        input_init: InitializerLike | None = None,
        recurrent_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(
            weight_init=weight_init, input_init=input_init, recurrent_init=recurrent_init, bias_init=bias_init
        )
        arguments = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "nonlinearity": _nonlinearity(nonlinearity, activation),
            "bias": bias,
            "batch_first": batch_first,
            "dropout": dropout,
            "bidirectional": bidirectional,
            "device": device,
            "dtype": dtype,
        }
        self._construct(arguments, own, inferred=("input_size",))


def _nonlinearity(nonlinearity: str | None, activation: ActivationLike | None) -> str:
    """What torch is given: the nonlinearity, or the activation under that name."""
    made = activation_from(activation)
    if made is None:
        return "tanh" if nonlinearity is None else nonlinearity
    name = next((name for name, kind in _NONLINEARITIES.items() if type(made) is kind), None)
    if name is None:
        raise ValueError(
            f"activation: got {activation!r}, but an RNN's activation is its nonlinearity, 'tanh' or 'relu'; put "
            "another one behind the layer"
        )
    if nonlinearity not in (None, name):
        raise ValueError(f"activation: got {activation!r} with nonlinearity={nonlinearity!r}; give one of the two")
    return name


class _Gated(_Recurrent):
    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        input_init: InitializerLike | None = None,
        recurrent_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(
            weight_init=weight_init, input_init=input_init, recurrent_init=recurrent_init, bias_init=bias_init
        )
        arguments = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "bias": bias,
            "batch_first": batch_first,
            "dropout": dropout,
            "bidirectional": bidirectional,
            "device": device,
            "dtype": dtype,
        }
        if proj_size:
            arguments["proj_size"] = proj_size  # an LSTM's alone: torch refuses it elsewhere
        activation = activation_from(activation)
        self._construct_composed(arguments, own, inferred=("input_size",), activation=activation)


class LSTM(_Gated, torch_nn.LSTM):
    """`torch.nn.LSTM` with initialisers and an activation. `bias_init="lstm_bias"` opens the forget gate at the start.

    Args:
        input_size: Features of the input; None reads them off the first batch.
        hidden_size: Features of the state.
        num_layers: See torch.
        bias: See torch.
        batch_first: See torch.
        dropout: See torch.
        bidirectional: See torch.
        proj_size: See torch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of all weights, the projection's too; torch's own when left out.
        input_init: Initialiser of the weights of the input, instead.
        recurrent_init: Initialiser of the weights of the state, instead.
        bias_init: Initialiser of both biases; torch's own when left out.
        activation: What follows on the output of every step: a name, a module or its class. Inside, gates and state
            stay torch's, and so do the last states, which come second.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, or an initialiser can't apply to the shape or is for a bias that isn't there.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.LSTM


class GRU(_Gated, torch_nn.GRU):
    """`torch.nn.GRU` with initialisers and an activation.

    Args:
        input_size: Features of the input; None reads them off the first batch.
        hidden_size: Features of the state.
        num_layers: See torch.
        bias: See torch.
        batch_first: See torch.
        dropout: See torch.
        bidirectional: See torch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of all weights; torch's own when left out.
        input_init: Initialiser of the weights of the input, instead.
        recurrent_init: Initialiser of the weights of the state, instead.
        bias_init: Initialiser of both biases; torch's own when left out.
        activation: What follows on the output of every step: a name, a module or its class. Inside, gates and state
            stay torch's, and so do the last states, which come second.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, or an initialiser can't apply to the shape or is for a bias that isn't there.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.GRU
