"""The models of the zoo, and the description of each."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
import re
from typing import Any, Literal

import torch
from torch import nn

from ._checks import did_you_mean, name_of, positive_integer
from .builders import build
from .cards import Entry, WeightFile, Weights
from .catalogue import ENTRIES
from .catalogue.hashes import WHOLE
from .catalogue.names import ModelName, WeightTag
from .preprocessing import Preprocessing

TIMM = "timm/"


def list_models(
    pattern: str = "*", *, pretrained: bool = False, licence: Literal["commercial"] | str | None = None
) -> list[str]:
    """The names of the models in the zoo.

    Args:
        pattern: A shell pattern, such as `"resnext*"`. A pattern that starts with `timm/` lists timm's models.
        pretrained: Whether to list only models that have weights (for timm: weights that can be downloaded).
        licence: `"commercial"` for models whose default weights allow commercial use, judged by the name of the
            licence; or the name of a licence that the default weights must have, such as `"Apache-2.0"`.

    Raises:
        ValueError: No model has a licence of this name. The message lists the known names.

    Example:
        >>> from mxtorch import model_zoo
        >>> model_zoo.list_models("resnext*")
        ['resnext50_32x4d', 'resnext101_64x4d', 'resnext101_32x4d']
        >>> len(model_zoo.list_models(licence="commercial"))
        62
    """
    if pattern.startswith(TIMM):
        import timm

        found = [f"{TIMM}{name}" for name in timm.list_models(pattern[len(TIMM) :], pretrained=pretrained)]
        if licence is None:
            return found  # the cards are not needed, and each costs a look-up
        entries = [entry(name) for name in found]
    else:
        entries = [ENTRIES[name] for name in fnmatch.filter(ENTRIES, pattern)]
        known = sorted({weights.licence for card in ENTRIES.values() for weights in card.weights})
        if licence is not None and licence not in ("commercial", *known):
            raise ValueError(f"licence: got {licence!r}; give 'commercial' or one of {', '.join(known)}")
    return [card.name for card in entries if (card.weights or not pretrained) and _allows(card, licence)]


def info(name: ModelName | str) -> Entry:
    """The card of a model: parameters, cost, input, and weights with licence and accuracy. `print` shows it.

    Args:
        name: A name of `list_models()`, or `timm/` and the name of any model of timm. For a model of timm, this call
            counts parameters and GMACs.

    Raises:
        TypeError: The name is not a string.
        ValueError: The name is unknown. The message has the closest names.

    Example:
        >>> from mxtorch import model_zoo
        >>> card = model_zoo.info("resnet18")
        >>> print(card)
        resnet18: 11.69 M parameters, 1.81 GMACs at 224 x 224 pixels
          defined by torchvision, resnet18
          IMAGENET1K_V1: BSD-3-Clause, top-1 69.76 % (torchvision)
            https://download.pytorch.org/models/resnet18-f37072fd.pth (sha256 pinned)
        >>> card.weights[0].commercial
        True
    """
    card = entry(name)
    if card.parameters:
        return card
    from torch.utils.flop_counter import FlopCounterMode

    size = card.preprocessing.size
    with torch.device("meta"):  # where nothing is computed
        net = build(card.builder, 1000).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, size, size))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return dataclasses.replace(card, parameters=parameters, gmacs=counter.get_total_flops() / 2e9)


def preprocess(net: nn.Module | ModelName | str, *, train: bool = False, size: int | None = None) -> Any:
    """The transforms with which a model's weights were trained.

    Args:
        net: A network of the zoo, or the name of a model, which means its default weights.
        train: Whether to use random crop and horizontal flip, in place of resize and centre crop.
        size: The side of the input in pixels; None means the model's own size.

    Returns:
        A `torchvision.transforms.v2.Compose`: PIL image in, normalised float32 tensor [C, size, size] out. C is the
        number of input channels of the network. For one channel, the image becomes grey.

    Raises:
        ValueError: The zoo did not build the network, the network takes neither one nor three channels, or the size is
            not a positive integer.

    Example:
        >>> from PIL import Image
        >>> from mxtorch import model_zoo
        >>> transform = model_zoo.preprocess("inceptionv4")
        >>> transform(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 299, 299])
    """
    card = entry(net if isinstance(net, str) else name_of(net))
    tag, channels = getattr(net, "zoo_weights", None), getattr(net, "zoo_in_channels", 3)
    made_for = next((weights.preprocessing for weights in card.weights if weights.tag == tag), card.preprocessing)
    if channels not in (1, 3):
        raise ValueError(
            f"net: got a network of {channels} channels, but images have 1 or 3; write the transforms yourself"
        )
    if size is not None:
        size = positive_integer("size", size)
        made_for = dataclasses.replace(made_for, size=size, resize=round(size * made_for.resize / made_for.size))
    return made_for.transforms(train=train, channels=channels)


def entry(name: ModelName | str) -> Entry:
    """The same as `info`, without counting anything."""
    if not isinstance(name, str):
        raise TypeError(f"model: got {name!r}; give a name such as 'resnet50'")
    if name in ENTRIES:
        return ENTRIES[name]
    if name.startswith(TIMM):
        return _of_timm(name)
    raise ValueError(
        f"model: got {name!r}; {did_you_mean(name, ENTRIES)}Give one of the {len(ENTRIES)} names of list_models(), or "
        "timm/<name> for any model of timm"
    )


def pinned(card: Entry, pretrained: bool | WeightTag | str) -> Weights | None:
    """The set of weights for the value of an argument `pretrained`; None for False.

    Raises:
        TypeError: The value is neither a bool nor a string.
        ValueError: The model has no such set.
    """
    if not isinstance(pretrained, bool | str):
        raise TypeError(f"pretrained: got {pretrained!r}; give True, False or the tag of a set of weights")
    if pretrained is False:
        return None
    if not card.weights:
        raise ValueError(f"pretrained: there are no published weights for {card.name}; give pretrained=False")
    if pretrained is True:
        return card.weights[0]
    sets = {weights.tag: weights for weights in card.weights}
    if pretrained not in sets:
        hint = did_you_mean(pretrained, sets, most=1)
        raise ValueError(f"pretrained: got {pretrained!r}; {hint}{card.name} has {', '.join(sets)}")
    return sets[pretrained]


def _allows(card: Entry, licence: str | None) -> bool:
    if licence is None or not card.weights:
        return licence is None
    default = card.weights[0]
    return default.commercial if licence == "commercial" else default.licence == licence


@functools.cache
def _of_timm(name: str) -> Entry:
    import timm
    from timm.models import get_pretrained_cfg

    full = name[len(TIMM) :]
    model, _, tag = full.partition(".")
    if not timm.is_model(model):
        known = timm.list_models()
        hint = did_you_mean(name, (TIMM + other for other in known))
        raise ValueError(f"model: got {name!r}; {hint}timm has {len(known)} models")
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
    file, files = url.rsplit("/", 1)[-1], []
    digits = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)$", file)
    if digits is not None or (not hub and file.endswith((".pth", ".pt", ".safetensors"))):
        files.append(WeightFile(file, url, WHOLE.get(file) or ("" if digits is None else digits[1])))
    if hub:
        address = f"https://huggingface.co/{hub}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
        name = f"{hub.rsplit('/', 1)[-1]}.safetensors"
        whole = WHOLE.get(name, "") if hub.startswith("timm/") and address.endswith("/model.safetensors") else ""
        files.append(WeightFile(name, address, whole, hub))
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
            crop_mode=config.crop_mode or "center",
        ),
        classes=config.num_classes,
    )
