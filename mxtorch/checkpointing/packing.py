"""Values of any common kind as tagged plain values, which `torch.load(weights_only=True)` reads, and back again.

A packed value is a dictionary with one entry, its kind and content: `{"value": 3}`, `{"items": ["tuple", [...]]}`.
Nothing is made on the way back but what this module knows: numbers, text, tensors, arrays, generators, containers,
paths and dates, and instances of enumerations, named tuples and dataclasses that the program has defined already.
Objects that a program made itself are not made anew: they are referred to by name.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import random
import sys
import types
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mxtorch.checkpointing.random_state import is_generator, packed_generator, set_packed_generator
from mxtorch.checkpointing.reachable import bytes_of, is_plain_object, slots_of

Packed = dict[str, Any]

VALUES: frozenset[type] = frozenset(
    (type(None), bool, int, float, complex, str, torch.dtype, torch.device)  # all readable as they are
)
_CONTAINERS = {one.__name__: one for one in (list, tuple, set, frozenset, deque, torch.Size)}
_MAPPINGS = {one.__name__: one for one in (dict, OrderedDict, defaultdict, Counter)}
_FACTORIES = {one.__name__: one for one in (int, float, str, list, dict, set, tuple, bool)}
# How a constant is taken apart and made again of plain arguments.
_CONSTANTS: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    "range": (range, lambda one: (one.start, one.stop, one.step), range),
    "slice": (slice, lambda one: (one.start, one.stop, one.step), slice),
    "bytes": (bytes, lambda one: (one.decode("latin-1"),), lambda one: one.encode("latin-1")),
    "bytearray": (bytearray, lambda one: (one.decode("latin-1"),), lambda one: bytearray(one, "latin-1")),
    "Ellipsis": (type(Ellipsis), lambda one: (), lambda: Ellipsis),
    "path": (pathlib.Path, lambda one: (str(one),), pathlib.Path),
    "pure path": (pathlib.PurePosixPath, lambda one: (str(one),), pathlib.PurePosixPath),
    "Windows path": (pathlib.PureWindowsPath, lambda one: (str(one),), pathlib.PureWindowsPath),
    "Decimal": (decimal.Decimal, lambda one: (str(one),), decimal.Decimal),
    "Fraction": (fractions.Fraction, lambda one: (one.numerator, one.denominator), fractions.Fraction),
    "UUID": (uuid.UUID, lambda one: (str(one),), uuid.UUID),
    "datetime": (datetime.datetime, lambda one: (one.isoformat(),), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda one: (one.isoformat(),), datetime.date.fromisoformat),
    "time": (datetime.time, lambda one: (one.isoformat(),), datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda one: (one.days, one.seconds, one.microseconds),
        datetime.timedelta,
    ),
}
_CONSTANT_KINDS = {
    kind: name
    for name, (base, _, _) in _CONSTANTS.items()
    for kind in (base, *((type(pathlib.Path()),) if base is pathlib.Path else ()))
}
# Part of the program and of no state.
_PROGRAM = (types.ModuleType, weakref.ref, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)


class Packer:
    """Packs the attributes of a program's objects.

    Args:
        name: Gives the name of an object that the program made itself, of the object and its place, or raises a
            TypeError.
        types_: Enumerations, named tuples and dataclasses by name; gets those that are met.
        learning: The program has just made its objects: types that are defined in functions, which can't be found by
            their names, are noted.
        registered: The ids of tensors that are saved elsewhere.
        by_value: Whether an object is packed with all that it holds; others by their names.
        most: The number of values that one attribute may have.
        most_bytes: The size of the tensors and arrays that may be copied in all.
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
        """A copy of a value, packed.

        Args:
            value: An attribute.
            where: What to call it in an error.
            before: What was packed of it before; returned as it is where nothing has changed.

        Raises:
            TypeError: It can't be made again when it is read.
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
        name = kind.__name__
        if kind in (list, tuple, set, dict, OrderedDict) and holds_plain_values(value):
            if (again := self._again(value)) is not None:
                return again
            content = before["plain"][1] if before is not None and "plain" in before else None
            if type(content) is kind and _equal(content, value):
                assert before is not None
                return before
            return {"plain": [name, value if kind is tuple else value.copy()]}
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
            return {"constant": [constant, [self._pack(one, where) for one in _CONSTANTS[constant][1](value)]]}
        if isinstance(value, enum.Enum):
            return {"enum": [self._type(kind, where), value.name]}
        if isinstance(value, _PROGRAM):
            return {"same": None}
        return self._made_of_others(value, where, before)

    def _made_of_others(self, value: Any, where: str, before: Packed | None) -> Packed:
        kind = type(value)
        if kind in _CONTAINERS.values() or isinstance(value, (list, tuple, set, frozenset, deque)):
            if (again := self._again(value)) is not None:
                return again
            children = before["items"][1] if before is not None and "items" in before else ()
            children = children if len(children) == len(value) else [None] * len(value)
            items = [
                self._pack(one, f"{where}[{index}]", child)
                for index, (one, child) in enumerate(zip(value, children, strict=True))
            ]
            return {"items": [self._container(value, where), items, getattr(value, "maxlen", None)]}
        if isinstance(value, dict):
            if (again := self._again(value)) is not None:
                return again
            children = before["pairs"][1] if before is not None and "pairs" in before else ()
            children = children if len(children) == len(value) else [(None, None)] * len(value)
            pairs = [
                [self._pack(key, f"a key of {where}"), self._pack(one, f"{where}[{key!r}]", child[1])]
                for (key, one), child in zip(value.items(), children, strict=True)
            ]
            factory = getattr(getattr(value, "default_factory", None), "__name__", None)
            return {"pairs": [self._container(value, where), pairs, factory]}
        if is_plain_object(value) and self._by_value(value):
            if (again := self._again(value)) is not None:
                return again
            attributes = {key: self._pack(one, f"{where}.{key}") for key, one in attributes_of(value).items()}
            return {"object": [self._type(kind, where), attributes]}
        return {"same": self._name(value, where)}

    def _again(self, value: Any) -> Packed | None:
        """A reference to what was met before in this value."""
        if isinstance(value, (tuple, frozenset)):
            return None
        if id(value) in self._memo:
            return {"again": self._memo[id(value)]}
        self._memo[id(value)] = len(self._memo)
        return None

    def _tensor(self, tensor: Tensor, before: Packed | None) -> Packed:
        if id(tensor) in self._registered:
            return {"same": None}
        if before is not None and "tensor" in before and _unchanged(tensor, before["tensor"]):
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
        kind = type(value)
        name = kind.__name__
        if kind in _CONTAINERS.values() or kind in _MAPPINGS.values():
            return name
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._type(kind, where)
        return f"={self._name(value, where)}"

    def _type(self, kind: type, where: str) -> str:
        name = f"{kind.__module__}:{kind.__qualname__}"
        local = "<locals>" in name and not self._learning
        if local and name not in self._types:
            raise TypeError(
                f"{where} is a {kind.__qualname__}, which can't be found again when it is read; define it outside of "
                "functions"
            )
        if self._types.setdefault(name, kind) is not kind:
            raise TypeError(f"{where}: there are two types {name}; give them different names")
        return name


def _unchanged(tensor: Tensor, kept: list[Any]) -> bool:
    old = kept[0]
    return (
        tensor.layout is torch.strided
        and tensor.layout is old.layout
        and tensor.shape == old.shape
        and tensor.dtype == old.dtype
        and tensor.device == old.device
        and torch.equal(tensor.detach(), old)
    )


class Unpacker:
    """Makes values again, in the objects that hold them now where these can be changed.

    Args:
        part: Gives the program's object of a name.
        types_: Enumerations, named tuples and dataclasses by name, beside those that their modules give.
    """

    def __init__(self, part: Callable[[str], Any], types_: Mapping[str, type]) -> None:
        self._part = part
        self._types = types_
        self._made: list[Any] = []

    def unpack(self, packed: Packed, now: Any) -> Any:
        """The value; where `now` is an object that others may refer to, that object with the value in it.

        Raises:
            ValueError: It is of an unknown kind, or refers to what is not there.
        """
        self._made = []
        return self._unpack(packed, now)

    def _unpack(self, packed: Packed, now: Any) -> Any:
        ((kind, content),) = packed.items()
        method = getattr(self, f"_{kind.replace(' ', '_')}", None)
        if method is None or kind in ("unpack", "part", "types", "made", "type"):
            raise ValueError(f"an attribute is of the unknown kind {kind!r}")
        return method(content, now)

    def _value(self, content: Any, now: Any) -> Any:
        return content

    def _plain(self, content: list[Any], now: Any) -> Any:
        name, values = content
        kind = (_CONTAINERS | _MAPPINGS)[name]
        if kind is tuple:
            return tuple(values)
        value: Any = now if type(now) is kind else kind()
        self._made.append(value)
        if kind is list:
            value[:] = values
        else:
            value.clear()
            value.update(values)
        return value

    def _tensor(self, content: list[Any], now: Any) -> Any:
        values, is_parameter, trained = content
        fits = isinstance(now, Tensor) and now.shape == values.shape and now.dtype == values.dtype
        if fits and isinstance(now, nn.Parameter) == is_parameter and not now.is_inference():
            with torch.no_grad():
                (now if now.is_leaf else now.detach()).copy_(values)
            return now
        values = values.to(now.device) if isinstance(now, Tensor) else values.clone()
        return nn.Parameter(values, trained) if is_parameter else values.requires_grad_(trained)

    def _array(self, content: list[Any], now: Any) -> Any:
        values = content[1].numpy().astype(np.dtype(content[0]))
        fits = isinstance(now, np.ndarray) and now.shape == values.shape and now.dtype == values.dtype
        if fits and now.flags.writeable:
            now[...] = values
            return now
        return values

    def _bytes_array(self, content: list[Any], now: Any) -> Any:
        kind, shape, values = content
        return np.frombuffer(values, dtype=np.dtype(kind)).reshape(shape).copy()

    def _object_array(self, content: list[Any], now: Any) -> Any:
        shape, items = content
        values = np.empty(len(items), dtype=object)
        for index, item in enumerate(items):
            values[index] = self._unpack(item, None)
        return values.reshape(shape)

    def _scalar(self, content: list[Any], now: Any) -> Any:
        return np.frombuffer(content[2], dtype=np.dtype(content[1]))[0]

    def _generator(self, content: Packed, now: Any) -> Any:
        if type(now).__name__ != content["kind"]:
            now = _new_generator(content)
        set_packed_generator(now, content)
        return now

    def _constant(self, content: list[Any], now: Any) -> Any:
        name, arguments = content
        return _CONSTANTS[name][2](*(self._unpack(one, None) for one in arguments))

    def _enum(self, content: list[Any], now: Any) -> Any:
        kind: Any = self._type(content[0], enum.Enum)
        return kind[content[1]]

    def _same(self, content: str | None, now: Any) -> Any:
        return now if content is None else self._part(content)

    def _again(self, content: int, now: Any) -> Any:
        return self._made[content]

    def _items(self, content: list[Any], now: Any) -> Any:
        name, items, longest = content
        target = self._target(name, now, _CONTAINERS)
        old: list[Any] = [None] * len(items)
        if isinstance(now, (list, tuple, deque)) and len(now) == len(items):
            old = list(now)
        if isinstance(target, type):  # one that is made of all its elements at once
            values = [self._unpack(item, before) for item, before in zip(items, old, strict=True)]
            return target._make(values) if hasattr(target, "_make") else target(values)
        if isinstance(target, deque) and target.maxlen != longest:
            target = deque(maxlen=longest)
        self._made.append(target)
        values = [self._unpack(item, before) for item, before in zip(items, old, strict=True)]
        if isinstance(target, list):
            list.__setitem__(target, slice(None), values)
        else:
            target.clear()
            (target.update if isinstance(target, set) else target.extend)(values)
        return target

    def _pairs(self, content: list[Any], now: Any) -> Any:
        name, pairs, factory = content
        target = self._target(name, now, _MAPPINGS)
        if isinstance(target, defaultdict) and target is not now:
            if factory is not None and factory not in _FACTORIES:
                raise ValueError(f"a defaultdict has the factory {factory}, which only the program has")
            target.default_factory = _FACTORIES.get(factory)
        self._made.append(target)
        before = dict(now) if isinstance(now, dict) else {}
        items = []
        for packed_key, packed in pairs:
            key = self._unpack(packed_key, None)
            items.append((key, self._unpack(packed, before.get(key))))
        kind = OrderedDict if isinstance(target, OrderedDict) else dict
        kind.clear(target)
        kind.update(target, items)
        return target

    def _object(self, content: list[Any], now: Any) -> Any:
        name, attributes = content
        kind: Any = self._type(name, object)
        if not hasattr(kind, "__dataclass_params__"):
            raise ValueError(f"{name} is no dataclass")
        target = now if type(now) is kind and not kind.__dataclass_params__.frozen else object.__new__(kind)
        self._made.append(target)
        held = attributes_of(now) if type(now) is kind else {}
        for key, packed in attributes.items():
            object.__setattr__(target, key, self._unpack(packed, held.get(key)))
        for key in attributes_of(target).keys() - attributes.keys():
            object.__delattr__(target, key)
        return target

    def _target(self, name: str, now: Any, kinds: Mapping[str, type]) -> Any:
        """The container to fill: the one that is there, or a new one; the type for those that can't be filled."""
        if name.startswith("="):
            return self._part(name[1:])
        kind = kinds[name] if name in kinds else self._type(name, tuple)
        if issubclass(kind, (tuple, frozenset)):
            return kind
        return now if type(now) is kind else kind()

    def _type(self, name: str, base: type) -> type:
        kind = _found(name, self._types)
        is_ours = kind is not None and (
            issubclass(kind, enum.Enum) or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
        )
        if kind is None or not is_ours or not issubclass(kind, base):
            raise ValueError(f"there is no enumeration, named tuple or dataclass {name} here")
        return kind


def attributes_of(part: Any) -> dict[str, Any]:
    """What an object holds in `__dict__` and `__slots__`, or a function in its closure."""
    if isinstance(part, types.FunctionType):
        cells = zip(part.__code__.co_freevars, part.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    held = {name: getattr(part, name) for name in slots_of(type(part)) if hasattr(part, name)}
    return held | (object.__getattribute__(part, "__dict__") if type(part).__dictoffset__ else {})


def holds_plain_values(container: Any) -> bool:
    """Whether it holds numbers and text alone; keys may be tuples of such."""
    if isinstance(container, dict):
        keys = [one for key in container for one in (key if type(key) is tuple else (key,))]
        return VALUES.issuperset(set(map(type, keys))) and VALUES.issuperset(set(map(type, container.values())))
    return VALUES.issuperset(set(map(type, container)))


def is_plain(packed: Packed) -> bool:
    """Whether it is made of numbers, text and the program's own objects alone, which can be compared."""
    ((kind, content),) = packed.items()
    if kind == "items":
        return all(map(is_plain, content[1]))
    if kind == "pairs":
        return all(is_plain(key) and is_plain(value) for key, value in content[1])
    if kind == "object":
        return all(map(is_plain, content[1].values()))
    return kind not in ("tensor", "array", "generator", "bytes array", "object array")


def same(first: Packed, second: Packed) -> bool:
    """Whether two packed values are equal, in types and in the order of dictionaries, too."""
    if first is second:
        return True
    if first.keys() != second.keys():
        return False
    ((kind, a),) = first.items()
    b = second[kind]
    if kind == "value":
        return type(a) is type(b) and (a == b or (a != a and b != b))
    if kind == "plain":
        return a[0] == b[0] and _equal(a[1], b[1])
    if kind == "items":
        return a[0] == b[0] and a[2] == b[2] and len(a[1]) == len(b[1]) and all(map(same, a[1], b[1]))
    if kind == "pairs":
        pairs = zip(a[1], b[1], strict=False)
        return a[0] == b[0] and len(a[1]) == len(b[1]) and all(same(*k) and same(*v) for k, v in map(zip_pair, pairs))
    if kind == "object":
        return a[0] == b[0] and a[1].keys() == b[1].keys() and all(same(a[1][key], b[1][key]) for key in a[1])
    return kind in ("scalar", "constant", "enum", "same", "again") and bool(a == b)


def zip_pair(pairs: tuple[Any, Any]) -> Any:
    """Two pairs as a pair of firsts and a pair of seconds."""
    return zip(*pairs, strict=True)


def _equal(a: Any, b: Any) -> bool:
    if a != b or len(a) != len(b):
        return False
    if isinstance(a, dict):
        first, second = [*a, *a.values()], [*b, *b.values()]
        return first == second and list(map(type, first)) == list(map(type, second))
    return isinstance(a, set) or list(map(type, a)) == list(map(type, b))


def _found(name: str, known: Mapping[str, type]) -> type | None:
    if name in known:
        return known[name]
    module, _, qualified = name.partition(":")
    value: Any = sys.modules.get(module)
    for step in qualified.split("."):
        value = getattr(value, step, None)
    return value if isinstance(value, type) else None


def _new_generator(content: Packed) -> Any:
    kind, state = content["kind"], content["state"]
    if kind == "Generator" and isinstance(state, Tensor):
        return torch.Generator()
    if kind == "Random":
        return random.Random()  # nosec: its state is set next
    names = {"PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"}
    name = state["bit_generator"] if isinstance(state, dict) else None
    if name not in names or kind not in {"Generator", "RandomState", *names}:
        raise ValueError(f"a random generator is of the kind {kind}, which is not known here")
    bits = getattr(np.random, name)()
    return bits if kind == name else getattr(np.random, kind)(bits)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
