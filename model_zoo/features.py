"""What a network sees: its features before the classifier, and its maps at several scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .catalogue import ENTRIES
from .families import FAMILIES, GROUPS, covers
from .heads import head_of


def features(net: nn.Module) -> Features:
    """What goes into the classifier, as a module: pictures [N, C, H, W] in, features [N, k] out.

    `k` is `net.fc.in_features`. The network is shared, not copied: its weights, mode and gradients are the network's
    own, and a change of its head does not matter. Call `eval()` before use as an extractor.

    Args:
        net: A network of the zoo.

    Raises:
        ValueError: The network is not of the zoo.
    """
    _name_of(net)
    return Features(net)


def taps(net: nn.Module) -> Taps:
    """Maps at several scales, as a module: pictures [N, C, H, W] in, a dictionary of four maps [N, c, h, w] out.

    They are what comes out of the groups `stem`, `low`, `mid` and `high` (see `groups`), for most networks at strides
    of 2 or 4, 8, 16 and 32; a ViT has one scale, and its class token is left out. The network is shared, not copied.

    Args:
        net: A network of the zoo.

    Raises:
        ValueError: The network is not of the zoo, or timm does not say where its maps are.
    """
    name = _name_of(net)
    if name not in ENTRIES and not hasattr(net, "forward_intermediates"):
        raise ValueError(
            f"net: timm does not say where the maps of {name} are; take features(net), or hooks of your own"
        )
    return Taps(net)


class Features(nn.Module):
    """See `features`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [N, k] of pictures [N, C, H, W]."""
        seen = _run(self.net, pictures, {"features": ("<", head_of(self.net))})["features"]
        assert isinstance(seen, Tensor)
        return seen.mean((2, 3)) if seen.ndim == 4 else seen


class Taps(nn.Module):
    """See `taps`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Maps [N, c, h, w] of pictures [N, C, H, W], by group."""
        net: Any = self.net
        if net.zoo_name not in ENTRIES:
            maps = net.forward_intermediates(pictures, indices=4, intermediates_only=True, output_fmt="NCHW")
            return dict(zip(GROUPS[-1 - len(maps) : -1], maps, strict=True))
        family = FAMILIES[ENTRIES[net.zoo_name].family]
        where = {group: _find(net, path) for group, path in zip(GROUPS, family.taps, strict=False)}
        return {group: _as_map(out, family.map, net) for group, out in _run(net, pictures, where).items()}


def _name_of(net: nn.Module) -> str:
    name = getattr(net, "zoo_name", None)
    if not isinstance(name, str):
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; build it with create(name)")
    return name


def _find(net: nn.Module, path: str) -> tuple[str, nn.Module]:
    side, path = ("<", path[1:]) if path.startswith("<") else (">", path)
    if path.endswith("*"):
        depth = path.count(".")
        names = [name for name, _ in net.named_modules() if covers(path, name) and name.count(".") == depth]
        path = names[-1]
    return side, net.get_submodule(path)


def _run(net: nn.Module, pictures: Tensor, where: dict[str, tuple[str, nn.Module]]) -> dict[str, Any]:
    """Run the network and keep what goes into (`<`) or comes out of (`>`) some modules."""
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, tuple):  # a dual path
            value = torch.cat(value, 1)
        seen[name] = value.clone()  # what follows may write into it

    handles = []
    try:
        for name, (side, module) in where.items():
            if side == "<":
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _, inputs, name=name: keep(name, inputs[0]),
                        prepend=True,
                    )
                )
            else:
                handles.append(module.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
        net(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _as_map(output: Tensor, kind: str, net: Any) -> Tensor:
    if kind == "NHWC":
        return output.permute(0, 3, 1, 2)
    if kind == "tokens":
        height, width = net.patch_embed.grid_size
        patches = output[:, net.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], height, width)
    return output
