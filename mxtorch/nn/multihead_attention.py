"""Attention that says how it is initialised."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.layer import ComposedLayer, own_from


class MultiheadAttention(ComposedLayer, torch_nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with initialisers and an activation.

    Args:
        embed_dim: Features of the query and of the output, a multiple of `num_heads`; None reads them off the first
            batch.
        num_heads: Heads, a divisor of `embed_dim`.
        dropout: See torch.
        bias: See torch.
        add_bias_kv: See torch.
        add_zero_attn: See torch.
        kdim: Features of the key; those of the query when left out.
        vdim: Features of the value; those of the query when left out.
        batch_first: See torch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the projections: of query, key and value each by itself (torch's own takes the three
            as one matrix, which makes them smaller), and of the output. Torch's own when left out.
        bias_init: Initialiser of their biases; torch's own, zeros, when left out.
        activation: What follows on the output: a name, a module or its class. The weights of attention, which come
            second, stay as they are. In evaluation mode torch's `TransformerEncoderLayer` does not call its attention,
            but reads its weights, and so passes an activation by.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, or an initialiser can't apply to the shape or is for a bias that isn't there; at
            the first batch, when its features are not a multiple of the heads.
        TypeError: An initialiser or activation is neither a name nor callable.
    """

    torch_class = torch_nn.MultiheadAttention
    follow_from_sizes: ClassVar[tuple[str, ...]] = ("kdim", "vdim", "head_dim")

    def __init__(
        self,
        embed_dim: int | None,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        arguments: dict[str, Any] = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "dropout": dropout,
            "bias": bias,
            "add_bias_kv": add_bias_kv,
            "add_zero_attn": add_zero_attn,
            "kdim": kdim,
            "vdim": vdim,
            "batch_first": batch_first,
            "device": device,
            "dtype": dtype,
        }
        activation = activation_from(activation)
        self._construct_composed(arguments, own, inferred=("embed_dim",), activation=activation)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """Attend, then activate the output; arguments and what is returned are torch's."""
        output, weights = super(ComposedLayer, self).forward(*inputs, **named)
        return self.activation(output) if self._stages else output, weights

    def reset_parameters(self) -> None:
        """Fill each parameter anew, by the layer's own initialiser or as torch does."""
        if self.own_initializers:
            super().reset_parameters()
        else:
            super()._reset_parameters()

    def _reset_parameters(self) -> None:
        if not self._under_construction:
            self.reset_parameters()

    def _by_parameter(self, own: dict[str, Initializer]) -> dict[str, Initializer]:
        self._check_wanted("bias_init", own, self.in_proj_bias is not None)
        others = ("bias_k", "bias_v", "activation.")
        named = [name for name, _ in self.named_parameters() if not name.startswith(others)]
        kinds = {name: "bias_init" if name.endswith("bias") else "weight_init" for name in named}
        return {name: own[kind] for name, kind in kinds.items() if kind in own}

    def _infer_sizes(self, query: Tensor, key: Tensor, value: Tensor, *unused: Any, **named: Any) -> dict[str, Any]:
        features = query.shape[-1]
        if features % self.num_heads:
            raise ValueError(f"query: got {features} features for {self.num_heads} heads; give a multiple of the heads")
        deferred: Any = self._deferred
        sizes = {name: deferred[0][name] for name in ("kdim", "vdim")}
        for (name, size), tensor in zip(sizes.items(), (key, value), strict=True):
            if size is None and tensor.shape[-1] != features:
                given = f"{features} features of the query beside {tensor.shape[-1]}"
                raise ValueError(f"{name}: left out, it is the query's, but got {given}; give {tensor.shape[-1]}")
        if any(sizes.values()) and all(size in (None, features) for size in sizes.values()):
            raise ValueError(f"query: got {features} features, as many as key and value; leave kdim and vdim out")
        return {"embed_dim": features}
