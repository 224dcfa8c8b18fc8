"""State in forms that a file can hold: tensors and plain values, all of which `torch.load(weights_only=True)` reads.

What can't be written in such a form is refused before a file is begun, with its place in the content.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mxtorch.checkpointing.random_state import is_generator, packed_generator, set_packed_generator
from mxtorch.checkpointing.snapshot import parts_of

_NUMBERS_AND_TEXT = frozenset((type(None), bool, int, float, str))
_PLAIN = frozenset((type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size))
# What every module has; the user's own attributes are the others.
_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}


def frozen(value: Any, where: str = "content", memo: dict[int, Tensor] | None = None) -> Any:
    """A copy that later steps do not change: tensors on the CPU, tied ones still tied; NumPy's values as torch's.

    Args:
        value: Tensors, numbers, text, and containers of such.
        where: What to call it in an error.
        memo: Tensors copied already, by id.

    Raises:
        TypeError: Something in it can't be written to a file that loads without running code; it is named.
    """
    memo = {} if memo is None else memo
    if isinstance(value, Tensor):
        if id(value) not in memo:
            source = value.detach()
            memo[id(value)] = source.clone() if source.device.type == "cpu" else source.cpu()
        return memo[id(value)]
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        copied = {
            frozen(key, where): item if type(item) in _PLAIN else frozen(item, f"{where}[{key!r}]", memo)
            for key, item in value.items()
        }
        if isinstance(value, OrderedDict):  # a module's state_dict, with the versions of its parts
            ordered = OrderedDict(copied)
            ordered.__dict__.update(vars(value))
            return ordered
        return copied
    if type(value) in (list, tuple, set, deque):
        items = [
            item if type(item) in _PLAIN else frozen(item, f"{where}[{index}]", memo)
            for index, item in enumerate(value)
        ]
        return tuple(items) if isinstance(value, tuple) else set(items) if isinstance(value, set) else items
    if isinstance(value, (bool, int, float, str)):  # subclasses, as enumerations are
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint can't hold; give tensors, numbers, text, and lists "
        "or dictionaries of such"
    )


class LoaderPartStates:
    """Generators and counters of all that a loader is made of: samplers, data set, transforms.

    Numbers count only once they differ from what they were when this was made: what never changes belongs to the
    program and not to a file.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._initial = {id(part): _numbers(part) for part in parts_of(loader)}

    def state_dict(self) -> list[dict[str, Any]]:
        """By part, in the order in which they are found."""
        saved = []
        for part in parts_of(self._loader):
            if is_generator(part):
                saved.append(packed_generator(part))
            else:
                initial = self._initial.get(id(part), {})
                changed = {name: value for name, value in _numbers(part).items() if value != initial.get(name)}
                saved.append({"kind": type(part).__name__, "numbers": changed})
        return saved

    def load_state_dict(self, saved: list[dict[str, Any]]) -> bool:
        """Put back what `state_dict` gave; False where the loader is made of other parts, and nothing was changed."""
        parts = parts_of(self._loader)
        if [type(part).__name__ for part in parts] != [entry["kind"] for entry in saved]:
            return False
        for part, entry in zip(parts, saved, strict=True):
            if is_generator(part):
                set_packed_generator(part, entry)
                continue
            for name, value in ({**self._initial.get(id(part), {}), **entry["numbers"]}).items():
                if vars(part).get(name) != value:
                    setattr(part, name, value)
        return True


def _is_loader(part: Any) -> bool:
    return hasattr(part, "batch_sampler") and hasattr(part, "num_workers")


def _numbers(part: Any) -> dict[str, bool | int | float]:
    if _is_loader(part) or is_generator(part):
        return {}
    return {name: value for name, value in vars(part).items() if type(value) in (bool, int, float)}


class Attributes:
    """What steps change in modules besides parameters and buffers that `state_dict` holds.

    Counters, flags, tensors, arrays and generators kept as attributes, also in lists and dictionaries, and buffers
    that are not persistent. Numbers and text count only once they differ from what they were when this was made: what
    never changes belongs to the program and not to a file.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = {
            f"{name}.{inner}": module for name, root in modules.items() for inner, module in root.named_modules()
        }
        self._initial: dict[str, dict[str, Any]] = {}
        self._initial = self._packed()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By module and attribute."""
        changed = {}
        for name, attributes in self._packed().items():
            initial = self._initial.get(name, {})
            kept = {
                key: packed for key, packed in attributes.items() if not _is_plain(packed) or packed != initial.get(key)
            }
            if kept:
                changed[name] = kept
        return changed

    def load_state_dict(self, saved: dict[str, dict[str, Any]]) -> None:
        """Put back what `state_dict` gave; attributes that are gone are passed over."""
        with torch.no_grad():
            for name, attributes in saved.items():
                module = self._modules.get(name)
                for key, packed in attributes.items():
                    if module is not None and hasattr(module, key):
                        setattr(module, key, _unpacked(packed, getattr(module, key)))

    def _packed(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, module in self._modules.items():
            initial = self._initial.get(name, {})
            values = [(key, value) for key, value in vars(module).items() if key not in _OF_EVERY_MODULE]
            values += [(key, module._buffers[key]) for key in module._non_persistent_buffers_set]
            packed = {key: _packed_unless_same(value, initial.get(key)) for key, value in values}
            found[name] = {key: value for key, value in packed.items() if value is not None}
        return found


def _packed_unless_same(value: Any, initial: dict[str, Any] | None) -> dict[str, Any] | None:
    """`initial` where a container still holds what it held; a vocabulary of a million words is not packed again."""
    if initial is not None and "plain" in initial:
        kind, content = initial["plain"]
        if type(value).__name__ == kind and value == content:
            return initial
    return _packed(value, set())


def _packed(value: Any, inside: set[int]) -> dict[str, Any] | None:
    """A value with its kind; None for what is no state: modules, functions, a container that holds itself."""
    if type(value) in _NUMBERS_AND_TEXT:
        return {"value": value}
    if type(value) in (dict, list, tuple, set) and _holds_numbers_and_text(value):
        return {"plain": [type(value).__name__, value.copy() if hasattr(value, "copy") else value]}
    if isinstance(value, Tensor):
        return None if isinstance(value, nn.Parameter) else {"tensor": value.detach().clone()}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(value.copy())} if value.dtype.kind in "biuf" else None
    if is_generator(value):
        return {"generator": packed_generator(value)}
    if not isinstance(value, (dict, list, tuple, set, deque)) or id(value) in inside:
        return None
    inside = inside | {id(value)}
    if isinstance(value, dict):
        items = {key: _packed(item, inside) for key, item in value.items() if type(key) in (str, int)}
        return {"dict": {key: item for key, item in items.items() if item is not None}}
    packed = [_packed(item, inside) for item in value]
    return None if any(item is None for item in packed) else {type(value).__name__: packed}


def _holds_numbers_and_text(container: Any) -> bool:
    if isinstance(container, dict):
        keys_are_plain = all(type(key) in (str, int) for key in container)
        return keys_are_plain and all(type(value) in _NUMBERS_AND_TEXT for value in container.values())
    return all(type(item) in _NUMBERS_AND_TEXT for item in container)


def _is_plain(packed: dict[str, Any]) -> bool:
    """Whether it is made of numbers and text alone, which can be compared."""
    ((kind, content),) = packed.items()
    if kind in ("tensor", "array", "generator"):
        return False
    return kind in ("value", "plain") or all(
        _is_plain(item) for item in (content.values() if kind == "dict" else content)
    )


def _unpacked(packed: dict[str, Any], now: Any) -> Any:
    """The value; where `now` is an object that others may refer to, that object with the value in it."""
    ((kind, content),) = packed.items()
    if kind == "value":
        return content
    if kind == "plain":
        return _filled(now, *content)
    if kind == "tensor":
        if isinstance(now, Tensor) and now.shape == content.shape and now.dtype == content.dtype:
            return now.copy_(content)
        return content.to(now.device) if isinstance(now, Tensor) else content
    if kind == "array":
        if isinstance(now, np.ndarray) and now.shape == tuple(content.shape) and now.flags.writeable:
            now[...] = content.numpy()
            return now
        return content.numpy()
    if kind == "generator":
        set_packed_generator(now, content)
        return now
    if kind == "dict":
        for key in [key for key in now if key not in content and _packed(now[key], {id(now)}) is not None]:
            del now[key]
        for key, item in content.items():
            now[key] = _unpacked(item, now.get(key))
        return now
    old = list(now) if isinstance(now, (list, tuple, deque)) and len(now) == len(content) else [None] * len(content)
    items = [_unpacked(item, before) for item, before in zip(content, old, strict=True)]
    if isinstance(now, list):
        now[:] = items
        return now
    makers: dict[str, Callable[[Iterable[Any]], Any]] = {"list": list, "tuple": tuple, "set": set}
    return deque(items, getattr(now, "maxlen", None)) if kind == "deque" else makers[kind](items)


def _filled(now: Any, kind: str, content: Any) -> Any:
    """`now` with the content, where it is a container of that kind that can be changed; else a new one."""
    if type(now).__name__ != kind or kind == "tuple":
        return {"dict": dict, "list": list, "tuple": tuple, "set": set}[kind](content)
    if kind == "list":
        now[:] = content
    else:
        now.clear()
        now.update(content)
    return now
