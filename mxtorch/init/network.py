"""Initialising a whole network."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mxtorch._checks import closest, whole_number
from mxtorch.init.base import Initializer, Place
from mxtorch.init.default import Default, default_for, is_norm
from mxtorch.init.registry import InitializerLike, get

Role = Literal["weight", "bias", "own", "unknown"]

_WEIGHT = re.compile(r"weight|weight_(ih|hh|hr)(_l\d+(_reverse)?)?|(in|q|k|v)_proj_weight")
_BIAS = re.compile(r"bias|bias_(ih|hh)(_l\d+(_reverse)?)?|in_proj_bias")


@dataclasses.dataclass(frozen=True)
class Row:
    """What `initialize` did to one parameter.

    Args:
        name: Its name in the network.
        shape: Its shape; None while it is lazy.
        initializer: What filled it, or will when it materialises; None where it was left as it was.
        reason: Why that one: a pattern, the layer's own, the global one, torch's default for that kind of layer.
    """

    name: str
    shape: tuple[int, ...] | None
    initializer: Initializer | None
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `initialize` did to every parameter, as rows; printed, a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of a parameter; a KeyError that names the closest ones where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}{closest(name, [row.name for row in self.rows])}")

    def __str__(self) -> str:
        cells = [("parameter", "shape", "initialiser", "because")]
        for row in self.rows:
            shape = "lazy" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
            cells.append(
                (row.name, shape, "left as it was" if row.initializer is None else str(row.initializer), row.reason)
            )
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        return "\n".join("  ".join([*map(str.ljust, line, widths), line[3]]) for line in cells)

    __repr__ = __str__


@dataclasses.dataclass
class _Entry:
    """A parameter, all its names (several where it is shared), and what is to be done to it."""

    parameter: nn.Parameter
    places: list[Place]
    names: list[str]
    initializer: Initializer | None = None
    reason: str = ""

    @property
    def place(self) -> Place:
        return self.places[0]


def initialize(
    net: nn.Module,
    weight: InitializerLike = "xavier_uniform",
    bias: InitializerLike = "zeros",
    *,
    seed: int | None = None,
    overrides: Mapping[str, InitializerLike] | None = None,
    device: torch.device | str | None = None,
) -> Report:
    """Initialise every parameter of a network in place, whoever made its layers.

    A pattern beats a layer's own initialiser (`weight_init=` of `mxtorch.nn`), which beats `weight` and `bias`. Those
    two are for the weights and biases of convolutions, linear, recurrent, attention and embedding layers, and for
    parameters called `weight` (of two dimensions or more) and `bias` in any other module. Scales and shifts of norms,
    slopes of PReLU and the like get torch's default. What is none of these, such as a position embedding held in a
    plain parameter, is left as it was unless a pattern names it. Running statistics of norms start anew.

    A lazy parameter gets its values when it materialises, one on the meta device memory first (`Module.to_empty`).
    Nothing changes where an argument is refused.

    Args:
        net: The network, or any part of one.
        weight: For weights; Xavier as in Glorot and Bengio 2010.
        bias: For biases.
        seed: A parameter's values then follow from the seed and its name alone, on every device: other parameters,
            their order and what was drawn before make no difference. Without one, torch's global generator is drawn on.
        overrides: Initialisers by pattern, as of `fnmatch`, on whole parameter names (`"head.*"`, `"*.norm?.weight"`);
            a leading `*.` also matches at the top. Where several match, the last one counts.
        device: Where parameters on the meta device go; the CPU when left out.

    Returns:
        What was done to every parameter.

    Raises:
        ValueError: A pattern matches no parameter, a name is unknown, an initialiser can't apply to a shape, the seed
            is no integer, or on the meta device a parameter or buffer would be left without values.
        TypeError: `net` is no module, `overrides` no mapping, or an initialiser neither a name nor callable.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: got {type(net).__name__}; give a torch.nn.Module")
    if seed is not None and whole_number(seed) is None:
        raise ValueError(f"seed: got {seed!r}; give an integer, or None")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(
            f"overrides: got {type(overrides).__name__}; give initialisers by pattern, as in {{'*.head.*': 'zeros'}}"
        )
    fallbacks = {"weight": get(weight, "weight"), "bias": get(bias, "bias")}
    patterns = {p: get(given, f"overrides[{p!r}]") for p, given in (overrides or {}).items()}
    entries = _entries(net)
    own = {
        id(module.get_parameter(name)): (initializer, f"{type(module).__name__}'s own")
        for module in reversed(list(net.modules()))  # so that an outer layer's word is the last one
        for name, initializer in own_initializers(module).items()
    }
    for entry in entries:
        _resolve(entry, own, fallbacks)
    _override(entries, patterns)
    for entry in entries:
        _check(entry)
    if any(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()]):
        _check_meta(net, entries)
        _leave_meta(net, entries, device)
    for module in net.modules():
        if not _has_lazy(module):
            _reset_running_statistics(module)
    for entry in entries:
        _apply(entry, seed)
    return Report(tuple(_row(entry) for entry in entries))


def reset(module: nn.Module) -> None:
    """Fill a layer's parameters: each by the layer's own initialiser, or by torch's default where it has none.

    What has neither, such as the parts of a parametrised weight, is left as it was; a lazy layer waits for its first
    batch, which ends in this.

    Raises:
        ValueError: One can't apply to its parameter; nothing has changed then.
    """
    if _has_lazy(module):
        return
    own = own_initializers(module)
    layers = dict.fromkeys(["", *(name.rpartition(".")[0] for name in own)])  # with the layers inside that own names
    entries = []
    for name in [f"{path}.{n}".lstrip(".") for path in layers for n in _own_parameters(module.get_submodule(path))]:
        path, _, last = name.rpartition(".")
        place = Place(module.get_submodule(path), last)
        initializer = own.get(name, Default() if default_for(place) is not None else None)
        entries.append(
            _Entry(module.get_parameter(name), [place], [name], initializer, f"{type(module).__name__}'s own")
        )
    for entry in entries:
        _check(entry)
    _reset_running_statistics(module)
    for entry in entries:
        _apply(entry, None)


def _own_parameters(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


def own_initializers(module: nn.Module) -> dict[str, Initializer]:
    """A layer's own initialisers by parameter name: its attribute `own_initializers`, if it has one.

    A name with a dot is that of a parameter of a layer inside it. A parameter that was parametrised or pruned since,
    and so has another name, is passed over.

    Raises:
        ValueError: There is no such parameter, or no such initialiser.
    """
    given = getattr(module, "own_initializers", None)
    if not isinstance(given, Mapping):
        return {}
    names = [name for name, _ in module.named_parameters()]
    for name in given:
        if not any(there.startswith((name, "parametrizations.")) for there in names):
            raise ValueError(
                f"own_initializers of {type(module).__name__}: {name!r} is no parameter{closest(name, names)}"
            )
    return {name: get(initializer, name) for name, initializer in given.items() if name in names}


def _entries(net: nn.Module) -> list[_Entry]:
    """Every parameter once, under all its names."""
    entries: dict[int, _Entry] = {}
    for prefix, module in net.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            entry = entries.setdefault(id(parameter), _Entry(parameter, [], []))
            entry.places.append(Place(module, name))
            entry.names.append(f"{prefix}.{name}" if prefix else name)
    return list(entries.values())


def _resolve(entry: _Entry, own: Mapping[int, tuple[Initializer, str]], fallbacks: Mapping[str, Initializer]) -> None:
    """The layer's own initialiser, else the one for the parameter's role."""
    if id(entry.parameter) in own:
        entry.initializer, entry.reason = own[id(entry.parameter)]
        return
    role = _role(entry)
    if role in fallbacks:
        entry.initializer, entry.reason = fallbacks[role], f"global {role}"
    elif role == "own":
        entry.initializer, entry.reason = Default(), f"torch's for {type(entry.place.module).__name__}"
    else:
        entry.reason = f"neither weight nor bias of {type(entry.place.module).__name__}; name it in overrides"


def _role(entry: _Entry) -> Role:
    module, name = entry.place.module, entry.place.name
    if is_norm(module) or isinstance(module, nn.PReLU) or name in ("bias_k", "bias_v"):
        return "own" if default_for(entry.place) is not None else "unknown"
    if _BIAS.fullmatch(name):
        return "bias"
    if _WEIGHT.fullmatch(name) and (_is_lazy(entry.parameter) or entry.parameter.dim() >= 2):
        return "weight"
    return "unknown"


def _override(entries: list[_Entry], patterns: Mapping[str, Initializer]) -> None:
    for pattern, initializer in patterns.items():
        matching = [entry for entry in entries if any(_matches(name, pattern) for name in entry.names)]
        if not matching:
            names = [name for entry in entries for name in entry.names]
            raise ValueError(f"overrides: {pattern!r} matches no parameter{closest(pattern, names)}")
        for entry in matching:
            entry.initializer, entry.reason = initializer, f"pattern {pattern!r}"


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f".{name}", pattern)


def _check(entry: _Entry) -> None:
    if entry.initializer is None or _is_lazy(entry.parameter):
        return
    try:
        entry.initializer.check_in(entry.parameter, entry.place)
    except ValueError as error:
        raise ValueError(f"{entry.names[0]} ({entry.reason}): {error}") from error


def _check_meta(net: nn.Module, entries: list[_Entry]) -> None:
    lost = [entry.names[0] for entry in entries if entry.initializer is None and entry.parameter.is_meta]
    for prefix, module in net.named_modules():
        if not is_norm(module):  # a norm's are reset
            names = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
            lost += [f"{prefix}.{name}" if prefix else name for name in names]
    if lost:
        raise ValueError(
            f"net: {', '.join(lost)} would have no values after the meta device; name parameters in overrides, and "
            "give buffers their values (or build the network off the meta device)"
        )
    lazy = [entry.names[0] for entry in entries if _is_lazy(entry.parameter) and entry.parameter.is_meta]
    if lazy:
        raise ValueError(f"net: {', '.join(lazy)} is lazy and on the meta device; give the sizes, or another device")


def _leave_meta(net: nn.Module, entries: list[_Entry], device: torch.device | str | None) -> None:
    """Give what is on the meta device memory; shared parameters stay shared."""
    target = torch.device("cpu" if device is None else device)

    def materialise(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=target) if tensor.is_meta else tensor

    for module in net.modules():
        if not _has_lazy(module):
            apply: Any = module._apply  # which torch leaves untyped
            apply(materialise, recurse=False)
    for entry in entries:
        entry.parameter = getattr(entry.place.module, entry.place.name)
        for place in entry.places[1:]:
            setattr(place.module, place.name, entry.parameter)


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def _has_lazy(module: nn.Module) -> bool:
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(_is_lazy(tensor) for tensor in tensors if tensor is not None)


def _apply(entry: _Entry, seed: int | None) -> None:
    if entry.initializer is None:
        return
    if not _is_lazy(entry.parameter):
        entry.initializer(entry.parameter, generator=_generator(seed, entry.names[0]), place=entry.place)
        return
    module = entry.place.module
    deferred = module.__dict__.get("reset_parameters")
    if not isinstance(deferred, _Deferred):
        # Materialising ends in `reset_parameters`, in eager mode and under torch.compile; a hook would miss the latter.
        deferred = module.__dict__["reset_parameters"] = _Deferred(module, seed, deferred)
    deferred.seed = seed
    deferred.initializers[entry.place.name] = (entry.names[0], entry.initializer)


class _Deferred:
    """Stands in for a lazy layer's `reset_parameters` until it is called, and initialises as was planned."""

    def __init__(self, module: nn.Module, seed: int | None, before: Callable[[], None] | None) -> None:
        self.before = before
        self.module = module
        self.seed = seed
        self.initializers: dict[str, tuple[str, Initializer]] = {}

    def __call__(self) -> None:
        if _has_lazy(self.module):
            return
        del self.module.__dict__["reset_parameters"]
        if self.before is not None:
            self.module.__dict__["reset_parameters"] = self.before
        _reset_running_statistics(self.module)
        if any(name not in self.initializers for name, _ in self.module.named_parameters(recurse=False)):
            reset_parameters: Any = self.module.reset_parameters
            reset_parameters()
        for name, (full_name, initializer) in self.initializers.items():
            generator = _generator(self.seed, full_name)
            initializer(getattr(self.module, name), generator=generator, place=Place(self.module, name))


def _reset_running_statistics(module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        module.reset_running_stats()


def _generator(seed: int | None, name: str) -> torch.Generator | None:
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{int(seed)}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _row(entry: _Entry) -> Row:
    shape = None if _is_lazy(entry.parameter) else tuple(entry.parameter.shape)
    return Row(entry.names[0], shape, entry.initializer, entry.reason)
