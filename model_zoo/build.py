"""Networks from their names."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from model_zoo import weights as weight_files
from model_zoo.entries import ENTRIES, Entry, Weights
from model_zoo.heads import name_head


def list_models(pattern: str = "*") -> list[str]:
    """The names in the zoo that match a shell pattern, such as `"resnext*"`."""
    return fnmatch.filter(ENTRIES, pattern)


def info(name: str) -> Entry:
    """The card of a model: builder, weights with licence and accuracy, input.

    Raises:
        ValueError: The name is unknown; the closest ones are offered.
    """
    if name not in ENTRIES:
        near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(match) for match in near)}? " if near else ""
        raise ValueError(f"model: got {name!r}; {hint}There are: {', '.join(ENTRIES)}")
    return ENTRIES[name]


def create(
    name: str,
    pretrained: bool | str = False,
    *,
    num_classes: int = 1000,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a network. Its classifier is `net.fc`, to be read and assigned, on every model.

    Args:
        name: One of `list_models()`.
        pretrained: True for the default weights, or the tag of a pinned set (`info(name).weights`).
        num_classes: Outputs; with weights for 1000 and another number here the classifier starts afresh.
        weights: A file with a state_dict of this network, instead of `pretrained`.

    Returns:
        A plain torchvision or timm module, in training mode, with `zoo_name` and `zoo_weights` set.

    Raises:
        ValueError: An unknown name or tag; a file of another model.
        WeightsError: The weights could not be had.
    """
    entry = info(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes!r}; give an integer of at least 1")
    if weights is not None and pretrained:
        raise ValueError("weights: give either a file here or pretrained, not both")
    pinned = _pinned(entry, pretrained)
    net = name_head(_build(entry, 1000 if pinned is not None else num_classes), entry.head)
    if weights is not None:
        weight_files.load_file(net, weights)
    elif pinned is not None:
        weight_files.load(net, entry, pinned)
        if num_classes != 1000:
            head: Any = net.fc
            net.fc = nn.Linear(head.in_features, num_classes)
    net.zoo_name = name  # type: ignore[assignment]
    net.zoo_weights = None if pinned is None else pinned.tag  # type: ignore[assignment]
    return net


def freeze(net: nn.Module) -> nn.Module:
    """Train the classifier alone: `requires_grad` is set on `net.fc` and cleared everywhere else."""
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
    return net


def unfreeze(net: nn.Module) -> nn.Module:
    """Train everything."""
    return net.requires_grad_(True)


def _pinned(entry: Entry, pretrained: bool | str) -> Weights | None:
    if isinstance(pretrained, bool):
        return entry.weights[0] if pretrained else None
    tags = {weights.tag: weights for weights in entry.weights}
    if pretrained not in tags:
        raise ValueError(f"pretrained: got {pretrained!r}; {entry.name} has {', '.join(tags)}")
    return tags[pretrained]


def _build(entry: Entry, num_classes: int) -> nn.Module:
    source, name = entry.builder.split(":")
    if source == "torchvision":
        import torchvision

        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        import timm

        net = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return net
