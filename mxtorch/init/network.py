"""Initialisation of a whole network."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mxtorch._checks import closest, whole_number
from mxtorch.init.base import Initializer, Place
from mxtorch.init.default import Default, default_for, is_norm
from mxtorch.init.registry import InitializerLike, get

_WEIGHT = re.compile(r"weight|weight_(ih|hh|hr)(_l\d+(_reverse)?)?|(in|q|k|v)_proj_weight")
_BIAS = re.compile(r"bias|bias_(ih|hh)(_l\d+(_reverse)?)?|in_proj_bias")


@dataclasses.dataclass(frozen=True)
class Row:
    """What `initialize` did to one parameter.

    Args:
        name: The parameter's name in the network.
        shape: The parameter's shape; None while the parameter is lazy.
        initializer: The initialiser that filled the parameter, or will fill it when a lazy parameter gets its size;
            None if the parameter was not changed.
        reason: The origin of the initialiser: a pattern, the layer, a global argument, or torch's default for the kind
            of layer.
    """

    name: str
    shape: tuple[int, ...] | None
    initializer: Initializer | None
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `initialize` did, with a row for each parameter; `print` shows a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of a parameter. An unknown name raises a KeyError with the closest names."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}{closest(name, [row.name for row in self.rows])}")

    def __str__(self) -> str:
        cells = [("parameter", "shape", "initialiser", "because")]
        for row in self.rows:
            shape = "lazy" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
            filled = "not changed" if row.initializer is None else str(row.initializer)
            cells.append((row.name, shape, filled, row.reason))
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        return "\n".join("  ".join([*map(str.ljust, line, widths), line[3]]) for line in cells)

    __repr__ = __str__


@dataclasses.dataclass
class _Entry:
    """A parameter, its initialiser, and its place under each of its names. A shared parameter has several names."""

    parameter: nn.Parameter
    places: dict[str, Place]
    initializer: Initializer | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return next(iter(self.places))

    @property
    def place(self) -> Place:
        return self.places[self.name]

    def row(self) -> Row:
        shape = None if _is_lazy(self.parameter) else tuple(self.parameter.shape)
        return Row(self.name, shape, self.initializer, self.reason)


def initialize(
    net: nn.Module,
    weight: InitializerLike = "xavier_uniform",
    bias: InitializerLike = "zeros",
    *,
    seed: int | None = None,
    overrides: Mapping[str, InitializerLike] | None = None,
    device: torch.device | str | None = None,
) -> Report:
    """Initialise every parameter of a network in place. The layers may be those of torch, of mxtorch, or any others.

    A pattern takes precedence over a layer's own initialiser (`weight_init=` of `mxtorch.nn`), which takes precedence
    over `weight` and `bias`. These two fill the weights and biases of convolutions, linear, recurrent, attention and
    embedding layers, and parameters called `weight` (of two dimensions or more) and `bias` in any other module. The
    scales and shifts of norms and the slopes of PReLU get torch's default. Any other parameter, such as a position
    embedding, is not changed unless a pattern matches it. The running statistics of norms are reset.

    A lazy parameter gets its values when it gets its size. A parameter on the meta device first gets memory. If an
    argument is refused, nothing has changed.

    Args:
        net: The network, or any part of one.
        weight: The initialiser of weights; the default is that of Glorot and Bengio 2010.
        bias: The initialiser of biases.
        seed: With a seed, the values of a parameter depend only on the seed and the name of the parameter, on every
            device. They do not depend on other parameters, their order, or earlier random numbers. Without a seed,
            torch's global generator draws the values.
        overrides: Initialisers by pattern of `fnmatch` for whole parameter names (`"head.*"`, `"*.norm?.weight"`). A
            leading `*.` also matches a name without a dot. If several patterns match, the last one counts.
        device: The device on which parameters from the meta device get memory; by default the CPU.

    Returns:
        The report, which has a row for each parameter.

    Raises:
        ValueError: A pattern matches no parameter, a name is unknown, an initialiser can't fill a shape, the seed is
            not an integer, or a parameter or buffer on the meta device would have no values.
        TypeError: `net` is not a module, `overrides` is not a mapping, or an initialiser is neither a name nor
            callable.

    Example:
        >>> from mxtorch import init, nn
        >>> net = nn.Sequential(nn.Linear(4, 3, weight_init="orthogonal"), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> init.initialize(net, "xavier_normal", seed=0, overrides={"2.bias": init.Constant(0.1)})
        parameter  shape  initialiser          because
        0.weight   3x4    Orthogonal()         Linear's own
        0.bias     3      Zeros()              global bias
        1.weight   3      Default()            torch's for BatchNorm1d
        1.bias     3      Default()            torch's for BatchNorm1d
        2.weight   2x3    XavierNormal()       global weight
        2.bias     2      Constant(value=0.1)  pattern '2.bias'
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
        for module in reversed(list(net.modules()))  # outer modules take precedence over inner ones
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
    return Report(tuple(entry.row() for entry in entries))


def reset(module: nn.Module) -> None:
    """Fill the parameters of a layer with the layer's own initialisers, or else with torch's default.

    A parameter that has neither, such as a part of a parametrised weight, is not changed. For a lazy layer, nothing
    happens before its first batch; the first batch then calls this function.

    Raises:
        ValueError: An initialiser can't fill its parameter. Nothing has changed then.

    Example:
        >>> import torch
        >>> from mxtorch import init, nn
        >>> layer = nn.Linear(1, 2, bias_init="ones")
        >>> _ = torch.nn.init.zeros_(layer.bias)
        >>> init.reset(layer)
        >>> layer.bias.tolist()
        [1.0, 1.0]
    """
    if _has_lazy(module):
        return
    own = own_initializers(module)
    entries = []
    for path in dict.fromkeys(["", *(name.rpartition(".")[0] for name in own)]):  # and inner layers that `own` names
        layer = module.get_submodule(path)
        for last, parameter in layer.named_parameters(recurse=False):
            name, place = f"{path}.{last}".lstrip("."), Place(layer, last)
            initializer = own.get(name, Default() if default_for(place) is not None else None)
            entries.append(_Entry(parameter, {name: place}, initializer, f"{type(module).__name__}'s own"))
    for entry in entries:
        _check(entry)
    _reset_running_statistics(module)
    for entry in entries:
        _apply(entry, None)


def own_initializers(module: nn.Module) -> dict[str, Initializer]:
    """A module's own initialisers by parameter name: those in its attribute `own_initializers`, if it has one.

    A name with a dot refers to a parameter of an inner layer. A parameter that was parametrised or pruned later has
    another name, so it is left out.

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
                f"own_initializers of {type(module).__name__}: got {name!r}, which is no parameter"
                f"{closest(name, names)}"
            )
    return {name: get(initializer, name) for name, initializer in given.items() if name in names}


def _entries(net: nn.Module) -> list[_Entry]:
    """Every parameter once, with all its names."""
    entries: dict[int, _Entry] = {}
    for prefix, module in net.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                entry = entries.setdefault(id(parameter), _Entry(parameter, {}))
                entry.places[f"{prefix}.{name}".lstrip(".")] = Place(module, name)
    return list(entries.values())


def _resolve(entry: _Entry, own: Mapping[int, tuple[Initializer, str]], fallbacks: Mapping[str, Initializer]) -> None:
    """Choose the layer's own initialiser, or else the initialiser for the kind of parameter."""
    module, name = entry.place.module, entry.place.name
    has_default = is_norm(module) or isinstance(module, nn.PReLU) or name in ("bias_k", "bias_v")
    if id(entry.parameter) in own:
        entry.initializer, entry.reason = own[id(entry.parameter)]
    elif has_default and default_for(entry.place) is not None:
        entry.initializer, entry.reason = Default(), f"torch's for {type(module).__name__}"
    elif not has_default and _BIAS.fullmatch(name):
        entry.initializer, entry.reason = fallbacks["bias"], "global bias"
    elif not has_default and _WEIGHT.fullmatch(name) and (_is_lazy(entry.parameter) or entry.parameter.dim() >= 2):
        entry.initializer, entry.reason = fallbacks["weight"], "global weight"
    else:
        entry.reason = f"neither weight nor bias of {type(module).__name__}; name it in overrides"


def _override(entries: list[_Entry], patterns: Mapping[str, Initializer]) -> None:
    for pattern, initializer in patterns.items():
        matching = [entry for entry in entries if any(_matches(name, pattern) for name in entry.places)]
        if not matching:
            names = [name for entry in entries for name in entry.places]
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
        raise ValueError(f"{entry.name} ({entry.reason}): {error}") from error


def _check_meta(net: nn.Module, entries: list[_Entry]) -> None:
    lost = [entry.name for entry in entries if entry.initializer is None and entry.parameter.is_meta]
    for prefix, module in net.named_modules():
        if not is_norm(module):  # the buffers of norms are reset
            names = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
            lost += [f"{prefix}.{name}".lstrip(".") for name in names]
    if lost:
        raise ValueError(
            f"net: {', '.join(lost)} would have no values after the meta device; give initialisers for parameters in "
            "overrides, and give buffers their values (or build the network on another device)"
        )
    lazy = [entry.name for entry in entries if _is_lazy(entry.parameter) and entry.parameter.is_meta]
    if lazy:
        raise ValueError(f"net: {', '.join(lazy)} is lazy and on the meta device; give the sizes, or another device")


def _leave_meta(net: nn.Module, entries: list[_Entry], device: torch.device | str | None) -> None:
    """Give memory to tensors on the meta device. Shared parameters stay shared."""
    target = torch.device("cpu" if device is None else device)
    for module in net.modules():
        if not _has_lazy(module):
            apply: Any = module._apply  # torch has no types for it
            apply(lambda tensor: torch.empty_like(tensor, device=target) if tensor.is_meta else tensor, recurse=False)
    for entry in entries:
        entry.parameter = getattr(entry.place.module, entry.place.name)
        for place in entry.places.values():
            setattr(place.module, place.name, entry.parameter)


def _is_lazy(tensor: Tensor) -> bool:
    return is_lazy(tensor)  # torch's return type would make mypy narrow the types of other tensors


def _has_lazy(module: nn.Module) -> bool:
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(_is_lazy(tensor) for tensor in tensors if tensor is not None)


def _apply(entry: _Entry, seed: int | None) -> None:
    if entry.initializer is None:
        return
    if not _is_lazy(entry.parameter):
        entry.initializer(entry.parameter, generator=_generator(seed, entry.name), place=entry.place)
        return
    module = entry.place.module
    deferred = module.__dict__.get("reset_parameters")
    if not isinstance(deferred, _Deferred):
        # The first batch calls `reset_parameters` in eager mode and under torch.compile, which skips hooks.
        deferred = module.__dict__["reset_parameters"] = _Deferred(module, seed, deferred)
    deferred.seed = seed
    deferred.initializers[entry.place.name] = (entry.name, entry.initializer)


class _Deferred:
    """Replaces the `reset_parameters` of a lazy layer until its first call, which fills the parameters as planned."""

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
