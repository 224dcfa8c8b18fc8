"""Layer groups of a network, from its input to its head: what is trained, and rates that fall towards the input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase

from mxtorch._checks import positive_rate, shortened
from mxtorch.callbacks.freezing import find_layer
from mxtorch.optim.scheduled import ScheduledOptim, set_group_rate

LayerGroups = dict[str, dict[str, Parameter]]

# From group to group. Howard and Ruder (2018, arXiv 1801.06146) use 1 / 2.6 from layer to layer.
DEFAULT_DECAY = 0.3
# From block to block: neighbouring blocks differ less than neighbouring groups do.
DEFAULT_LAYER_DECAY = 0.75


def layer_groups(
    model: nn.Module,
    head: str | nn.Module | None = None,
    groups: Mapping[str, Any] | Sequence[Any] | None = None,
) -> LayerGroups:
    """The parameters of a network by group, from the input to the head, which is the last group.

        >>> from torch import nn
        >>> from mxtorch.fine_tuning import layer_groups
        >>> net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
        >>> layers = layer_groups(net, head="3")
        >>> {name: list(parameters) for name, parameters in layers.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'low': ['0.weight', '0.bias'], 'mid': ['1.weight', '1.bias'], 'high': ['2.weight', '2.bias'],
         'head': ['3.weight', '3.bias']}
        >>> layers = layer_groups(net, groups={"body": ["0", "1", "2"], "new": net[3]})
        >>> {name: len(parameters) for name, parameters in layers.items()}
        {'body': 6, 'new': 2}

    Args:
        model: A network of the zoo, which has groups and a head, or any other.
        head: The new module, or its name. A network that is not of the zoo needs it, unless `groups` are given. What
            comes before the head is divided into `low`, `mid` and `high`: thirds, by the number of blocks.
        groups: The groups themselves, from the input to the head: a list, or a dictionary with the groups' names. Each
            group is a module, the name of a module or parameter, or a list of those. The last group is the head.

    Returns:
        For each group its parameters, by their names in the network. Every parameter is in exactly one group; with
        adapters of peft, every one that is trained.

    Raises:
        TypeError: A module is neither a name nor a module.
        ValueError: The head is unknown, has no parameters or has all of them; a module is not in the model; the groups
            leave parameters out, or have one twice.
    """
    if groups is not None:
        found = _given_groups(model, groups)
        if head is not None and found[list(found)[-1]].keys() != _parameters_of(model, head, "head").keys():
            raise ValueError("head: it is not the last of groups; give one of the two, or put it last")
    elif head is not None:
        found = _thirds_and_head(model, head)
    elif hasattr(model, "zoo_name"):
        from mxtorch.model_zoo import (
            groups as groups_of_the_zoo,  # on first use: a network of one's own does without the zoo
        )

        found = groups_of_the_zoo(model)
    else:
        raise ValueError(
            f"head: {type(model).__name__} was not built by the zoo; give head=, the name of the new module, or groups="
        )
    if has_adapters(model):  # what the adapters leave frozen is not to be trained by fine-tuning either
        found = {
            group: {name: one for name, one in members.items() if one.requires_grad} for group, members in found.items()
        }
    found = {name: members for name, members in found.items() if members}
    if len(found) < 2:
        raise ValueError("groups: got one group alone; there must be something to freeze before the head")
    return found


def layer_wise_groups(model: nn.Module, lr: float, decay: float = DEFAULT_LAYER_DECAY) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer with a rate for every block; the nearer the input, the smaller the rate.

    Used to fine-tune transformers since ELECTRA (Clark et al. 2020, arXiv 2003.10555). The blocks are timm's own layers
    where the network has them; otherwise they are the network's children, and the children of those that are an
    `nn.Sequential` or `nn.ModuleList`.

        >>> import torch
        >>> from torch import nn
        >>> from mxtorch.fine_tuning import layer_wise_groups
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.AdamW(layer_wise_groups(net, lr=0.4, decay=0.5))
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('layer2', 0.4), ('layer1', 0.2), ('layer0', 0.1)]

    Args:
        model: Any network.
        lr: The rate of the last block, the head.
        decay: The rate of a block divided by that of the next one. Values between 0.65 and 0.9 are in use.

    Returns:
        Dictionaries with `params`, `lr` and `name`. The head comes first, because `find_lr` finds the rate of the first
        group. Frozen parameters are left out.

    Raises:
        TypeError: The rate is not a number.
        ValueError: The rate is not positive and finite, the decay is not in (0, 1], or everything is frozen.
    """
    lr = positive_rate(lr, "lr")
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


def train_head(model: nn.Module, layers: LayerGroups) -> None:
    """Train the last group and freeze the others."""
    _train_only(model, layers[list(layers)[-1]].values())


def has_adapters(model: nn.Module) -> bool:
    """Whether peft (LoRA and its kin) has put adapters into a model, and frozen the rest of it."""
    return hasattr(model, "peft_config") or bool(getattr(model, "_hf_peft_config_loaded", False))


def train_all(model: nn.Module, layers: LayerGroups, *, norms: bool) -> None:
    """Train every group; without `norms` freeze the batch normalisation before the head."""
    kept = {id(parameter) for parameter in layers[list(layers)[-1]].values()}
    frozen: set[int] = set()
    for module in () if norms else model.modules():
        if isinstance(module, _NormBase):
            frozen |= {id(parameter) for parameter in module.parameters()} - kept
    members = [parameter for group in layers.values() for parameter in group.values()]
    _train_only(model, (parameter for parameter in members if id(parameter) not in frozen))


def _train_only(model: nn.Module, trained: Iterable[Parameter]) -> None:
    """Train some parameters of a model and freeze all others."""
    if vars(model).get("zoo_frozen_norms"):  # an earlier `freeze_to` of the zoo does not count any more
        vars(model)["zoo_frozen_norms"] = ()
    chosen = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


@contextlib.contextmanager
def phase(model: nn.Module, has_trained: Callable[[], bool]) -> Iterator[None]:
    """In this block a phase freezes parameters and trains the others.

    If an error ends the block before anything was trained, what was frozen before is frozen again, and nothing else.

    Args:
        model: The network.
        has_trained: A function that returns whether the phase has trained.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    norms = vars(model).get("zoo_frozen_norms")
    try:
        yield
    except BaseException:
        if not has_trained():
            for parameter, is_trained in before:
                parameter.requires_grad_(is_trained)
            if norms is not None:
                vars(model)["zoo_frozen_norms"] = norms
        raise


@contextlib.contextmanager
def rates_by_layer(
    optimizer: ScheduledOptim, layers: LayerGroups, decay: float, has_trained: Callable[[], bool]
) -> Iterator[None]:
    """In this block each layer group is a parameter group of the optimizer, with a rate that falls towards the input.

    The head's group is the first one. Parameter groups that have different rates already stay as they are, because
    somebody has chosen these rates. Parameters that the optimizer lacks, as those that were frozen when it was made,
    are added with the settings of its first group. After the block the optimizer has its own groups again, with the
    last rate, and the added parameters as one more group. If an error ends the block before anything was trained, the
    optimizer is what it was: its groups, their rates and the schedule.

    Args:
        optimizer: The optimizer.
        layers: The layer groups, from the input to the head.
        decay: The rate of a layer group divided by that of the next.
        has_trained: A function that returns whether anything was trained in the block.
    """
    schedule, optimizer.schedule = optimizer.schedule, None
    before = list(optimizer.param_groups)
    rates = [float(group["lr"]) for group in before]
    held = {id(parameter) for group in before for parameter in group["params"]}
    lacking = [p for members in layers.values() for p in members.values() if id(p) not in held]
    added = [{**before[0], "params": lacking}] if lacking else []
    groups = [*before, *added]
    optimizer.param_groups[:] = _divided(groups, layers, decay) if len(set(rates)) == 1 else groups
    failed = True
    try:
        yield
        failed = False
    finally:
        optimizer.schedule = None
        rate = optimizer.learning_rate
        optimizer.param_groups[:] = before
        if failed and not has_trained():
            for group, lr in zip(before, rates, strict=True):
                set_group_rate(group, lr)
            optimizer.schedule = schedule
        else:
            for group, lr in zip(before, rates, strict=True):
                group["lr"] = rate * lr / rates[0]
            for group in added:
                optimizer.add_param_group({**group, "lr": rate})


def _divided(given: list[dict[str, Any]], layers: LayerGroups, decay: float) -> list[dict[str, Any]]:
    """Parameter groups divided by layer group, the head's first; what is in no layer, as a loss's, comes last."""
    divided = []
    left = {id(parameter) for group in given for parameter in group["params"]}
    for distance, (name, members) in enumerate(reversed(layers.items())):
        inside = {id(parameter) for parameter in members.values()}
        left -= inside
        divided += [
            {**_part(group, inside), "lr": float(group["lr"]) * decay**distance, "name": name} for group in given
        ]
    divided += [_part(group, left) for group in given]
    return [group for group in divided if group["params"]]


def _part(group: dict[str, Any], chosen: set[int]) -> dict[str, Any]:
    """A parameter group with some of its parameters, given by their ids."""
    return {**group, "params": [parameter for parameter in group["params"] if id(parameter) in chosen]}


def _given_groups(model: nn.Module, groups: Mapping[str, Any] | Sequence[Any]) -> LayerGroups:
    if isinstance(groups, (str, nn.Module)) or not isinstance(groups, Iterable):
        raise TypeError(f"groups: got {groups!r}; give a list, or a dictionary, of lists of modules or their names")
    named = dict(groups) if isinstance(groups, Mapping) else {f"group{n}": value for n, value in enumerate(groups)}
    found: LayerGroups = {}
    left_out = dict(model.named_parameters())
    for name, members in named.items():
        found[name] = {}
        for part in [members] if isinstance(members, (str, nn.Module)) else list(members):
            found[name] |= _parameters_of(model, part, "groups")
        twice = sorted(found[name].keys() - left_out.keys())
        if twice:
            raise ValueError(f"groups: {twice[0]!r} is in {name!r} and in a group before it")
        left_out = {key: value for key, value in left_out.items() if key not in found[name]}
    if left_out:
        raise ValueError(f"groups: they leave out {shortened(left_out, 3)}; every parameter must be in one")
    return found


def _thirds_and_head(model: nn.Module, head: str | nn.Module) -> LayerGroups:
    last = _parameters_of(model, head, "head")
    if not last:
        raise ValueError(f"head: {head!r} has no parameters, so nothing is left to train")
    rest = {name: parameter for name, parameter in model.named_parameters() if name not in last}
    if not rest:
        raise ValueError("head: it has all the model's parameters, so nothing is frozen; use fit")
    places = _places(rest, [path for path in blocks(model) if any(covers(path, name) for name in rest)])
    count = 1 + max(places.values())
    found: LayerGroups = {"low": {}, "mid": {}, "high": {}}
    for name, parameter in rest.items():
        found[("low", "mid", "high")[3 * places[name] // count]][name] = parameter
    return {**found, "head": last}


def _parameters_of(model: nn.Module, part: Any, argument: str) -> dict[str, Parameter]:
    """The parameters of a module of a model, which is given by itself or by its name; or one parameter, by its name."""
    parameters = dict(model.named_parameters())
    if isinstance(part, str) and part in parameters:
        return {part: parameters[part]}
    inside = {id(parameter) for parameter in find_layer(model, part, argument).parameters()}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in inside}


def blocks(model: nn.Module) -> list[str]:
    """The building blocks of a network, from the input to the output: its children, and those of `nn.Sequential`s."""
    found = []
    for name, child in model.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child):
            found += [f"{name}.{inner}" for inner in blocks(child)]
        elif any(True for _ in child.parameters()):
            found.append(name)
    return found


def covers(path: str, name: str) -> bool:
    """Whether a path is a name, or the path of a module that holds what has the name."""
    return name == path or name.startswith(f"{path}.")


def _depths(model: Any) -> dict[str, int]:
    """The number of each parameter's block, from 0 at the input."""
    names = [name for name, _ in model.named_parameters()]
    if not hasattr(model, "group_matcher"):
        return _places(names, blocks(model))
    from timm.models import group_parameters  # timm's own layers

    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {name: int(layers[name]) for name in names}


def _places(names: Iterable[str], paths: list[str]) -> dict[str, int]:
    """For each parameter the index of the path that covers it; 0 for one that the network itself holds."""
    return {name: next((index for index, path in enumerate(paths) if covers(path, name)), 0) for name in names}
