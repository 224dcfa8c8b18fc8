"""The networks as torchvision, timm and pretrainedmodels define them, with random weights."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

COLOURS = 3  # the number of channels for which all weights are published


def build(builder: str, num_classes: int) -> nn.Module:
    """Build a network.

    Args:
        builder: `torchvision:<name>`, `timm:<name>` or `cadene:<name>`.
        num_classes: Number of outputs.

    Raises:
        ModuleNotFoundError: The library that defines the network is not installed. The message says what to install.
    """
    source, name = builder.split(":")
    if source == "torchvision":
        return _of_torchvision(name, num_classes)
    if source == "timm":
        import timm

        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return exclude_padding(net) if name == "nasnetalarge" else net
    return _of_cadene(name, num_classes)


def set_in_channels(net: nn.Module, in_channels: int) -> None:
    """Change the number of input channels of the first convolution, and keep its weights as far as possible.

    For one channel, the kernels of the three colours are summed, so that a grey image gives the same output as before.
    For more channels, the kernels are repeated and scaled by 3 / in_channels, so that outputs keep their scale.
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
    """The number of input channels of the network of a state_dict; None if its names are not those of `net`."""
    weight = state.get(f"{_first_convolution(net)}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def check_first_layers(net: Any, name: str, in_channels: int) -> None:
    """Raise unless weights for three channels can be fitted to a network of timm with another number of channels.

    Raises:
        ValueError: The weights can't be fitted, so timm would leave random values in the first layer.
    """
    if in_channels == COLOURS:
        return
    layers = [net.get_submodule(layer) for layer in first_layer_names(net)]
    # If a stem treats blocks of pixels as channels, it has more channels than the image. timm can only sum them.
    unfit = [
        layer
        for layer in layers
        if not isinstance(layer, nn.Conv2d) or (in_channels != 1 and layer.in_channels != in_channels)
    ]
    if unfit:
        raise ValueError(
            f"in_channels: got {in_channels}, but weights for {COLOURS} channels can't be fitted to the first layer of "
            f"{name}, {unfit[0]}; give pretrained=False, or images with 3 channels"
        )


def fit_first_layers(net: Any, state: dict[str, Tensor], name: str, in_channels: int) -> dict[str, Tensor]:
    """The tensors of a file. Those of the first layers are fitted to the number of channels of a network of timm.

    Raises:
        ValueError: The tensors can't be fitted.
    """
    from timm.models import adapt_input_conv

    names = first_layer_names(net)
    unlike = [
        f"{layer}.weight"
        for layer in names
        if f"{layer}.weight" in state and state[f"{layer}.weight"].shape != net.get_submodule(layer).weight.shape
    ]
    if not unlike:
        return state
    check_first_layers(net, name, in_channels)
    return state | {weight: adapt_input_conv(in_channels, state[weight]) for weight in unlike}


def first_layer_names(net: Any) -> tuple[str, ...]:
    """The layers that take the image, from timm's card of the model. There may be several; empty if unknown."""
    names = net.pretrained_cfg.get("first_conv") or ()
    return (names,) if isinstance(names, str) else tuple(names)


class AveragePoolWithoutPadding(nn.Module):
    """Average pooling that does not count the padding, as in the original NASNet."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps: Tensor) -> Tensor:
        """Pool [N, C, H, W]."""
        share: Tensor = self.pool(torch.ones_like(maps[:1, :1]))  # the part of each window that is no padding
        pooled: Tensor = self.pool(maps)
        return pooled / share


def exclude_padding(net: nn.Module) -> nn.Module:
    """Replace the pools of timm's NASNet, which count the padding as pixels. The original NASNet does not."""
    from timm.layers.pool2d_same import AvgPool2dSame

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AvgPool2dSame):
                setattr(parent, name, AveragePoolWithoutPadding(child))
    return net


def _first_convolution(net: nn.Module) -> str:
    name: str = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    return name


def _of_torchvision(name: str, num_classes: int) -> nn.Module:
    import torchvision

    # Without its auxiliary classifier, Inception v3 also returns one tensor in training mode.
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name == "inception_v3" else {}
    device = torch.empty(0).device  # get_default_device of torch 2.6 ignores a device that is set by a context
    # RegNet computes its widths with tensors, which have no values on the meta device.
    on_cpu = name.startswith("regnet") and device.type == "meta"
    with torch.device("cpu") if on_cpu else contextlib.nullcontext():
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return net.to(device) if on_cpu else net


def _of_cadene(name: str, num_classes: int) -> nn.Module:
    try:
        with warnings.catch_warnings(), torch.device("cpu"):  # importing this package builds some networks
            warnings.simplefilter("ignore")  # deprecations in a package of 2018, which the user can't fix
            models = importlib.import_module("pretrainedmodels")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is defined by the package pretrainedmodels, but the module {error.name!r} is missing; "
            'pip install "mxtorch[cadene]"',
            name=error.name,
        ) from error
    net: nn.Module = getattr(models, name)(num_classes=num_classes, pretrained=None)
    # The original pools before the classifier fit only one input size. Adaptive pools fit any size.
    for pool in ("avgpool", "avg_pool", "global_pool"):
        if hasattr(net, pool):
            setattr(net, pool, nn.AdaptiveAvgPool2d(1))
    return net
