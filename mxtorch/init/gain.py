"""The gain of the weights before an activation."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

# Elementwise activations that torch.nn.init.calculate_gain does not know.
_MEASURED = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid, nn.Mish, nn.SiLU),
    *(nn.Softplus, nn.Softsign, nn.Tanhshrink),
)


def known_nonlinearity(activation: nn.Module) -> tuple[str, float] | None:
    """The name and slope for `torch.nn.init.calculate_gain`; None if torch has no gain for the activation."""
    if isinstance(activation, nn.ReLU6):
        return "relu", 0.0
    if isinstance(activation, nn.LeakyReLU):
        return "leaky_relu", activation.negative_slope
    if isinstance(activation, nn.PReLU):
        return "leaky_relu", activation.init
    for kind, name in ((nn.ReLU, "relu"), (nn.Tanh, "tanh"), (nn.Sigmoid, "sigmoid"), (nn.SELU, "selu")):
        if isinstance(activation, kind):
            return name, 0.0
    return ("linear", 0.0) if isinstance(activation, nn.Identity) else None


def gain_of(activation: nn.Module | None) -> float | None:
    """The gain for an activation: torch's gain if it has one, else the gain that keeps the second moment at 1.

    The latter is 1 / sqrt(E[f(z)^2]) for a standard normal z. This is the argument of He et al. 2015 (arXiv 1502.01852,
    sec. 2.2, eq. 8-10) for any f. For ReLU, it equals torch's square root of 2.

    Returns:
        The gain; None without an activation, and for an activation that is not elementwise or not torch's.

    Example:
        >>> from mxtorch import init, nn
        >>> init.gain_of(nn.ReLU()) == 2**0.5, round(init.gain_of(nn.GELU()), 3)
        (True, 1.534)
    """
    if activation is None:
        return None
    known = known_nonlinearity(activation)
    if known is not None:
        return calculate_gain(*known)
    return _measured_gain(activation) if isinstance(activation, _MEASURED) else None


def calculate_gain(name: str, slope: float) -> float:
    """`torch.nn.init.calculate_gain`, whose types differ between the versions of torch."""
    calculate: Any = nn.init.calculate_gain
    return float(calculate(name, slope))


def _measured_gain(activation: nn.Module) -> float:
    with torch.no_grad():
        moment = activation(_normal_grid()).square().mean()
    return float(moment.rsqrt())


@functools.cache
def _normal_grid() -> torch.Tensor:
    """The quantiles of a standard normal at the centres of 2^16 equal parts, on the CPU."""
    parts = torch.arange(2**16, dtype=torch.float64, device="cpu")
    grid: torch.Tensor = torch.special.ndtri((parts + 0.5) / len(parts))
    return grid
