"""Five groups of layers, which can be frozen and can have their own learning rates."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ._checks import name_of
from .catalogue import ENTRIES
from .families import FAMILIES, GROUPS, covers

GroupName = Literal["stem", "low", "mid", "high", "head"]


def groups(net: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters by layer group, from the input to the output.

    `stem` has the first layers, `low` ends at a stride of 8, `mid` at 16, `high` at 32. `high` also has all remaining
    layers before the classifier. `head` is the classifier. In transformers, and in networks of timm that are not on the
    list of the zoo, `low`, `mid` and `high` are thirds of the depth.

        >>> import model_zoo
        >>> net = model_zoo.resnet18()
        >>> {group: len(parameters) for group, parameters in model_zoo.groups(net).items()}
        {'stem': 3, 'low': 27, 'mid': 15, 'high': 15, 'head': 2}

    Args:
        net: A network of the zoo.

    Returns:
        `stem`, `low`, `mid`, `high` and `head`, each with its parameters by their names in the network. Every
        parameter is in exactly one group.

    Raises:
        ValueError: The zoo did not build the network.
    """
    parameters = dict(net.named_parameters())
    found: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, group in _group_of_each(net).items():
        found[group][name] = parameters[name]
    return found


def freeze_to(net: nn.Module, group: GroupName) -> nn.Module:
    """Train a group and all later groups; freeze all earlier groups.

    Frozen parameters have `requires_grad=False`, the others `requires_grad=True`. Batch normalisation in a frozen group
    stays in evaluation mode, also after `net.train()`, so that its running statistics do not change.

        >>> import model_zoo
        >>> net = model_zoo.freeze_to(model_zoo.resnet18(), "high").train()
        >>> net.layer3[0].conv1.weight.requires_grad, net.layer4[0].conv1.weight.requires_grad
        (False, True)
        >>> net.layer3[0].bn1.training, net.layer4[0].bn1.training
        (False, True)

    Args:
        net: A network of the zoo.
        group: The first group that is trained: `stem` (the whole network), `low`, `mid`, `high` or `head` (only the
            classifier).

    Returns:
        The network.

    Raises:
        ValueError: The group is unknown, or the zoo did not build the network. Nothing has changed then.
    """
    if group not in GROUPS:
        raise ValueError(f"group: got {group!r}; give one of {', '.join(GROUPS)}")
    group_of = _group_of_each(net)
    frozen = set(GROUPS[: GROUPS.index(group)])
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(group_of[name] not in frozen)
    vars(net)["zoo_frozen_norms"] = tuple(
        name
        for name, module in net.named_modules()
        if isinstance(module, _NormBase) and group_of.get(f"{name}.weight") in frozen
    )
    return net.train(net.training)


def freeze(net: nn.Module) -> nn.Module:
    """Train only the classifier: `freeze_to(net, "head")`.

    Example:
        >>> from mxtorch import model_zoo
        >>> net = model_zoo.resnet18()
        >>> net = model_zoo.freeze(net)
        >>> net.conv1.weight.requires_grad, net.fc.weight.requires_grad
        (False, True)
    """
    return freeze_to(net, "head")


def unfreeze(net: nn.Module) -> nn.Module:
    """Train the whole network: `freeze_to(net, "stem")`."""
    return freeze_to(net, "stem")


def param_groups(net: nn.Module, lr: float, decay: float = 0.3) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer. Layers nearer to the input have smaller rates.

    The first layers are the most general ones and need the smallest changes (Howard and Ruder 2018, arXiv 1801.06146,
    section 3.2).

        >>> import torch, model_zoo
        >>> net = model_zoo.freeze_to(model_zoo.resnet18(), "mid")
        >>> optimizer = torch.optim.SGD(model_zoo.param_groups(net, lr=0.1, decay=0.5), momentum=0.9)
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('mid', 0.025), ('high', 0.05), ('head', 0.1)]

    Args:
        net: A network of the zoo.
        lr: The rate of the head.
        decay: The rate of a group divided by that of the next group. With the default of 0.3, the stem has about a
            hundredth of the head's rate.

    Returns:
        Up to five dictionaries with `params`, `lr` and `name`, from stem to head, for any `torch.optim.Optimizer`.
        Frozen parameters, and groups without trained parameters, are left out.

    Raises:
        ValueError: The rate is not positive and finite, the decay is not in (0, 1], every parameter is frozen, or the
            zoo did not build the network.
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: got {lr!r}; give a finite number above 0")
    if not 0 < decay <= 1:
        raise ValueError(f"decay: got {decay!r}; give a number above 0, at most 1")
    found = []
    for distance, (name, members) in enumerate(reversed(groups(net).items())):
        trained = [parameter for parameter in members.values() if parameter.requires_grad]
        if trained:
            found.append({"params": trained, "lr": lr * decay**distance, "name": name})
    if not found:
        raise ValueError("net: every parameter is frozen; call unfreeze(net) or freeze_to(net, group) first")
    return found[::-1]


def _group_of_each(net: Any) -> dict[str, str]:
    """The group of every parameter, by the parameter's name.

    Raises:
        ValueError: The zoo did not build the network.
    """
    name = name_of(net)
    if name in ENTRIES:
        family = FAMILIES[ENTRIES[name].family]
        return {parameter: family.group_of(parameter) for parameter, _ in net.named_parameters()}
    if not hasattr(net, "group_matcher"):
        raise ValueError(f"net: timm does not say how deep the layers of {name} are; make the groups yourself")
    return _thirds_by_depth(net)


def _thirds_by_depth(net: Any) -> dict[str, str]:
    """The group of every parameter: stem, thirds of the depth, and head. timm says how deep each layer is."""
    from timm.models import group_parameters

    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    depths = {name: int(layer) for name, layer in layers.items() if not covers(net._head_name, name)}
    deepest = max(depths.values())

    def group_of(name: str) -> str:
        if covers(net._head_name, name):
            return "head"
        depth = depths.get(name, 0)
        return "stem" if depth == 0 else GROUPS[1 + 3 * (depth - 1) // deepest]

    return {name: group_of(name) for name, _ in net.named_parameters()}
