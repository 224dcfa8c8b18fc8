"""Five groups of layers, for freezing and for a rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from model_zoo.catalogue import ENTRIES
from model_zoo.families import FAMILIES, GROUPS, covers

_NORMS = (nn.modules.batchnorm._NormBase,)


def groups(net: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters by layer group, from the input to the output.

    `stem` is the first layers, `low` reaches to a stride of 8, `mid` to 16, `high` to 32 with whatever stands before
    the classifier, `head` is the classifier. Transformers and networks of timm outside the list are cut into thirds by
    depth between stem and head.

    Args:
        net: A network of the zoo.

    Returns:
        `stem`, `low`, `mid`, `high` and `head`, each with parameters by their names in the network: every parameter
        is in exactly one.

    Raises:
        ValueError: The network is not of the zoo.
    """
    parameters = dict(net.named_parameters())
    found: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, group in group_names(net).items():
        found[group][name] = parameters[name]
    return found


def freeze_to(net: nn.Module, group: str) -> nn.Module:
    """Train a group and those after it; freeze those before it.

    Frozen parameters have `requires_grad` cleared, the others have it set. Batch normalisation in a frozen group is in
    evaluation mode from now on, also after `net.train()`: its running statistics are part of what is frozen.

    Args:
        net: A network of the zoo.
        group: `stem` (everything is trained), `low`, `mid`, `high` or `head` (the classifier alone is).

    Returns:
        The network.

    Raises:
        ValueError: An unknown group, or a network that is not of the zoo.
    """
    if group not in GROUPS:
        raise ValueError(f"group: got {group!r}; give one of {', '.join(GROUPS)}")
    names = group_names(net)
    frozen = set(GROUPS[: GROUPS.index(group)])
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(names[name] not in frozen)
    norms = tuple(
        name
        for name, module in net.named_modules()
        if isinstance(module, _NORMS) and names.get(f"{name}.weight", "head") in frozen
    )
    vars(net)["zoo_frozen_norms"] = norms
    net.train(net.training)
    return net


def freeze(net: nn.Module) -> nn.Module:
    """Train the classifier alone: `freeze_to(net, "head")`."""
    return freeze_to(net, "head")


def unfreeze(net: nn.Module) -> nn.Module:
    """Train everything: `freeze_to(net, "stem")`."""
    return freeze_to(net, "stem")


def param_groups(net: nn.Module, lr: float, decay: float = 0.3) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, with smaller rates the nearer a layer is to the input.

    Early layers are the most general and need the least change (Howard and Ruder 2018, arXiv 1801.06146, section 3.2).

    Args:
        net: A network of the zoo.
        lr: The rate of the head.
        decay: The rate of a group over that of the next one; with 0.3 the stem has a hundredth of the head's.

    Returns:
        Up to five dictionaries with `params`, `lr` and `name`, from stem to head: for any `torch.optim.Optimizer`.
        Frozen parameters are left out, and so are groups that are wholly frozen.

    Raises:
        ValueError: A rate or decay that is not positive and finite, a decay above 1, nothing to train, or a network
            that is not of the zoo.
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: got {lr!r}; give a finite number above 0")
    if not 0 < decay <= 1:
        raise ValueError(f"decay: got {decay!r}; give a number above 0, at most 1")
    found = [
        {
            "params": [parameter for parameter in members.values() if parameter.requires_grad],
            "lr": lr * decay ** (len(GROUPS) - 1 - index),
            "name": group,
        }
        for index, (group, members) in enumerate(groups(net).items())
    ]
    found = [group for group in found if group["params"]]
    if not found:
        raise ValueError("net: every parameter is frozen; call unfreeze(net) or freeze_to(net, group) first")
    return found


def group_names(net: nn.Module) -> dict[str, str]:
    """The group of every parameter, by its name.

    Raises:
        ValueError: The network is not of the zoo.
    """
    name = getattr(net, "zoo_name", None)
    if name is None:
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; build it with create(name)")
    if name in ENTRIES:
        family = FAMILIES[ENTRIES[name].family]
        return {parameter: family.group_of(parameter) for parameter, _ in net.named_parameters()}
    return _by_depth(net)


def _by_depth(net: Any) -> dict[str, str]:
    """Thirds of the depth that timm's own layer matcher gives, between its first layer and the head."""
    from timm.models import group_parameters

    if not hasattr(net, "group_matcher"):
        raise ValueError(f"net: timm does not say how deep the layers of {net.zoo_name} are; group them yourself")
    head = net._head_name
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    body = {name: int(layer) for name, layer in layers.items() if not covers(head, name)}
    last = max(body.values())
    found = {}
    for name, _ in net.named_parameters():
        layer = body.get(name, 0)
        found[name] = GROUPS[0] if layer == 0 else GROUPS[1 + 3 * (layer - 1) // last]
        if covers(head, name):
            found[name] = "head"
    return found
