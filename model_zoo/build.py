"""`create`: a network from its name, with or without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import builders, checkpoints, lookup
from . import weights as weight_files
from ._checks import positive_integer
from .cards import Entry, Weights
from .catalogue.names import ModelName, WeightTag
from .families import FAMILIES
from .heads import name_head


def create(
    name: ModelName | str,
    pretrained: bool | WeightTag | str = False,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a network. The classifier of every model is `net.fc`, which can be read and assigned.

    Args:
        name: A name of `list_models()`, or `timm/` and the name of any model of timm, with or without a tag.
        pretrained: True for the default weights, or the tag of a pinned set of weights (see `info(name).weights`).
        num_classes: The number of outputs. If it differs from the 1000 classes of the weights, the classifier has
            random values, and all other layers have the values of the weights.
        in_channels: The number of channels of the images. With weights, the kernels of the first convolution are summed
            for one channel, and repeated and rescaled for more than three channels. In models of timm with several
            first convolutions, all of them are fitted. If the first layer can't be fitted, weights are refused.
        weights: A file with a state_dict of this network, in place of `pretrained`: `.safetensors`, or torch's format
            without pickled code. Files of pretrained-models.pytorch fit, too. A file name without a folder is also
            searched in the caches.

    Returns:
        A torchvision or timm module in training mode: images [N, in_channels, H, W] in, logits [N, num_classes] out.
        It has three additional attributes: `zoo_name`, `zoo_weights` (the tag, or None) and `classes` (the names of the
        outputs if they are those of ImageNet, else None). Assigning `fc` sets `classes` to None; you may assign
        `classes`.

    Raises:
        TypeError: `name` or `pretrained` has a wrong type.
        ValueError: The name or tag is unknown; a number is not a positive integer; the model has no classifier or
            several; the weights can't be fitted to the number of channels; or the file is for another model or another
            number of classes, or can only be read by unpickling.
        FileNotFoundError: The file does not exist.
        WeightsError: The weights are in no cache and could not be downloaded.
        ModuleNotFoundError: The model needs the extra `cadene`.

    Example:
        >>> import torch
        >>> from mxtorch import model_zoo
        >>> net = model_zoo.create("resnet18", num_classes=5, in_channels=1).eval()
        >>> net(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 5])
        >>> model_zoo.create("timm/mobilenetv2_050", num_classes=5).fc
        Linear(in_features=1280, out_features=5, bias=True)
    """
    entry = lookup.entry(name)
    num_classes = positive_integer("num_classes", num_classes)
    in_channels = positive_integer("in_channels", in_channels)
    if weights is not None and pretrained is not False:
        raise ValueError("weights: got a file together with pretrained; give only one of the two")
    chosen = lookup.pinned(entry, pretrained)
    path = None if weights is None else weight_files.named_file(weights)
    if chosen is not None:
        weight_files.warn_of_licence(entry, chosen)
        path = weight_files.locate(entry, chosen)
    state = None if path is None else checkpoints.read_state(path)
    if name.startswith(lookup.TIMM):
        net, with_head = _any_of_timm(entry, chosen, state, path, num_classes, in_channels)
    else:
        net, with_head = _of_the_list(entry, state, path, num_classes, in_channels)
    facts: dict[str, Any] = {
        "zoo_name": name,
        "zoo_weights": None if chosen is None else chosen.tag,
        "zoo_file": "" if path is None else str(path),
        "zoo_in_channels": in_channels,
        "classes": imagenet_classes() if chosen is not None and with_head and num_classes == 1000 else None,
    }
    vars(net).update(facts)
    return net


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 classes of ImageNet-1k, in the order of the outputs.

    Example:
        >>> from mxtorch import model_zoo
        >>> model_zoo.imagenet_classes()[:2]
        ('tench', 'goldfish')
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _of_the_list(
    entry: Entry, state: dict[str, Tensor] | None, path: Path | None, num_classes: int, in_channels: int
) -> tuple[nn.Module, bool]:
    """The network, and whether its classifier has values from the file."""
    net = name_head(builders.build(entry.builder, num_classes), FAMILIES[entry.family].head)
    with_head = False
    if state is not None and path is not None:
        if builders.channels_of(net, state) == in_channels:
            builders.set_in_channels(net, in_channels)  # before loading, because the file has the same channels
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
    """The network, and whether its classifier has values from a pinned set of weights."""
    import timm

    model = entry.builder.split(":")[1]
    card = timm.get_pretrained_cfg(model)
    if in_channels != builders.COLOURS and (card is None or not card.first_conv):
        raise ValueError(f"in_channels: got {in_channels}; {entry.name} takes only images with 3 channels, so give 3")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if chosen is None or state is None:
        net: Any = timm.create_model(model, pretrained=False, **options)
    else:
        # timm fits its own files. It gets the tensors, so that it opens neither a file nor a connection.
        options["pretrained_cfg_overlay"] = {"state_dict": state}
        if in_channels != builders.COLOURS:  # timm would leave random values in a first layer that it can't fit
            random = timm.create_model(model, pretrained=False, **options)
            builders.check_first_layers(random, entry.name, in_channels)
        net = timm.create_model(f"{model}.{chosen.tag}", pretrained=True, **options)
    net = name_head(net, _classifier_of(net, entry.name))
    if chosen is None and state is not None and path is not None:
        checkpoints.load_state(net, builders.fit_first_layers(net, state, entry.name, in_channels), entry.family, path)
    return net, chosen is not None and chosen.classes == num_classes


def _classifier_of(net: Any, name: str) -> str:
    """The path of the classifier of a network of timm.

    Raises:
        ValueError: The network has no classifier, or several.
    """
    head = net.pretrained_cfg.get("classifier")
    if isinstance(head, str):
        try:
            classifier = net.get_submodule(head)
        except AttributeError:  # the network is an encoder, but timm's card describes the whole network
            head = None
        else:
            if not isinstance(classifier, nn.Identity):
                return head
            head = None
    raise ValueError(
        f"model: {name} has {'several classifiers' if head else 'no classifier'}, but the zoo needs exactly one as "
        "net.fc; build this model with timm itself"
    )
