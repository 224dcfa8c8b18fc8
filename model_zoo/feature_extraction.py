"""The input of a network's classifier (its features), and its feature maps at several scales."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import name_of
from .catalogue import ENTRIES
from .families import FAMILIES, GROUPS, covers
from .heads import head_of


def features(net: nn.Module) -> Features:
    """A module that returns the input of the classifier: images [N, C, H, W] in, features [N, k] out.

    `k` is `net.fc.in_features`. The module shares the network and does not copy it, so it has the network's weights,
    mode and gradients. The features do not depend on `net.fc`. To extract features from a data set, call `eval()`
    first.

    Args:
        net: A network of the zoo.

    Raises:
        ValueError: The zoo did not build the network.

    Example:
        >>> import torch
        >>> from mxtorch import model_zoo
        >>> net = model_zoo.resnet18().eval()
        >>> model_zoo.features(net)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512])
    """
    name_of(net)
    return Features(net)


def taps(net: nn.Module) -> Taps:
    """A module that returns feature maps: images [N, C, H, W] in, a dictionary of four maps [N, c, h, w] out.

    The maps are the outputs of the groups `stem`, `low`, `mid` and `high` (see `groups`). For most networks, they have
    strides of 2 or 4, 8, 16 and 32. A ViT has one scale, and its class token is left out. The module shares the network
    and does not copy it.

    Args:
        net: A network of the zoo.

    Raises:
        ValueError: The zoo did not build the network, or timm does not say where its feature maps are.

    Example:
        >>> import torch
        >>> from mxtorch import model_zoo
        >>> maps = model_zoo.taps(model_zoo.resnet18().eval())(torch.zeros(1, 3, 64, 64))
        >>> {group: tuple(tensor.shape) for group, tensor in maps.items()}
        {'stem': (1, 64, 16, 16), 'low': (1, 128, 8, 8), 'mid': (1, 256, 4, 4), 'high': (1, 512, 2, 2)}
    """
    name = name_of(net)
    if name not in ENTRIES and not hasattr(net, "forward_intermediates"):
        raise ValueError(
            f"net: timm does not say where the feature maps of {name} are; use features(net), or forward hooks"
        )
    return Taps(net)


class Features(nn.Module):
    """See `features`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, k] of images [N, C, H, W]."""
        seen = _run(self.net, images, {"features": ("<", head_of(self.net))})["features"]
        assert isinstance(seen, Tensor)
        return seen.mean((2, 3)) if seen.ndim == 4 else seen


class Taps(nn.Module):
    """See `taps`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps [N, c, h, w] of images [N, C, H, W], by group."""
        net: Any = self.net
        if net.zoo_name not in ENTRIES:
            maps = net.forward_intermediates(images, indices=4, intermediates_only=True, output_fmt="NCHW")
            return dict(zip(GROUPS[-1 - len(maps) : -1], maps, strict=True))
        family = FAMILIES[ENTRIES[net.zoo_name].family]
        where = {group: _find(net, path) for group, path in zip(GROUPS, family.taps, strict=False)}
        return {group: _as_map(out, family.map, net) for group, out in _run(net, images, where).items()}


def _find(net: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module of a path of `Family.taps`, and whether its input (`<`) or its output (`>`) is the feature map."""
    side, path = ("<", path[1:]) if path.startswith("<") else (">", path)
    if path.endswith("*"):
        depth = path.count(".")
        names = [name for name, _ in net.named_modules() if covers(path, name) and name.count(".") == depth]
        path = names[-1]
    return side, net.get_submodule(path)


def _run(net: nn.Module, images: Tensor, where: dict[str, tuple[str, nn.Module]]) -> dict[str, Any]:
    """Run the network and return the inputs (`<`) or outputs (`>`) of some modules, by name."""
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, tuple):  # the two paths of a dual path network
            value = torch.cat(value, 1)
        seen[name] = value.clone()  # later modules may change the value in place

    with contextlib.ExitStack() as hooks:
        for name, (side, module) in where.items():
            if side == "<":
                hook = module.register_forward_pre_hook(
                    lambda _, inputs, name=name: keep(name, inputs[0]), prepend=True
                )
            else:
                hook = module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            hooks.enter_context(hook)
        net(images)
    return seen


def _as_map(output: Tensor, kind: str, net: Any) -> Tensor:
    if kind == "NHWC":
        return output.permute(0, 3, 1, 2)
    if kind == "tokens":
        height, width = net.patch_embed.grid_size
        patches = output[:, net.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], height, width)
    return output
