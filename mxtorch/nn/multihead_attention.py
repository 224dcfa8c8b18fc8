"""Attention that says how it is initialised."""

from __future__ import annotations

import torch
from torch import nn as torch_nn

from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.layer import Layer, own_from


class MultiheadAttention(Layer, torch_nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with initialisers.

    Args:
        embed_dim: Features of the query and of the output.
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

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, or an initialiser can't apply to the shape or is for a bias that isn't there.
        TypeError: An initialiser is neither a name nor callable.
    """

    torch_class = torch_nn.MultiheadAttention

    def __init__(
        self,
        embed_dim: int,
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
    ) -> None:
        arguments = {
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
        self._construct(arguments, own_from(weight_init=weight_init, bias_init=bias_init))

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
        named = [name for name, _ in self.named_parameters() if name not in ("bias_k", "bias_v")]
        kinds = {name: "bias_init" if name.endswith("bias") else "weight_init" for name in named}
        return {name: own[kind] for name, kind in kinds.items() if kind in own}
