"""Values of any common kind as tagged plain values, which `torch.load(weights_only=True)` reads.

A packed value is a dictionary with one entry, its kind and its content: `{"value": 3}`, `{"items": ["tuple", [...]]}`.
`unpacking` makes the values again. Only kinds that this module knows are packed: numbers, text, tensors, arrays,
generators, containers, paths and dates, and instances of enumerations, named tuples and dataclasses. An object that the
program made itself is not packed; a packed value refers to it by its name.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import math
import pathlib
import types
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mxtorch.checkpointing.random_state import is_generator, packed_generator
from mxtorch.checkpointing.reachable import ABSENT, bytes_of, content_of, is_plain_object, slots_of

Packed = dict[str, Any]

# The types whose values `torch.load(weights_only=True)` reads without packing.
VALUES: frozenset[type] = frozenset((type(None), bool, int, float, complex, str, torch.dtype, torch.device))
CONTAINERS = {one.__name__: one for one in (list, tuple, set, frozenset, deque, torch.Size)}
MAPPINGS = {one.__name__: one for one in (dict, OrderedDict, defaultdict, Counter)}
# For each constant: its type, a function that gives its plain arguments, and the function that makes it from them.
CONSTANTS: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    "range": (range, lambda one: (one.start, one.stop, one.step), range),
    "slice": (slice, lambda one: (one.start, one.stop, one.step), slice),
    "bytes": (bytes, lambda one: (one.decode("latin-1"),), lambda one: one.encode("latin-1")),
    "bytearray": (bytearray, lambda one: (one.decode("latin-1"),), lambda one: bytearray(one, "latin-1")),
    "Ellipsis": (type(Ellipsis), lambda one: (), lambda: Ellipsis),
    "path": (type(pathlib.Path()), lambda one: (str(one),), pathlib.Path),
    "pure path": (pathlib.PurePosixPath, lambda one: (str(one),), pathlib.PurePosixPath),
    "Windows path": (pathlib.PureWindowsPath, lambda one: (str(one),), pathlib.PureWindowsPath),
    "Decimal": (decimal.Decimal, lambda one: (str(one),), decimal.Decimal),
    "Fraction": (fractions.Fraction, lambda one: (one.numerator, one.denominator), fractions.Fraction),
    "UUID": (uuid.UUID, lambda one: (str(one),), uuid.UUID),
    "datetime": (datetime.datetime, lambda one: (one.isoformat(),), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda one: (one.isoformat(),), datetime.date.fromisoformat),
    "time": (datetime.time, lambda one: (one.isoformat(),), datetime.time.fromisoformat),
    "timedelta": (datetime.timedelta, lambda one: (one.days, one.seconds, one.microseconds), datetime.timedelta),
}
_CONSTANT_KINDS = {kind: name for name, (kind, _, _) in CONSTANTS.items()}
# Objects of these types belong to the program. They hold no state of a training.
_PROGRAM = (types.ModuleType, weakref.ref, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
# Kinds that `is_plain` excludes: each of them can change in place, and comparing them would cost time.
_CHANGING = ("tensor", "array", "generator", "bytes array", "object array")


class Packer:
    """Packs the attributes of a program's objects.

    Args:
        name: Called with an object that the program made itself and with the place of the object. It returns the name
            of the object, or raises a TypeError.
        types_: Enumerations, named tuples and dataclasses by name. The packer adds the types that it packs.
        learning: True while the program has just made its objects. The packer then adds types that are defined in
            functions, which can't be found by their names later.
        registered: The ids of tensors that are saved elsewhere.
        by_value: Returns whether a dataclass instance is packed with its attributes. Other objects are packed as names.
        most: The largest number of values in one attribute.
        most_bytes: The largest size of all copied tensors and arrays together, in bytes.
    """

    def __init__(
        self,
        name: Callable[[Any, str], str],
        types_: dict[str, type],
        *,
        learning: bool = False,
        registered: frozenset[int] = frozenset(),
        by_value: Callable[[Any], bool] = is_plain_object,
        most: float = math.inf,
        most_bytes: float = math.inf,
    ) -> None:
        self._name = name
        self._types = types_
        self._learning = learning
        self._registered = registered
        self._memo: dict[int, int] = {}
        self._most = most
        self._left = most
        self._bytes_left = most_bytes
        self._by_value = by_value

    def pack(self, value: Any, where: str, before: Packed | None = None) -> Packed:
        """A packed copy of a value.

        Args:
            value: An attribute.
            where: The place of the attribute, for error messages.
            before: The packed attribute from an earlier call. `pack` returns this object if the attribute is unchanged.

        Raises:
            TypeError: The value has a kind that can't be packed.
        """
        self._memo, self._left = {}, self._most
        packed = self._pack(value, where, before)
        return before if before is not None and same(packed, before) else packed

    def _pack(self, value: Any, where: str, before: Packed | None = None) -> Packed:
        kind = type(value)
        if kind in VALUES:
            return {"value": value}
        self._left -= 1
        if self._left < 0:
            raise TypeError(f"{where} holds too many values")
        if kind in (list, tuple, set, dict, OrderedDict) and holds_plain_values(value):
            if (again := self._again(value)) is not None:
                return again
            if before is not None and "plain" in before:
                content = before["plain"][1]
                if type(content) is kind and _equal(content, value):
                    return before
            return {"plain": [kind.__name__, value if kind is tuple else value.copy()]}
        if isinstance(value, Tensor):
            return self._tensor(value, before)
        if isinstance(value, np.ndarray):
            return self._array(value, where, before)
        if isinstance(value, np.generic):
            return {"scalar": [kind.__name__, np.asarray(value).dtype.str, value.tobytes()]}
        if is_generator(value):
            return {"generator": packed_generator(value)}
        if kind in _CONSTANT_KINDS:
            constant = _CONSTANT_KINDS[kind]
            return {"constant": [constant, [self._pack(one, where) for one in CONSTANTS[constant][1](value)]]}
        if isinstance(value, enum.Enum):
            return {"enum": [self._type(kind, where), value.name]}
        if isinstance(value, _PROGRAM):
            return {"same": None}
        return self._made_of_others(value, where, before)

    def _made_of_others(self, value: Any, where: str, before: Packed | None) -> Packed:
        """A container or a dataclass instance, packed part by part; any other object as its name."""
        is_object = is_plain_object(value) and self._by_value(value)
        if not is_object and not isinstance(value, (list, tuple, set, frozenset, deque, dict)):
            return {"same": self._name(value, where)}
        if (again := self._again(value)) is not None:
            return again
        if isinstance(value, dict):
            children = before["pairs"][1] if before is not None and "pairs" in before else ()
            children = children if len(children) == len(value) else [(None, None)] * len(value)
            pairs = [
                [self._pack(key, f"a key of {where}"), self._pack(one, f"{where}[{key!r}]", child[1])]
                for (key, one), child in zip(value.items(), children, strict=True)
            ]
            factory = getattr(getattr(value, "default_factory", None), "__name__", None)
            return {"pairs": [self._container(value, where), pairs, factory]}
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            children = before["items"][1] if before is not None and "items" in before else ()
            children = children if len(children) == len(value) else [None] * len(value)
            items = [
                self._pack(one, f"{where}[{index}]", child)
                for index, (one, child) in enumerate(zip(value, children, strict=True))
            ]
            return {"items": [self._container(value, where), items, getattr(value, "maxlen", None)]}
        attributes = {key: self._pack(one, f"{where}.{key}") for key, one in attributes_of(value).items()}
        return {"object": [self._type(type(value), where), attributes]}

    def _again(self, value: Any) -> Packed | None:
        """A reference to an object that this attribute holds a second time; None the first time."""
        if isinstance(value, (tuple, frozenset)):
            return None
        if id(value) in self._memo:
            return {"again": self._memo[id(value)]}
        self._memo[id(value)] = len(self._memo)
        return None

    def _tensor(self, tensor: Tensor, before: Packed | None) -> Packed:
        if id(tensor) in self._registered:
            return {"same": None}
        if before is not None and "tensor" in before and _unchanged(tensor, before["tensor"][0]):
            return before
        self._count_bytes(bytes_of(tensor))
        trained = tensor.requires_grad and tensor.is_leaf
        return {"tensor": [tensor.detach().clone(), isinstance(tensor, nn.Parameter), trained]}

    def _array(self, array: np.ndarray[Any, Any], where: str, before: Packed | None) -> Packed:
        if array.dtype == object:
            items = [self._pack(one, f"{where}[{index}]") for index, one in enumerate(array.reshape(-1).tolist())]
            return {"object array": [list(array.shape), items]}
        if array.dtype.hasobject or array.dtype.names is not None:
            raise TypeError(f"{where} is an array of {array.dtype}, which a checkpoint can't hold; give one of numbers")
        if array.dtype.kind in "biufc" and array.dtype.itemsize <= 16 and array.dtype not in (np.longdouble,):
            if before is not None and "array" in before:
                old = before["array"][1].numpy()
                if old.dtype == array.dtype and old.shape == array.shape and old.tobytes() == array.tobytes():
                    return before
            self._count_bytes(array.nbytes)
            native = np.array(array, dtype=array.dtype.newbyteorder("="), copy=True)
            return {"array": [array.dtype.str, torch.from_numpy(native)]}
        return {"bytes array": [array.dtype.str, list(array.shape), array.tobytes()]}

    def _count_bytes(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise TypeError("the tensors and arrays are too large")

    def _container(self, value: Any, where: str) -> str:
        """The name of a container's type; for a class of the program's own, `=` and the name of the object."""
        kind = type(value)
        if kind in CONTAINERS.values() or kind in MAPPINGS.values():
            return kind.__name__
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._type(kind, where)
        return f"={self._name(value, where)}"

    def _type(self, kind: type, where: str) -> str:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if "<locals>" in name and not self._learning and name not in self._types:
            raise TypeError(
                f"{where} is a {kind.__qualname__}, which can't be found again when the checkpoint is read; define "
                f"{kind.__qualname__} outside of functions"
            )
        if self._types.setdefault(name, kind) is not kind:
            raise TypeError(f"{where}: there are two types {name}; give them different names")
        return name


def _unchanged(tensor: Tensor, old: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.layout is old.layout
        and tensor.shape == old.shape
        and tensor.dtype == old.dtype
        and tensor.device == old.device
        and torch.equal(tensor.detach(), old)
    )


def attributes_of(part: Any) -> dict[str, Any]:
    """What an object holds in `__dict__` and `__slots__`, or a function in its closure."""
    if isinstance(part, types.FunctionType):
        cells = zip(part.__code__.co_freevars, part.__closure__ or (), strict=True)
        return {name: content for name, cell in cells if (content := content_of(cell)) is not ABSENT}
    held = {name: getattr(part, name) for name in slots_of(type(part)) if hasattr(part, name)}
    return held | (object.__getattribute__(part, "__dict__") if type(part).__dictoffset__ else {})


def holds_plain_values(container: Any) -> bool:
    """Whether a container holds only numbers and text. The keys of a dictionary may also be tuples of these."""
    if isinstance(container, dict):
        keys = [one for key in container for one in (key if type(key) is tuple else (key,))]
        return VALUES.issuperset(set(map(type, keys))) and VALUES.issuperset(set(map(type, container.values())))
    return VALUES.issuperset(set(map(type, container)))


def is_plain(packed: Packed) -> bool:
    """Whether a packed value consists of numbers, text and names of the program's own objects, which compare fast."""
    ((kind, content),) = packed.items()
    if kind == "items":
        return all(map(is_plain, content[1]))
    if kind == "pairs":
        return all(is_plain(key) and is_plain(value) for key, value in content[1])
    if kind == "object":
        return all(map(is_plain, content[1].values()))
    return kind not in _CHANGING


def same(first: Any, second: Any) -> bool:
    """Whether two packed values are equal in values, types, and the order of dictionaries; two tensors never are."""
    if first is second:
        return True
    if type(first) is not type(second) or isinstance(first, Tensor):
        return False
    if isinstance(first, dict):
        if "plain" in first and "plain" in second:
            (name, values), (other_name, other_values) = first["plain"], second["plain"]
            return bool(name == other_name) and _equal(values, other_values)
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or (first != first and second != second))


def _equal(a: Any, b: Any) -> bool:
    """Whether two containers of plain values are equal in values and types, in the time of a few built-in calls."""
    if a != b or len(a) != len(b):
        return False
    if isinstance(a, dict):
        first, second = [*a, *a.values()], [*b, *b.values()]
        return first == second and list(map(type, first)) == list(map(type, second))
    return isinstance(a, set) or list(map(type, a)) == list(map(type, b))
