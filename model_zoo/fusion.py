"""Convolutions with the normalisation after them folded in: the same outputs in evaluation, in less time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from .lookup import entry


def fuse(net: nn.Module, *, size: int | None = None) -> nn.Module:
    """A copy of a network for inference, with batch normalisation folded into the convolutions before it.

    Which normalisation follows which convolution, and that nothing else sees what is between them, is found by running
    the network once without arithmetic, on the meta device. The outputs agree to rounding.

    Args:
        net: A network of the zoo; it is not changed.
        size: Side of the pictures, in pixels, where it is not the model's own.

    Returns:
        A copy in evaluation mode, for inference alone: it can't be trained as before.

    Raises:
        ValueError: The network is not of the zoo.
    """
    name = getattr(net, "zoo_name", None)
    if not isinstance(name, str):
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; build it with create(name)")
    fused = copy.deepcopy(net).eval()
    side = entry(name).preprocessing.size if size is None else size
    for convolution, norm in _pairs(fused, side, getattr(net, "zoo_in_channels", 3)):
        _fold(fused, convolution, norm)
    return fused


class _Trace(TorchFunctionMode):
    """Notes which batch normalisation takes what a convolution gave, and how often anything else does."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # alive until the end, so that no id comes twice
        self.made_by: dict[int, list[int]] = {}  # weight of a convolution -> its outputs
        self.uses: dict[int, int] = {}  # a tensor -> calls that take it and give tensors
        self.normalised: dict[int, list[int]] = {}  # a running mean -> what was normalised with it

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((*args, *kwargs.values()))
        output = func(*args, **kwargs)
        if not _tensors((output,)):
            return output  # it asked for the shape, or the like
        for tensor in given:
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        self.kept += given
        if func in (F.conv2d, torch.conv2d):
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            self.made_by.setdefault(id(weight), []).append(id(output))
            self.kept.append(output)
        elif func is F.batch_norm:
            mean = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
            self.normalised.setdefault(id(mean), []).append(id(given[0]))
        return output


def _pairs(net: nn.Module, size: int, in_channels: int) -> list[tuple[str, str]]:
    """Names of convolutions and of the normalisations that alone take what they give."""
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    }
    trace = _Trace()
    with torch.no_grad(), trace:
        torch.func.functional_call(net, tensors, (torch.empty(1, in_channels, size, size, device="meta"),))
    outputs = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            made = trace.made_by.get(id(tensors[f"{name}.weight"]), [])
            if len(made) == 1:
                outputs[made[0]] = name
    pairs = []
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            taken = trace.normalised.get(id(tensors[f"{name}.running_mean"]), [])
            if len(taken) == 1 and taken[0] in outputs and trace.uses[taken[0]] == 1:
                pairs.append((outputs[taken[0]], name))
    return pairs


def _fold(net: nn.Module, convolution: str, norm: str) -> None:
    old = net.get_submodule(norm)
    assert isinstance(old, nn.BatchNorm2d)
    _replace(net, convolution, fuse_conv_bn_eval(net.get_submodule(convolution), old))  # type: ignore[type-var]
    # timm's normalisation has an activation inside.
    rest = [getattr(old, name) for name in ("drop", "act") if isinstance(getattr(old, name, None), nn.Module)]
    rest = [module for module in rest if not isinstance(module, nn.Identity)]
    _replace(net, norm, nn.Sequential(*rest).eval() if rest else nn.Identity())


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
