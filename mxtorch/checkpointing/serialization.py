"""State in forms that a file can hold: tensors and plain values, all of which `torch.load(weights_only=True)` reads.

What can't be written in such a form is refused before a file is begun, with its place in the content.
"""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict, deque
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from mxtorch.checkpointing.packing import Packer, Unpacker, attributes_of, is_plain
from mxtorch.checkpointing.random_state import is_generator, packed_generator, set_packed_generator
from mxtorch.checkpointing.reachable import (
    ATOMS,
    LONG_CONTAINER,
    Walk,
    bytes_of,
    is_of_data,
    is_plain_object,
    is_trainer,
    name_of,
    slots_of,
)

_PLAIN = frozenset((type(None), bool, int, float, str, complex, torch.dtype, torch.device))
# Bytes of tensors and arrays of a loader that are compared and saved, each and in all: orders and counts, not data.
LARGEST_SAVED_OF_LOADER = 2**24
MOST_SAVED_OF_LOADER = 2**26
# Values in one attribute of a loader's part; more are data.
MOST_VALUES = 8192
# Objects whose kinds tell whether a loader is made as the one that was saved.
_COMPARED_PARTS = 256
# What every module has; the user's own attributes are the others.
_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}
# A checkpoint holds these in other parts, or not at all.
_SAVED_ELSEWHERE = (Optimizer, LRScheduler, DataLoader, Dataset, Sampler)


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
    if type(value) is bytes:
        return value or bytearray()  # equal, and readable, which empty bytes are not
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
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


class Attributes:
    """What steps change in modules besides parameters and buffers that `state_dict` holds.

    Attributes of modules, also of modules kept in lists or dictionaries with all their tensors, of the objects that
    they hold, variables of closures, and buffers that are not persistent. Whatever is made of numbers, text and the
    program's own objects counts only once it differs from what it was when this was made: what never changes belongs
    to the program and not to a file.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._types: dict[str, type] = {}
        self._names: dict[int, str] = {}  # of the program's objects, by id
        self._parts: dict[str, Any] = {}  # the same objects by name
        parts = self._found()
        for name, part in parts.items():
            self._name(part, name)
        packer = Packer(self._name, self._types, learning=True, registered=self._registered())
        self._initial = {
            name: {key: packer.pack(value, f"{name}.{key}") for key, value in self._state_of(part).items()}
            for name, part in parts.items()
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By object and attribute.

        Raises:
            TypeError: An attribute can't be made again when the file is read; it is named.
        """
        parts = self._found()
        here = {id(part): name for name, part in parts.items()}

        def name_for(value: Any, where: str) -> str:
            if id(value) in self._names:
                return self._names[id(value)]
            name = here.get(id(value), where)
            if name in self._parts and type(self._parts[name]) is type(value) and id(value) in here:
                return name  # made anew in the place of one like it
            raise TypeError(
                f"{where} is a {type(value).__name__}, which a checkpoint can't hold and which was not there when the "
                "Trainer was made; make it in the module's __init__, or keep it out of the module"
            )

        packer = Packer(name_for, self._types, registered=self._registered())
        changed: dict[str, dict[str, Any]] = {}
        for name, part in parts.items():
            if type(self._parts.get(name)) is not type(part):
                continue  # made meanwhile: what refers to it is refused
            initial = self._initial.get(name, {})
            for key, value in self._state_of(part).items():
                packed = packer.pack(value, f"{name}.{key}", initial.get(key))
                if packed is not initial.get(key) or not is_plain(packed):
                    changed.setdefault(name, {})[key] = packed
        return changed

    def load_state_dict(self, saved: dict[str, dict[str, Any]]) -> None:
        """Put back what `state_dict` gave; objects that are gone are passed over.

        Raises:
            ValueError: It is malformed, or refers to a type that is not there.
        """
        unpacker = Unpacker(self._parts.__getitem__, self._types)
        for name, part in self._parts.items():
            before = {key: packed for key, packed in self._initial.get(name, {}).items() if is_plain(packed)}
            for key, packed in (before | saved.get(name, {})).items():
                now = self._state_of(part).get(key)
                value = unpacker.unpack(packed, now)
                if value is not now or key not in self._state_of(part):
                    _set(part, key, value)

    def _name(self, value: Any, where: str) -> str:
        """The name of an object of the program, which is its place, and is noted."""
        if id(value) not in self._names:
            self._names[id(value)] = where
            self._parts[where] = value
        return self._names[id(value)]

    def _found(self) -> dict[str, Any]:
        """Modules, and other objects that can be reached from them, by name."""
        walk = Walk(lambda part: not isinstance(part, _SAVED_ELSEWHERE) and not is_trainer(part))
        walk.search((module, name) for name, module in self._modules.items())
        found: dict[str, Any] = {}
        for part, trail in [*walk.objects, *walk.functions]:
            if not is_plain_object(part):
                found.setdefault(self._names.get(id(part)) or name_of(trail), part)
        return found

    def _registered(self) -> frozenset[int]:
        """The tensors that the modules' `state_dict` holds."""
        states = [module.state_dict(keep_vars=True) for module in self._modules.values()]
        return frozenset(id(tensor) for state in states for tensor in state.values())

    def _state_of(self, part: Any) -> dict[str, Any]:
        if isinstance(part, torch.jit.ScriptModule):
            return {}
        if not isinstance(part, nn.Module):
            return attributes_of(part)
        attributes = {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}
        tensors = part._parameters | part._buffers
        return attributes | {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _set(part: Any, name: str, value: Any) -> None:
    """Set an attribute or a variable of a closure, without the class having a say in it."""
    if isinstance(part, FunctionType):
        assert part.__closure__ is not None
        part.__closure__[part.__code__.co_freevars.index(name)].cell_contents = value
        return
    if isinstance(part, nn.Module):
        for tensors in (part._parameters, part._buffers):
            if name in tensors:
                tensors[name] = value
                return
    if name in slots_of(type(part)):
        object.__setattr__(part, name, value)
    else:
        vars(part)[name] = value


class LoaderPartStates:
    """What changes in all that a loader is made of (samplers, data set, transforms), and its random generators.

    Attributes count only once they differ from what they were when this was made: what never changes belongs to the
    program and not to a file. Of a long list of data, such as the samples of a data set, the order is saved. What
    can't be saved, as open files and objects made meanwhile, is passed over.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._types: dict[str, type] = {}
        self._lists: dict[tuple[str, str], list[Any]] = {}
        self._not_saved: set[tuple[str, str]] = set()
        self._initial: dict[str, dict[str, Any]] = {}
        self._names: dict[int, str] = {}
        walk = self._walk()
        self._parts = self._objects(walk)  # held, so that no id is used again
        self._names = {id(part): name for name, part in self._parts.items()}
        packer = self._packer(learning=True)
        for name, part in self._parts.items():
            initial = self._initial[name] = {}
            for key, value in _loader_state_of(part).items():
                if _is_long(value):
                    self._lists[name, key] = list(value)
                elif (packed := _packed(packer, value)) is not None:
                    initial[key] = packed
                else:
                    self._not_saved.add((name, key))

    def state_dict(self) -> dict[str, Any]:
        """Generators, and what has changed, by the names of the objects."""
        walk, packer = self._walk(), self._packer()
        objects = self._objects(walk)
        changed: dict[str, dict[str, Any]] = {}
        for name, initial in self._initial.items():
            for key, value in _loader_state_of(objects[name]).items() if name in objects else ():
                elements = self._lists.get((name, key))
                if elements is not None:
                    packed = _order_of(value, elements)
                elif (name, key) in self._not_saved or _is_long(value):
                    continue
                else:
                    packed = _packed(packer, value, initial.get(key))
                if packed is not None and packed is not initial.get(key):
                    changed.setdefault(name, {})[key] = packed
        generators = {name_of(trail): packed_generator(generator) for generator, trail in walk.generators}
        return {"kinds": _kinds(self._parts), "generators": generators, "changed": changed}

    def load_state_dict(self, saved: dict[str, Any]) -> bool:
        """Put back what `state_dict` gave; False where the loader is made of other parts, and nothing was changed."""
        walk = self._walk()
        objects = self._objects(walk)
        generators = {name_of(trail): generator for generator, trail in walk.generators}
        kinds = {name: type(generator).__name__ for name, generator in generators.items()}
        if _kinds(self._parts) != saved["kinds"] or not saved["changed"].keys() <= objects.keys():
            return False
        if any(kinds.get(name) != packed["kind"] for name, packed in saved["generators"].items()):
            return False
        for name, packed in saved["generators"].items():
            set_packed_generator(generators[name], packed)
        unpacker = Unpacker(self._parts.__getitem__, self._types)
        for name, part in objects.items():
            for key, packed in (self._initial.get(name, {}) | saved["changed"].get(name, {})).items():
                now = _loader_state_of(part).get(key)
                value = now if "order" in packed else unpacker.unpack(packed, now)
                if value is not now or key not in _loader_state_of(part):
                    _set(part, key, value)
        for (name, key), elements in self._lists.items():
            order = saved["changed"].get(name, {}).get(key, {}).get("order")
            now = _loader_state_of(objects[name]).get(key) if name in objects else None
            if isinstance(now, list):
                now[:] = elements if order is None else [elements[index] for index in order.tolist()]
        return True

    def _walk(self) -> Walk:
        return Walk(is_of_data).search([(self._loader, "data")])

    def _objects(self, walk: Walk) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, trail in [*walk.objects, *walk.functions]:
            found.setdefault(self._names.get(id(part)) or name_of(trail), part)
        return found

    def _packer(self, *, learning: bool = False) -> Packer:
        def name(value: Any, where: str) -> str:
            if id(value) in self._names:
                return self._names[id(value)]
            raise TypeError(f"{where} is a {type(value).__name__}")

        return Packer(
            name,
            self._types,
            learning=learning,
            by_value=lambda value: id(value) not in self._names,
            most=MOST_VALUES,
            most_bytes=MOST_SAVED_OF_LOADER,
        )


def _loader_state_of(part: Any) -> dict[str, Any]:
    """What may change in a part of a loader; a transform that is a module has weights, which are no state."""
    if isinstance(part, DataLoader):
        return {}
    left_out = _OF_EVERY_MODULE if isinstance(part, nn.Module) else ()
    return {
        name: value
        for name, value in attributes_of(part).items()
        if name not in left_out and not is_generator(value) and bytes_of(value) <= LARGEST_SAVED_OF_LOADER
    }


def _packed(packer: Packer, value: Any, before: Any = None) -> Any:
    try:
        return packer.pack(value, "an attribute", before)
    except TypeError:
        return None


def _is_long(value: Any) -> bool:
    """Whether it is a list of so many objects that only their order is saved."""
    return type(value) is list and len(value) > LONG_CONTAINER and not ATOMS.issuperset(set(map(type, value)))


def _order_of(now: Any, elements: list[Any]) -> dict[str, Tensor] | None:
    """The places that the elements of a list had; None where nothing has changed, or others have come."""
    if type(now) is not list or (len(elements) == len(now) and all(map(operator.is_, elements, now))):
        return None
    places = {id(element): index for index, element in enumerate(elements)}
    order = [places.get(id(element), -1) for element in now]
    return None if -1 in order else {"order": torch.tensor(order)}


def _kinds(objects: Mapping[str, Any]) -> list[str]:
    parts = [part for part in itertools.islice(objects.values(), _COMPARED_PARTS) if not isinstance(part, FunctionType)]
    return [type(part).__name__ for part in parts]
