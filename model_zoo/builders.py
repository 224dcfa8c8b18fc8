"""The networks themselves, as torchvision, timm and pretrainedmodels define them, with random weights."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

# What a builder is called with so that the network gives one tensor, in training too, without a warning.
OPTIONS: dict[str, dict[str, Any]] = {
    "torchvision:inception_v3": {"aux_logits": False, "init_weights": True},
}


def build(builder: str, num_classes: int) -> nn.Module:
    """Build a network.

    Args:
        builder: `torchvision:<name>`, `timm:<name>` or `cadene:<name>`.
        num_classes: Outputs.

    Raises:
        ModuleNotFoundError: The library that defines it is not installed; the message says what to install.
    """
    source, name = builder.split(":")
    options = OPTIONS.get(builder, {})
    if source == "torchvision":
        return _of_torchvision(name, num_classes, options)
    if source == "timm":
        import timm

        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
        return exclude_padding(net) if name == "nasnetalarge" else net
    return _of_cadene(name, num_classes)


def set_in_channels(net: nn.Module, in_channels: int) -> None:
    """Let the first convolution take another number of channels; what it has learnt is kept.

    For one channel the weights of the three colours are summed, so that a grey picture gives what it gave in colour;
    for more they are repeated in turn and scaled by 3 over the number, so that outputs keep their size.
    """
    first = net.get_submodule(_first_convolution(net))
    assert isinstance(first, nn.Conv2d)
    if first.in_channels == in_channels:
        return
    with torch.no_grad():
        weight = first.weight.detach()
        if in_channels == 1:
            weight = weight.sum(1, keepdim=True)
        else:
            repeats = -(-in_channels // weight.shape[1])
            weight = weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (first.in_channels / in_channels)
    first.weight = nn.Parameter(weight.contiguous())
    first.in_channels = in_channels


def channels_of(net: nn.Module, state: dict[str, Tensor]) -> int | None:
    """How many channels the network of a state_dict takes, as far as it has the names of this one."""
    weight = state.get(f"{_first_convolution(net)}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


class AveragePoolWithoutPadding(nn.Module):
    """Average pooling whose means leave the padding out, as the original NASNet takes them."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps: Tensor) -> Tensor:
        """Pool [N, C, H, W]."""
        share: Tensor = self.pool(torch.ones_like(maps[:1, :1]))  # how much of each window is picture
        pooled: Tensor = self.pool(maps)
        return pooled / share


def exclude_padding(net: nn.Module) -> nn.Module:
    """Replace the pools of timm's NASNet that count padding as pixels; the original does not."""
    from timm.layers.pool2d_same import AvgPool2dSame

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AvgPool2dSame):
                setattr(parent, name, AveragePoolWithoutPadding(child))
    return net


def _first_convolution(net: nn.Module) -> str:
    names: list[str] = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return names[0]


def _of_torchvision(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    if not name.startswith("regnet"):
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
        return net
    # RegNet works its widths out with tensors, which the meta device can't.
    device = torch.empty(0).device  # get_default_device of torch 2.6 does not see a device that is a context
    with torch.device("cpu") if device.type == "meta" else contextlib.nullcontext():
        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return net.to(device)


def _of_cadene(name: str, num_classes: int) -> nn.Module:
    try:
        with warnings.catch_warnings(), torch.device("cpu"):  # some of its networks are made when it is imported
            warnings.simplefilter("ignore")  # it is of 2018; its deprecations are not the user's
            models = importlib.import_module("pretrainedmodels")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is defined by the package pretrainedmodels, which lacks {error.name!r} here: "
            'pip install "mxtorch[cadene]"',
            name=error.name,
        ) from error
    net: nn.Module = getattr(models, name)(num_classes=num_classes, pretrained=None)
    # The pools before the classifier are as large as the maps of the original size; these take any.
    for pool in ("avgpool", "avg_pool", "global_pool"):
        if hasattr(net, pool):
            setattr(net, pool, nn.AdaptiveAvgPool2d(1))
    return net
