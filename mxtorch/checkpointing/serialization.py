"""State in a form that a file can hold: tensors and plain values, which `torch.load(weights_only=True)` reads.

A value that has no such form is refused before a file is opened for writing. The error names the place of the value.
"""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from mxtorch.checkpointing.packing import VALUES, Packed, Packer, attributes_of, is_plain
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
from mxtorch.checkpointing.unpacking import Unpacker

# The largest tensor or array of a loader that is saved, and the largest sum of their sizes, in bytes. Orders and counts
# are smaller; data are larger, and are not saved.
LARGEST_SAVED_OF_LOADER = 2**24
MOST_SAVED_OF_LOADER = 2**26
# The largest number of values in one attribute of a loader's part. An attribute with more values holds data.
MOST_VALUES = 8192
# The number of objects whose types are compared, to see whether a loader is made in the same way as the saved one.
_COMPARED_PARTS = 256
# The attributes that every module has. All other attributes are the user's own.
_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}
# Objects of these classes are saved in other parts of a checkpoint, or not at all.
_SAVED_ELSEWHERE = (Optimizer, LRScheduler, DataLoader, Dataset, Sampler)


def frozen(value: Any, where: str = "content", memo: dict[int, Tensor] | None = None) -> Any:
    """A copy that later steps do not change. Tensors are copied to the CPU; NumPy's values become torch's.

    One tensor that occurs twice is copied once, so that tied weights stay tied.

    Args:
        value: Tensors, numbers, text, and containers of these.
        where: The place of the value, for error messages.
        memo: The tensors that are copied already, by id.

    Raises:
        TypeError: A part of the value can't be in a file that loads without running code. The message names its place.

    Example:
        >>> frozen({"rate": np.float64(0.5), "shape": torch.Size([2, 3])})
        {'rate': 0.5, 'shape': (2, 3)}
    """
    memo = {} if memo is None else memo
    if isinstance(value, Tensor):
        if id(value) not in memo:
            source = value.detach()
            memo[id(value)] = source.clone() if source.device.type == "cpu" else source.cpu()
        return memo[id(value)]
    if type(value) in VALUES:
        return value
    if type(value) is bytes:
        return value or bytearray()  # torch can't read empty bytes; an empty bytearray is equal to them
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        copied = {
            frozen(key, where): item if type(item) in VALUES else frozen(item, f"{where}[{key!r}]", memo)
            for key, item in value.items()
        }
        if isinstance(value, OrderedDict):  # a module's state_dict, with the versions of its parts
            ordered = OrderedDict(copied)
            ordered.__dict__.update(vars(value))
            return ordered
        return copied
    if type(value) in (list, tuple, set, deque):
        items = [
            item if type(item) in VALUES else frozen(item, f"{where}[{index}]", memo)
            for index, item in enumerate(value)
        ]
        return tuple(items) if isinstance(value, tuple) else set(items) if isinstance(value, set) else items
    if isinstance(value, (bool, int, float, str)):  # an instance of a subclass, such as an IntEnum
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint can't hold; give tensors, numbers, text, and lists "
        "or dictionaries of these"
    )


class Attributes:
    """The state of modules that `nn.Module.state_dict` does not hold.

    This state consists of the attributes of modules and of the objects that they hold, the variables of closures, and
    the buffers that are not persistent. A module in a plain list or dictionary is saved with all its tensors. An
    attribute of numbers, text and the program's own objects is saved only if it has changed since this object was
    made: a value that never changes belongs to the program, and an old file must not bring it back.

    Args:
        modules: The modules by name.
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
        """The packed attributes, by the name of the object and the name of the attribute.

        Raises:
            TypeError: An attribute can't be made again when the file is read. The message names the attribute.
        """
        parts = self._found()
        here = {id(part): name for name, part in parts.items()}

        def name_for(value: Any, where: str) -> str:
            if id(value) in self._names:
                return self._names[id(value)]
            name = here.get(id(value), where)
            if name in self._parts and type(self._parts[name]) is type(value) and id(value) in here:
                return name  # it replaces an object of the same type in the same place
            raise TypeError(
                f"{where} is a {type(value).__name__}, which a checkpoint can't hold, and which was made after the "
                "Trainer; make it in the module's __init__, or keep it out of the module"
            )

        packer = Packer(name_for, self._types, registered=self._registered())
        changed: dict[str, dict[str, Any]] = {}
        for name, part in parts.items():
            if type(self._parts.get(name)) is not type(part):
                continue  # made after the trainer; `name_for` refuses an attribute that refers to it
            initial = self._initial.get(name, {})
            for key, value in self._state_of(part).items():
                packed = packer.pack(value, f"{name}.{key}", initial.get(key))
                if packed is not initial.get(key) or not is_plain(packed):
                    changed.setdefault(name, {})[key] = packed
        return changed

    def load_state_dict(self, saved: dict[str, dict[str, Any]]) -> None:
        """Restore what `state_dict` returned. Objects that are no longer there are skipped.

        Raises:
            ValueError: The state is malformed, or refers to a type that is not there.
        """
        unpacker = Unpacker(self._parts.__getitem__, self._types)
        for name, part in self._parts.items():
            before = {key: packed for key, packed in self._initial.get(name, {}).items() if is_plain(packed)}
            _unpack_into(part, before | saved.get(name, {}), unpacker, self._state_of)

    def _name(self, value: Any, where: str) -> str:
        """The name of an object of the program. A new object is recorded; its name is its place."""
        if id(value) not in self._names:
            self._names[id(value)] = where
            self._parts[where] = value
        return self._names[id(value)]

    def _found(self) -> dict[str, Any]:
        """The modules, and the other objects that can be reached from them, by name."""
        walk = Walk(lambda part: not isinstance(part, _SAVED_ELSEWHERE) and not is_trainer(part))
        walk.search((module, name) for name, module in self._modules.items())
        return _by_name(walk, self._names, lambda part: not is_plain_object(part))

    def _registered(self) -> frozenset[int]:
        """The ids of the tensors that the modules' `state_dict` holds."""
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


def _by_name(walk: Walk, names: Mapping[int, str], wanted: Callable[[Any], bool] = lambda part: True) -> dict[str, Any]:
    """The wanted objects and functions that a walk found, by name: the name in `names`, else the place."""
    found: dict[str, Any] = {}
    for part, trail in [*walk.objects, *walk.functions]:
        if wanted(part):
            found.setdefault(names.get(id(part)) or name_of(trail), part)
    return found


def _unpack_into(
    part: Any, state: Mapping[str, Packed], unpacker: Unpacker, state_of: Callable[[Any], dict[str, Any]]
) -> None:
    """Give an object the attributes in `state`. The present attributes are `state_of(part)`."""
    for key, packed in state.items():
        now = state_of(part).get(key)
        value = unpacker.unpack(packed, now)
        if value is not now or key not in state_of(part):
            _set(part, key, value)


def _set(part: Any, name: str, value: Any) -> None:
    """Set an attribute, or a variable of a closure, without a call of the class's `__setattr__`."""
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
    """The state of the parts of a loader (samplers, data set, transforms), and of its random generators.

    An attribute is saved only if it has changed since this object was made: a value that never changes belongs to the
    program and not to a file. Of a long list of data, such as the samples of a data set, only the order is saved. An
    attribute that can't be saved, such as an open file or an object that was made later, is skipped.

    Args:
        loader: The source of the batches.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._types: dict[str, type] = {}
        self._lists: dict[tuple[str, str], list[Any]] = {}
        self._not_saved: set[tuple[str, str]] = set()
        self._initial: dict[str, dict[str, Any]] = {}
        walk = self._walk()
        self._parts = _by_name(walk, {})  # kept alive, because Python gives the id of a deleted object to a new one
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
        """The states of generators and the changed attributes, by the names of the objects."""
        walk, packer = self._walk(), self._packer()
        objects = _by_name(walk, self._names)
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
        """Restore what `state_dict` returned. If the loader has other parts, change nothing and return False."""
        walk = self._walk()
        objects = _by_name(walk, self._names)
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
            state = self._initial.get(name, {}) | saved["changed"].get(name, {})
            values = {key: packed for key, packed in state.items() if "order" not in packed}
            _unpack_into(part, values, unpacker, _loader_state_of)
        for (name, key), elements in self._lists.items():
            order = saved["changed"].get(name, {}).get(key, {}).get("order")
            now = _loader_state_of(objects[name]).get(key) if name in objects else None
            if isinstance(now, list):
                now[:] = elements if order is None else [elements[index] for index in order.tolist()]
        return True

    def _walk(self) -> Walk:
        return Walk(is_of_data).search([(self._loader, "data")])

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
    """The attributes of a part of a loader that may change. The weights of a transform that is a module do not."""
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
    """Whether a value is a list of many objects, of which only the order is saved."""
    return type(value) is list and len(value) > LONG_CONTAINER and not ATOMS.issuperset(set(map(type, value)))


def _order_of(now: Any, elements: list[Any]) -> dict[str, Tensor] | None:
    """The former places of a list's elements; None if the list has not changed, or has a new element."""
    if type(now) is not list or (len(elements) == len(now) and all(map(operator.is_, elements, now))):
        return None
    places = {id(element): index for index, element in enumerate(elements)}
    order = [places.get(id(element), -1) for element in now]
    return None if -1 in order else {"order": torch.tensor(order)}


def _kinds(objects: Mapping[str, Any]) -> list[str]:
    parts = [part for part in itertools.islice(objects.values(), _COMPARED_PARTS) if not isinstance(part, FunctionType)]
    return [type(part).__name__ for part in parts]
