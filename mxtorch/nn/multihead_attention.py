"""Attention with initialisers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch import nn as torch_nn

from mxtorch.nn.layer import Layer


class MultiheadAttention(Layer, torch_nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with initialisers and an activation.

    All other arguments are torch's. With `embed_dim=None`, the layer reads the size from the first batch; give `kdim`
    and `vdim` then only if they differ from the size of the query.

    Args:
        weight_init: Initialiser of the projections. It fills those of query, key and value one at a time. By default,
            torch's own initialisation fills the three as one matrix, which makes their values smaller.
        bias_init: Initialiser of the projections' biases; by default torch's own, zeros.
        activation: The activation of the output: a name, a module or its class. The second output, the attention
            weights, does not change. In evaluation mode, torch's `TransformerEncoderLayer` does not call its attention
            but reads the weights, so it skips the activation.

    Shapes: torch's.

    Raises:
        ValueError: A name is unknown, an initialiser can't fill the shape, or there is an initialiser for a missing
            bias. At the first batch: the number of features is not a multiple of the number of heads.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> import torch
        >>> from mxtorch import nn
        >>> layer = nn.MultiheadAttention(None, 2, weight_init="xavier_uniform", bias_init="zeros")
        >>> states = torch.randn(5, 1, 8)
        >>> layer(states, states, states)[0].shape
        torch.Size([5, 1, 8])
    """

    torch_class = torch_nn.MultiheadAttention
    inferred: ClassVar[tuple[str, ...]] = ("embed_dim",)
    follow_from_sizes: ClassVar[tuple[str, ...]] = ("kdim", "vdim", "head_dim")

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """Compute attention, then activate the output. Arguments and result are torch's."""
        output, weights = super(Layer, self).forward(*inputs, **named)
        return self.activation(output) if self._stages != "C" else output, weights

    def reset_parameters(self) -> None:
        """Fill each parameter again, with the layer's own initialiser, or else as torch does."""
        if self.own_initializers:
            super().reset_parameters()
        else:
            super()._reset_parameters()

    def _reset_parameters(self) -> None:
        if not self._under_construction:
            self.reset_parameters()

    def _arguments_for(self, parameter: str) -> tuple[str, ...]:
        if parameter.startswith(("bias_k", "bias_v", "activation.")):
            return ()
        return ("bias_init",) if parameter.endswith("bias") else ("weight_init",)

    def _infer_sizes(self, query: Tensor, key: Tensor, value: Tensor, *unused: Any, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        features = query.shape[-1]
        if features % self.num_heads:
            raise ValueError(f"query: got {features} features for {self.num_heads} heads; give a multiple of the heads")
        deferred: Any = self._deferred
        sizes = {name: deferred[0].get(name) for name in ("kdim", "vdim")}
        for (name, size), tensor in zip(sizes.items(), (key, value), strict=True):
            if size is None and tensor.shape[-1] != features:
                raise ValueError(
                    f"{name}: got None, which means the {features} features of the query, and an input with "
                    f"{tensor.shape[-1]} features; give {tensor.shape[-1]}"
                )
        if any(sizes.values()) and all(size in (None, features) for size in sizes.values()):
            raise ValueError(f"query: got {features} features, as for key and value; leave kdim and vdim out")
        return {"embed_dim": features}
