"""Embeddings that say how they are initialised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as torch_nn

from mxtorch.init import InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.layer import ComposedLayer, own_from


class Embedding(ComposedLayer, torch_nn.Embedding):
    """`torch.nn.Embedding` with an initialiser and an activation.

    Args:
        num_embeddings: Rows. A batch does not tell it, as it may lack the last ones.
        embedding_dim: Features of a row.
        padding_idx: A row that stays zero, whatever the initialiser.
        max_norm: See torch.
        norm_type: See torch.
        scale_grad_by_freq: See torch.
        sparse: See torch.
        _weight: See torch; `from_pretrained` gives it.
        _freeze: See torch.
        device: Where the parameters are.
        dtype: Their type.
        weight_init: Initialiser of the weight; torch's own, a standard normal, when left out.
        bias_init: There is no bias: an error, as in any layer without one.
        activation: What follows: a name, a module or its class.

    Shapes: integers `(...)` to `(..., embedding_dim)`.

    Raises:
        ValueError: A name is unknown, the initialiser can't apply to two dimensions, it comes with a weight,
            or one is for a bias.
        TypeError: An initialiser or the activation is neither a name nor callable.
    """

    torch_class = torch_nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
    ) -> None:
        if _weight is not None and weight_init is not None:
            raise ValueError("weight_init: the weight is given, so there is nothing to initialise; leave it out")
        arguments = {
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "padding_idx": padding_idx,
            "max_norm": max_norm,
            "norm_type": norm_type,
            "scale_grad_by_freq": scale_grad_by_freq,
            "sparse": sparse,
            "_weight": _weight,
            "_freeze": _freeze,
            "device": device,
            "dtype": dtype,
        }
        own = own_from(weight_init=weight_init, bias_init=bias_init)
        self._construct_composed(arguments, own, activation=activation_from(activation))
