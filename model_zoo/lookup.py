"""Which models there are, and what is known of each."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import math
import re
from typing import Any

import torch
from torch import nn

from .builders import build
from .cards import Entry, Preprocessing, WeightFile, Weights
from .catalogue import ENTRIES

TIMM = "timm/"


def list_models(pattern: str = "*", *, pretrained: bool = False, licence: str | None = None) -> list[str]:
    """The names in the zoo.

    Args:
        pattern: A shell pattern, such as `"resnext*"`. One that begins with `timm/` lists timm's models.
        pretrained: Only models that have weights (with timm: weights that can be fetched).
        licence: `"commercial"` for models whose default weights allow commercial use as far as the licence's name
            tells, or the name of a licence, such as `"Apache-2.0"`, that the default weights must have.

    Raises:
        ValueError: No model has a licence of that name; the known ones are listed.
    """
    if pattern.startswith(TIMM):
        import timm

        found = [f"{TIMM}{name}" for name in timm.list_models(pattern[len(TIMM) :], pretrained=pretrained)]
        entries = {name: entry(name) for name in found} if licence is not None else dict.fromkeys(found)
    else:
        entries = {name: ENTRIES[name] for name in fnmatch.filter(ENTRIES, pattern)}
    if licence is not None:
        known = sorted({weights.licence for card in ENTRIES.values() for weights in card.weights})
        if licence != "commercial" and licence not in known and not pattern.startswith(TIMM):
            raise ValueError(f"licence: got {licence!r}; give 'commercial' or one of {', '.join(known)}")
    return [
        name
        for name, card in entries.items()
        if (not pretrained or card is None or card.weights) and (licence is None or _allows(card, licence))
    ]


def info(name: str) -> Entry:
    """The card of a model: size, cost, weights with licence and accuracy, input; `print` shows it.

    Args:
        name: One of `list_models()`, or `timm/` and the name of any model of timm; its parameters and GMACs are counted
            on the spot.

    Raises:
        TypeError: The name is not a string.
        ValueError: The name is unknown; the closest ones are offered.
    """
    card = entry(name)
    if card.parameters:
        return card
    with torch.device("meta"):
        net = build(card.builder, 1000)
    parameters, gmacs = count(net, card.preprocessing.size)
    return dataclasses.replace(card, parameters=parameters, gmacs=gmacs)


def entry(name: str) -> Entry:
    """As `info`, without counting anything."""
    if not isinstance(name, str):
        raise TypeError(f"model: got {name!r}; give a name, such as 'resnet50'")
    if name in ENTRIES:
        return ENTRIES[name]
    if name.startswith(TIMM):
        return _of_timm(name)
    near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in near)}? " if near else ""
    raise ValueError(
        f"model: got {name!r}; {hint}list_models() has all {len(ENTRIES)} names, and timm/<name> opens the rest of timm"
    )


def pinned(card: Entry, pretrained: bool | str) -> Weights | None:
    """The set of weights that `pretrained` means.

    Raises:
        TypeError: It is neither a bool nor a string.
        ValueError: The model has no such set.
    """
    if not isinstance(pretrained, bool | str):
        raise TypeError(f"pretrained: got {pretrained!r}; give True, False or the tag of a set of weights")
    if pretrained is False:
        return None
    if not card.weights:
        raise ValueError(f"pretrained: nobody has published weights for {card.name}; give pretrained=False")
    if pretrained is True:
        return card.weights[0]
    for weights in card.weights:
        if weights.tag == pretrained:
            return weights
    tags = [weights.tag for weights in card.weights]
    near = difflib.get_close_matches(str(pretrained), tags, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"pretrained: got {pretrained!r}; {hint}{card.name} has {', '.join(tags)}")


def count(net: nn.Module, size: int, in_channels: int = 3) -> tuple[int, float]:
    """Parameters, and GMACs for one picture; for a network on the meta device, where counting costs no arithmetic."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, in_channels, size, size, device="meta"))
    return sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() / 2e9


def _allows(card: Entry | None, licence: str) -> bool:
    if card is None or not card.weights:
        return False
    default = card.weights[0]
    return default.commercial if licence == "commercial" else default.licence == licence


@functools.cache
def _of_timm(name: str) -> Entry:
    import timm
    from timm.models import get_pretrained_cfg

    full = name[len(TIMM) :]
    model, _, tag = full.partition(".")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(TIMM + match) for match in near)}? " if near else ""
        raise ValueError(f"model: got {name!r}; {hint}timm has {len(timm.list_models())} models")
    tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{model}.*")]
    default = str(getattr(get_pretrained_cfg(model), "tag", "") or "")
    if tag and tag not in tags:
        raise ValueError(f"model: got {name!r}; timm has weights {', '.join(tags) or 'of no tag'} for {model}")
    first = tag or default
    ordered = sorted(tags, key=lambda other: (other != first, tags.index(other)))
    weights = tuple(
        _weights_of_timm(model, other, config)
        for other in ordered
        if (config := get_pretrained_cfg(f"{model}.{other}")) is not None and config.num_classes
    )
    return Entry(name, f"timm:{model}", "", 0, 0.0, weights)


def _weights_of_timm(model: str, tag: str, config: Any) -> Weights:
    url, hub = config.url or "", config.hf_hub_id or ""
    files = []
    digits = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)$", url)
    if digits is not None:
        files.append(WeightFile(url.rsplit("/", 1)[-1], url, digits[1]))
    if hub:
        address = f"https://huggingface.co/{hub}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
        files.append(WeightFile(f"{hub.rsplit('/', 1)[-1]}.safetensors", address, hub=hub))
    if not files and url.endswith((".pth", ".pt", ".safetensors")):
        files.append(WeightFile(url.rsplit("/", 1)[-1], url))
    size = int(config.input_size[-1])
    return Weights(
        tag,
        tuple(files),
        config.license or "unknown",
        preprocessing=Preprocessing(
            size,
            math.floor(size / config.crop_pct),
            config.interpolation,
            tuple(config.mean),
            tuple(config.std),
        ),
        classes=config.num_classes,
    )
