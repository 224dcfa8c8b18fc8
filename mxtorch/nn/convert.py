"""From these layers to torch's own, for tools that look at a layer's exact class."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import nn as torch_nn

from mxtorch.nn.layer import Layer
from mxtorch.nn.lazy import LazyLayer
from mxtorch.nn.linear import Bilinear, Dense
from mxtorch.nn.normalisation import ChannelNorm


def to_torch(net: torch_nn.Module) -> torch_nn.Module:
    """Turn the layers of this package inside a network into torch's own, in place.

    Eager-mode quantisation, FX quantisation and pickles that are to be read without this package ask for exact classes
    or modules of torch. Parameters, buffers and hooks stay the same objects. A layer without norm and activation, and
    so every key of its state_dict, stays where it was; one that has some becomes a `Sequential` of operation, norm and
    activation in their order, as fusing tools want it. Initialisers are forgotten. Subclasses elsewhere are left alone.

    Args:
        net: The network, or one layer.

    Returns:
        The network; where it is itself a layer with a norm or an activation, the `Sequential`.

    Raises:
        ValueError: A layer is lazy still, or takes two inputs and has an activation. Nothing has changed then.
    """
    for name, module in net.named_modules():
        if isinstance(module, LazyLayer):
            raise ValueError(f"net: {name or type(module).__name__} is lazy; run a batch through the network first")
        if isinstance(module, Bilinear) and module._stages:
            raise ValueError(f"net: {name or 'Bilinear'} has two inputs, which a Sequential can't take")
    converted: dict[int, torch_nn.Module] = {}  # a layer may stand in several places
    for parent in reversed(list(net.modules())):
        for name, child in list(parent._modules.items()):
            if child is not None and (id(child) in converted or _is_ours(child)):
                parent._modules[name] = converted.setdefault(id(child), converted.get(id(child)) or _converted(child))
    return _converted(net) if _is_ours(net) else net


def _is_ours(module: torch_nn.Module) -> TypeGuard[Any]:
    """True for the layers of this package that torch has too."""
    is_here = type(module).__module__.startswith("mxtorch.nn.")
    return isinstance(module, Layer) and is_here and not isinstance(module, ChannelNorm)


def _converted(layer: Any) -> torch_nn.Module:
    stages = layer._stages or "C"
    beside = {
        letter: layer._modules.pop(name) for letter, name in (("N", "norm"), ("A", "activation")) if letter in stages
    }
    flattens = isinstance(layer, Dense) and layer.flatten
    for name in ("_own", "_stages", "flatten"):
        layer.__dict__.pop(name, None)
    plain: Any = layer
    plain.__class__ = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn."))
    parts: list[torch_nn.Module] = [plain if stage == "C" else beside[stage] for stage in stages]
    if flattens:
        parts.insert(0, torch_nn.Flatten())
    return parts[0] if len(parts) == 1 else torch_nn.Sequential(*parts)
