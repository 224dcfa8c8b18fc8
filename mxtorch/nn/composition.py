"""Operation, norm and activation in an order."""

from __future__ import annotations

from typing import Any, Literal

from mxtorch._checks import closest
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.normalisation import NormLike, norm_from

Order = Literal["CNA", "CAN", "ACN", "ANC", "NCA", "NAC"]
"""C is the convolution or other operation, N the norm, A the activation."""

_ORDERS = ("CNA", "CAN", "ACN", "ANC", "NCA", "NAC")


def composed(
    *,
    activation: ActivationLike | None,
    norm: NormLike | None,
    order: Order,
    channels: tuple[int | None, int],
    dimensions: int,
) -> dict[str, Any]:
    """What goes beside an operation, for `ComposedLayer._construct_composed`.

    Args:
        activation: What the user gave.
        norm: What the user gave.
        order: What the user gave.
        channels: Those of the operation's input, None where they are not known yet, and of its output.
        dimensions: Dimensions after the channels.

    Raises:
        ValueError, TypeError: Something that was given is off.
    """
    if order not in _ORDERS:
        needs = "each of C, N and A once"
        raise ValueError(f"order: got {order!r}; it needs {needs}{closest(str(order), _ORDERS)}")
    where = channels[0] if order.index("N") < order.index("C") else channels[1]
    return {
        "activation": activation_from(activation),
        "norm": norm_from(norm, where, dimensions),
        "order": order,
    }
