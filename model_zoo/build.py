"""Networks from their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import builders, checkpoints, lookup
from . import weights as weight_files
from .cards import Entry, Weights
from .families import FAMILIES
from .heads import name_head


def create(
    name: str,
    pretrained: bool | str = False,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a network. Its classifier is `net.fc`, to be read and assigned, on every model.

    Args:
        name: One of `list_models()`, or `timm/` and the name of any model of timm, with or without a tag.
        pretrained: True for the default weights, or the tag of a pinned set (`info(name).weights`).
        num_classes: Outputs; with weights for 1000 and another number here the classifier starts afresh.
        in_channels: Channels of the pictures. With weights, those of the first convolution are summed for one channel
            and repeated for more than three.
        weights: A file with a state_dict of this network, instead of `pretrained`: `.safetensors`, or torch's own
            without pickled code. Files of pretrained-models.pytorch are taken, too. The bare name of a file is looked
            for in the caches as well.

    Returns:
        A plain torchvision or timm module in training mode: pictures [N, in_channels, H, W] in, logits
        [N, num_classes] out. It has `zoo_name`, `zoo_weights` (the tag, or None) and `classes` (the names of the
        outputs where they are ImageNet's, else None; assigning `fc` clears them, and they may be assigned).

    Raises:
        TypeError: A name or tag that is no string.
        ValueError: An unknown name or tag, a number that is not positive, a file of another model or class count, or
            one that needs unpickling.
        FileNotFoundError: The file is not there.
        WeightsError: The weights could not be had.
        ModuleNotFoundError: The model needs the extra `cadene`.
    """
    entry = lookup.entry(name)
    _check_count("num_classes", num_classes)
    _check_count("in_channels", in_channels)
    if weights is not None and pretrained is not False:
        raise ValueError("weights: give either a file here or pretrained, not both")
    chosen = lookup.pinned(entry, pretrained)
    if chosen is not None:
        weight_files.warn_of_licence(entry, chosen)
        path = weight_files.locate(entry, chosen)
    elif weights is not None:
        path = weight_files.named_file(weights)
    else:
        path = None
    state = None if path is None else checkpoints.read_state(path)
    if name.startswith(lookup.TIMM):
        net, with_head = _any_of_timm(entry, chosen, state, path, num_classes, in_channels)
    else:
        net, with_head = _of_the_list(entry, state, path, num_classes, in_channels)
    facts: dict[str, Any] = {
        "zoo_name": name,
        "zoo_weights": None if chosen is None else chosen.tag,
        "zoo_in_channels": in_channels,
        "classes": imagenet_classes() if chosen is not None and with_head and num_classes == 1000 else None,
    }
    vars(net).update(facts)
    return net


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet-1k's thousand classes, in the order of the outputs."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _of_the_list(
    entry: Entry, state: dict[str, Tensor] | None, path: Path | None, num_classes: int, in_channels: int
) -> tuple[nn.Module, bool]:
    net = name_head(builders.build(entry.builder, num_classes), FAMILIES[entry.family].head)
    if state is None or path is None:
        builders.set_in_channels(net, in_channels)
        return net, False
    if builders.channels_of(net, state) == in_channels:
        builders.set_in_channels(net, in_channels)  # the file is of a network with these channels
    with_head = checkpoints.load_state(net, state, entry.family, path)
    builders.set_in_channels(net, in_channels)
    return net, with_head


def _any_of_timm(
    entry: Entry,
    chosen: Weights | None,
    state: dict[str, Tensor] | None,
    path: Path | None,
    num_classes: int,
    in_channels: int,
) -> tuple[nn.Module, bool]:
    import timm

    model = entry.builder.split(":")[1]
    if chosen is None or state is None:
        net: Any = timm.create_model(model, pretrained=False, num_classes=num_classes)
    else:
        # timm itself knows how to fit its files; it is given the tensors, so that it opens neither file nor socket.
        net = timm.create_model(
            f"{model}.{chosen.tag}",
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay={"state_dict": state},
        )
    head = net.pretrained_cfg.get("classifier")
    if not isinstance(head, str):
        raise ValueError(
            f"model: {entry.name} has {'no classifier' if head is None else 'several classifiers'} to name"
        )
    net = name_head(net, head)
    if chosen is None and state is not None and path is not None:
        checkpoints.load_state(net, state, entry.family, path)
    builders.set_in_channels(net, in_channels)
    return net, chosen is not None and chosen.classes == num_classes


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; give an integer of at least 1")
