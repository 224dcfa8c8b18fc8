"""Layer groups of a network, from its input to its head: what is frozen, and rates that fall towards the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase

from mxtorch._validation import closest
from mxtorch.optim import ScheduledOptim

Layers = dict[str, dict[str, Parameter]]

DEFAULT_DECAY = 0.3
# Layers within a group differ less than groups do.
DEFAULT_LAYER_DECAY = 0.75


def layer_groups(
    model: nn.Module,
    head: str | nn.Module | None = None,
    groups: Mapping[str, Any] | Sequence[Any] | None = None,
) -> Layers:
    """The parameters of a network by group, from the input to the head, which is the last group.

    Args:
        model: A network of the zoo, which has groups and a head, or any other.
        head: The module that is new, or its name; needed for a network that is not of the zoo. What comes before it is
            parted into `low`, `mid` and `high`, thirds by the number of blocks.
        groups: The groups themselves: for each, from the input to the head, the names of its modules or the modules. A
            list, or a dictionary with the groups' names. The last one is the head.

    Raises:
        TypeError: A module is neither a name nor a module.
        ValueError: The head is unknown, has no parameters or has all of them; a module is not in the model; the groups
            leave parameters out, or have one twice.
    """
    if groups is not None:
        found = _given_groups(model, groups)
        if head is not None and set(found[list(found)[-1]]) != set(_below(model, head)):
            raise ValueError("head: it is not the last of groups; give one of the two, or put it last")
    elif head is None:
        found = _zoo_groups(model)
    else:
        found = _groups_before(model, head)
    found = {name: members for name, members in found.items() if members}
    if len(found) < 2:
        raise ValueError("groups: got one group alone; there must be something to freeze before the head")
    return found


def blocks(model: nn.Module) -> list[str]:
    """The building blocks of a network, from the input to the output: its children, and those of `nn.Sequential`s."""
    found = []
    for name, child in model.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child):
            found += [f"{name}.{inner}" for inner in blocks(child)]
        elif any(True for _ in child.parameters()):
            found.append(name)
    return found


def layer_wise_groups(model: nn.Module, lr: float, decay: float = DEFAULT_LAYER_DECAY) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer with a rate for every block, smaller by `decay` the nearer the input.

    Used to fine-tune transformers (Clark et al. 2020, ELECTRA, arXiv 2003.10555, and since). The blocks are timm's own
    layers where the network has them, else those of `blocks`.

    Args:
        model: Any network.
        lr: The rate of the last block, the head.
        decay: The rate of a block over that of the next.

    Returns:
        Groups with `params`, `lr` and `name`, the head first, whose rate is the one that `find_lr` finds.

    Raises:
        ValueError: The rate is not positive, the decay is not in (0, 1], or everything is frozen.
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: got {lr!r}; give a finite number above 0")
    check_decay(decay)
    depths = _depths(model)
    deepest = max(depths.values(), default=0)
    found: dict[int, list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(depths[name], []).append(parameter)
    if not found:
        raise ValueError("model: every parameter is frozen; set requires_grad_(True) on some")
    return [
        {"params": found[depth], "lr": lr * decay ** (deepest - depth), "name": f"layer{depth}"}
        for depth in sorted(found, reverse=True)
    ]


def check_decay(decay: float) -> None:
    """Raise a ValueError unless rates fall, or stay, towards the input."""
    if not 0 < decay <= 1:
        raise ValueError(f"decay: got {decay!r}; give a number above 0, at most 1")


def freeze_all_but_last(model: nn.Module, layers: Layers) -> None:
    """Train the last group alone."""
    _forget_frozen_norms(model)
    last = list(layers)[-1]
    for group, members in layers.items():
        for parameter in members.values():
            parameter.requires_grad_(group == last)


def unfreeze(model: nn.Module, layers: Layers, *, train_norms: bool) -> None:
    """Train every group; without `train_norms` all but the batch normalisation before the head."""
    _forget_frozen_norms(model)
    for members in layers.values():
        for parameter in members.values():
            parameter.requires_grad_(True)
    if train_norms:
        return
    head = {id(parameter) for parameter in layers[list(layers)[-1]].values()}
    for module in model.modules():
        if isinstance(module, _NormBase):
            for parameter in module.parameters():
                parameter.requires_grad_(id(parameter) in head)


@contextlib.contextmanager
def rates_by_layer(optimizer: ScheduledOptim, layers: Layers, decay: float) -> Iterator[None]:
    """Part the optimizer's groups by layer group, the head's first, with falling rates; put them together again after.

    Groups that have rates of their own already stay as they are: somebody has chosen these. Parameters that the
    optimizer lacks, as those that were frozen when it was made, get the settings of its first group.
    """
    optimizer.schedule = None
    before = [(group, list(group["params"]), float(group["lr"])) for group in optimizer.param_groups]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lacking = [p for members in layers.values() for p in members.values() if id(p) not in held]
    given = [dict(group) for group in optimizer.param_groups]
    if lacking:
        given.append({**given[0], "params": lacking})
    if len({float(group["lr"]) for group in given}) == 1:
        optimizer.param_groups[:] = _parted(given, layers, decay)
    elif lacking:
        optimizer.param_groups.append(given[-1])
    try:
        yield
    finally:
        optimizer.schedule = None
        rate = optimizer.learning_rate
        optimizer.param_groups[:] = [group for group, _, _ in before]
        for group, parameters, lr in before:
            group["params"] = parameters
            group["lr"] = rate * lr / before[0][2]
        if lacking:
            optimizer.add_param_group({**given[-1], "params": lacking, "lr": rate})


def _parted(given: list[dict[str, Any]], layers: Layers, decay: float) -> list[dict[str, Any]]:
    parted = []
    left = {id(parameter) for group in given for parameter in group["params"]}
    for distance, (name, members) in enumerate(reversed(layers.items())):
        inside = {id(parameter) for parameter in members.values()}
        left -= inside
        for group in given:
            chosen = [parameter for parameter in group["params"] if id(parameter) in inside]
            if chosen:
                lr = float(group["lr"]) * decay**distance
                parted.append({**group, "params": chosen, "lr": lr, "name": name})
    others = [{**group, "params": [p for p in group["params"] if id(p) in left]} for group in given]  # of a loss
    return parted + [group for group in others if group["params"]]


def _zoo_groups(model: nn.Module) -> Layers:
    from model_zoo import groups

    if not hasattr(model, "zoo_name"):
        raise ValueError(
            f"head: {type(model).__name__} was not built by the zoo; give head=, the name of the new module, or groups="
        )
    return groups(model)


def _given_groups(model: nn.Module, groups: Mapping[str, Any] | Sequence[Any]) -> Layers:
    if isinstance(groups, (str, nn.Module)) or not isinstance(groups, Iterable):
        raise TypeError(f"groups: got {groups!r}; give a list, or a dictionary, of lists of modules or their names")
    named = dict(groups) if isinstance(groups, Mapping) else {f"group{n}": value for n, value in enumerate(groups)}
    found: Layers = {}
    seen: set[str] = set()
    for name, members in named.items():
        parts = [members] if isinstance(members, (str, nn.Module)) else list(members)
        found[name] = {}
        for part in parts:
            found[name] |= _below(model, part, "groups")
        twice = seen & set(found[name])
        if twice:
            raise ValueError(f"groups: {sorted(twice)[0]!r} is in {name!r} and in a group before it")
        seen |= set(found[name])
    left_out = [name for name, _ in model.named_parameters() if name not in seen]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise ValueError(f"groups: they leave out {', '.join(left_out[:3])}{more}; every parameter must be in one")
    return found


def _groups_before(model: nn.Module, head: str | nn.Module) -> Layers:
    last = _below(model, head)
    if not last:
        raise ValueError(f"head: {head!r} has no parameters, so nothing is left to train")
    rest = {name: parameter for name, parameter in model.named_parameters() if name not in last}
    if not rest:
        raise ValueError("head: it has all the model's parameters, so nothing is frozen; use fit")
    order = [path for path in blocks(model) if any(_covers(path, name) for name in rest)]
    found: Layers = {"low": {}, "mid": {}, "high": {}}
    for name, parameter in rest.items():
        place = next((index for index, path in enumerate(order) if _covers(path, name)), 0)
        found[("low", "mid", "high")[3 * place // max(1, len(order))]][name] = parameter
    return {**found, "head": last}


def _below(model: nn.Module, part: Any, argument: str = "head") -> dict[str, Parameter]:
    """The parameters of a module of a model, given by itself or by its name; a parameter's name is taken, too."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if isinstance(part, nn.Module):
        found = {names.get(id(parameter), ""): parameter for parameter in part.parameters()}
        if "" in found or not any(module is part for module in model.modules()):
            raise ValueError(f"{argument}: got a {type(part).__name__} that is not in the model")
        return found
    if not isinstance(part, str):
        raise TypeError(f"{argument}: got {part!r}; give a module of the model, or its name")
    parameters = dict(model.named_parameters())
    if part in parameters:
        return {part: parameters[part]}
    modules = dict(model.named_modules())
    if part not in modules:
        raise ValueError(f"{argument}: got {part!r}{closest(part, [name for name in modules if name][:40])}")
    own = {id(parameter) for parameter in modules[part].parameters()}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in own}


def _depths(model: Any) -> dict[str, int]:
    """How deep each parameter's block is."""
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "group_matcher"):  # timm's own layers
        from timm.models import group_parameters

        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        finite = sorted({int(depth) for depth in layers.values()})
        return {name: finite.index(int(layers[name])) for name in names}
    order = blocks(model)
    return {name: next((n for n, path in enumerate(order) if _covers(path, name)), 0) for name in names}


def _forget_frozen_norms(model: nn.Module) -> None:
    """The zoo's `freeze_to` keeps a list of what stays in evaluation mode; the groups decide that from now on."""
    if vars(model).get("zoo_frozen_norms"):
        vars(model)["zoo_frozen_norms"] = ()


def _covers(path: str, name: str) -> bool:
    return name == path or name.startswith(f"{path}.")
