"""Networks from their names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from model_zoo.entries import ENTRIES, Entry, Weights
from model_zoo.heads import name_head
from model_zoo.weights import find, load_state, read_state

IMAGENET_CLASSES = 1000


def list_models(pattern: str = "*") -> list[str]:
    """The names in the zoo that match a shell pattern, such as `"resnext*"`."""
    return fnmatch.filter(ENTRIES, pattern)


def info(name: str) -> Entry:
    """The card of a model: builder, weights with licence and accuracy, input.

    Raises:
        ValueError: The name is unknown; the closest ones are offered.
    """
    if name not in ENTRIES:
        raise ValueError(f"model: got {name!r}; {_closest(name, ENTRIES)}there are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def create(
    name: str,
    pretrained: bool | str = False,
    *,
    num_classes: int = IMAGENET_CLASSES,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a network. Its classifier is `net.fc`, to be read and assigned, on every model.

    Args:
        name: One of `list_models()`.
        pretrained: True for the default weights, or the tag of a pinned set (`info(name).tags`). Where the file is
            looked for, and which environment variables say so, is told in `model_zoo.weights`.
        num_classes: How many outputs. With weights of 1000 classes and another number here, the classifier alone
            starts afresh.
        weights: A file with a state_dict of this network, `.safetensors` or torch's own, to be loaded in place of
            looking for one. It is yours, so its hash is not checked; code in it is never run.

    Returns:
        A torchvision or timm module, in training mode, on the default device. It takes pictures
        [batch, 3, height, width], as `preprocess(net)` makes them, and gives logits [batch, num_classes]. It has two
        attributes more, `zoo_name` and `zoo_weights` (the tag, or None).

    Raises:
        ValueError: An unknown name or tag; a file of another model.
        FileNotFoundError: `weights` is not there.
        WeightsError: The pinned weights could not be had, or have the wrong hash.
    """
    entry = info(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes!r}; give an integer of at least 1")
    pinned = _pinned(entry, pretrained)
    if weights is not None:
        net = _loaded(entry, Path(weights).expanduser(), num_classes)
    elif pinned is not None:
        net = _loaded(entry, find(entry, pinned), num_classes)
    else:
        net = _built(entry, num_classes)
    vars(net).update(zoo_name=name, zoo_weights=None if pinned is None else pinned.tag)
    return net


def freeze(net: nn.Module) -> nn.Module:
    """Train the classifier alone: `requires_grad` is set on `net.fc` and cleared everywhere else.

    In training mode batch normalisation still follows the data with its running mean and variance, which are no
    parameters.

    Args:
        net: A network of the zoo, or another with a module `fc`; changed in place.

    Returns:
        The network.

    Raises:
        ValueError: The network has no module `fc`.
    """
    head = getattr(net, "fc", None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"net: got a {type(net).__name__} without a classifier `fc`; give a network of the zoo")
    net.requires_grad_(False)
    head.requires_grad_(True)
    return net


def unfreeze(net: nn.Module) -> nn.Module:
    """Train everything: `requires_grad` is set on all parameters. Returns the network."""
    return net.requires_grad_(True)


def _pinned(entry: Entry, pretrained: bool | str) -> Weights | None:
    if isinstance(pretrained, bool):
        return entry.weights[0] if pretrained else None
    for weights in entry.weights:
        if weights.tag == pretrained:
            return weights
    hint = _closest(pretrained, entry.tags)
    raise ValueError(f"pretrained: got {pretrained!r}; {hint}{entry.name} has {', '.join(entry.tags)}")


def _built(entry: Entry, num_classes: int) -> nn.Module:
    source, name = entry.builder.split(":")
    net: nn.Module
    if source == "torchvision":
        import torchvision

        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        import timm

        net = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return name_head(net, entry.head)


def _loaded(entry: Entry, path: Path, num_classes: int) -> nn.Module:
    state = read_state(path)
    in_order = any(file.in_order and file.name == path.name for weights in entry.weights for file in weights.files)
    # The classifier comes last in every network of the zoo, whatever the file calls it.
    bias = state.get(f"{entry.head}.bias", list(state.values())[-1])
    has_imagenet_classes = bias.shape == (IMAGENET_CLASSES,)
    net = _built(entry, IMAGENET_CLASSES if has_imagenet_classes else num_classes)
    load_state(net, state, path, in_order=in_order)
    if has_imagenet_classes and num_classes != IMAGENET_CLASSES:
        head: Any = net.fc
        net.fc = nn.Linear(head.in_features, num_classes)
    return net


def _closest(name: Any, names: Iterable[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(by_lower[match]) for match in near)}? " if near else ""
