"""Folding of batch normalisation into the convolutions before it: the same outputs in evaluation, in less time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ._checks import name_of, positive_integer
from .lookup import entry


def fuse(net: nn.Module, *, size: int | None = None) -> nn.Module:
    """A copy of a network for inference, with batch normalisation folded into the convolutions before it.

    The network is run once on the meta device, where nothing is computed. The run shows which normalisation follows
    which convolution, and that nothing else uses the tensor between them. The outputs of the copy differ from those of
    the network only by rounding.

    Args:
        net: A network of the zoo; it is not changed.
        size: The side of the images in pixels; None means the model's own size.

    Returns:
        A copy in evaluation mode. It is only for inference, because training the copy differs from training `net`.

    Raises:
        ValueError: The zoo did not build the network, or the size is not a positive integer.

    Example:
        >>> import torch
        >>> from mxtorch import model_zoo
        >>> net = model_zoo.resnet18().eval()
        >>> images = torch.rand(1, 3, 64, 64)
        >>> torch.allclose(model_zoo.fuse(net)(images), net(images), atol=1e-4)
        True
    """
    card = entry(name_of(net))
    side = card.preprocessing.size if size is None else positive_integer("size", size)
    fused = copy.deepcopy(net).eval()
    for convolution, norm in _pairs(fused, side, getattr(net, "zoo_in_channels", 3)):
        _fold(fused, convolution, norm)
    return fused


class _Trace(TorchFunctionMode):
    """Records which batch normalisation takes the output of which convolution, and how often each tensor is used."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # kept alive, because Python gives the id of a deleted object to a new one
        self.made_by: dict[int, list[int]] = {}  # id of a convolution's weight -> ids of its outputs
        self.uses: dict[int, int] = {}  # id of a tensor -> number of calls that take it and return tensors
        self.normalised: dict[int, list[int]] = {}  # id of a running mean -> ids of tensors normalised by it

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        output = func(*args, **kwargs)
        if not _tensors(output):
            return output  # a query, for example of the shape
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
    """The names of convolutions, each with the name of the normalisation that alone uses its output."""
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    }
    trace = _Trace()
    with torch.no_grad(), trace:
        kind = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
        images = torch.empty(1, in_channels, size, size, device="meta", dtype=kind)
        torch.func.functional_call(net, tensors, (images,))
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
    kernel: Any = net.get_submodule(convolution)
    kind = kernel.weight.dtype
    # Statistics may have another precision than the kernels, and folding in half precision would round twice.
    precise = torch.promote_types(kind, torch.float32)
    _replace(net, convolution, fuse_conv_bn_eval(kernel.to(precise), old.to(precise)).to(kind))
    # timm's normalisation layers contain the activation.
    rest = [getattr(old, name) for name in ("drop", "act") if isinstance(getattr(old, name, None), nn.Module)]
    rest = [module for module in rest if not isinstance(module, nn.Identity)]
    _replace(net, norm, nn.Sequential(*rest).eval() if rest else nn.Identity())


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
