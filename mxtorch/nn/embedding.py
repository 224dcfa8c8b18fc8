"""Embeddings with an initialiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn as torch_nn

from mxtorch.init import Initializer
from mxtorch.nn.layer import Layer


class Embedding(Layer, torch_nn.Embedding):
    """`torch.nn.Embedding` with an initialiser and an activation.

    All other arguments are torch's. The row `padding_idx` stays zero with every initialiser.

    Args:
        weight_init: Initialiser of the weight; by default torch's own, a standard normal.
        bias_init: This raises an error, as in every layer without a bias.
        activation: The activation after the operation: a name, a module or its class.

    Shapes: integers `(...)` to `(..., embedding_dim)`.

    Raises:
        ValueError: A name is unknown, `num_embeddings` or `embedding_dim` is None, the initialiser can't fill two
            dimensions, a weight is given, too, or an initialiser is for a bias.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> from mxtorch import nn
        >>> nn.Embedding(3, 2, padding_idx=0, weight_init="ones").weight.tolist()
        [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """

    torch_class = torch_nn.Embedding

    def _construct_operation(self, arguments: dict[str, Any], own: Mapping[str, Initializer]) -> None:
        if arguments.get("_weight") is not None and "weight_init" in own:
            raise ValueError("weight_init: got an initialiser and a weight; give only one of the two")
        super()._construct_operation(arguments, own)
