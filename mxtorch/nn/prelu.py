"""PReLU with an initialiser."""

from __future__ import annotations

from typing import ClassVar

from torch import nn as torch_nn

from mxtorch.nn.layer import Layer


class PReLU(Layer, torch_nn.PReLU):
    """`torch.nn.PReLU` with an initialiser of its slopes.

    All other arguments are torch's. With `num_parameters=None`, the layer reads the number of channels from the first
    batch.

    Args:
        weight_init: Initialiser of the slopes, in place of `init`. By default, every slope starts at `init`, whose
            default is that of He et al. 2015 (arXiv 1502.01852, sec. 2.1).
        bias_init: This raises an error, as in every layer without a bias.
        activation: The activation after the layer. It is rarely useful, because the layer itself is an activation.

    Shapes: `(N, C, ...)` to the same.

    Raises:
        ValueError: A name is unknown, or an initialiser is for a bias.
        TypeError: An initialiser or activation is neither a name nor callable.

    Example:
        >>> from mxtorch import init, nn
        >>> nn.PReLU(2, weight_init=init.Constant(0.5)).weight.tolist()
        [0.5, 0.5]
    """

    torch_class = torch_nn.PReLU
    inferred: ClassVar[tuple[str, ...]] = ("num_parameters",)
