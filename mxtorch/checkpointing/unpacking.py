"""The values that `packing` packed, made again."""

from __future__ import annotations

import dataclasses
import enum
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mxtorch.checkpointing.packing import CONSTANTS, CONTAINERS, MAPPINGS, Packed, attributes_of
from mxtorch.checkpointing.random_state import set_packed_generator

_FACTORIES = {one.__name__: one for one in (int, float, str, list, dict, set, tuple, bool)}
_BIT_GENERATORS = frozenset(("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"))


class Unpacker:
    """Makes packed values again. An object that can be changed gets its old value in place.

    Nothing is made except the kinds that `packing` names, and instances of types that the program has defined already.

    Args:
        part: Returns the program's object of a name.
        types_: Enumerations, named tuples and dataclasses by name. Types that are not in it are looked up in their
            modules.
    """

    def __init__(self, part: Callable[[str], Any], types_: Mapping[str, type]) -> None:
        self._part = part
        self._types = types_
        self._made: list[Any] = []

    def unpack(self, packed: Packed, now: Any) -> Any:
        """The value of an attribute.

        Args:
            packed: The packed value.
            now: The present value of the attribute. Others may refer to this object, so the value is put into it where
                that is possible.

        Raises:
            ValueError: The value has an unknown kind, or refers to something that is not there.
        """
        self._made = []
        return self._unpack(packed, now)

    def _unpack(self, packed: Packed, now: Any) -> Any:
        ((kind, content),) = packed.items()
        if kind not in _BY_KIND:
            raise ValueError(f"an attribute has the unknown kind {kind!r}")
        return _BY_KIND[kind](self, content, now)

    def _plain(self, content: list[Any], now: Any) -> Any:
        name, values = content
        kind = (CONTAINERS | MAPPINGS)[name]
        if kind is tuple:
            return tuple(values)
        value: Any = now if type(now) is kind else kind()
        self._made.append(value)
        value.clear()
        (value.extend if kind is list else value.update)(values)
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

    def _object_array(self, content: list[Any], now: Any) -> Any:
        shape, items = content
        values = np.empty(len(items), dtype=object)
        for index, item in enumerate(items):
            values[index] = self._unpack(item, None)
        return values.reshape(shape)

    def _generator(self, content: Packed, now: Any) -> Any:
        if type(now).__name__ != content["kind"]:
            now = _new_generator(content)
        set_packed_generator(now, content)
        return now

    def _constant(self, content: list[Any], now: Any) -> Any:
        name, arguments = content
        return CONSTANTS[name][2](*(self._unpack(one, None) for one in arguments))

    def _items(self, content: list[Any], now: Any) -> Any:
        name, items, longest = content
        target = self._target(name, now, CONTAINERS)
        old: list[Any] = [None] * len(items)
        if isinstance(now, (list, tuple, deque)) and len(now) == len(items):
            old = list(now)
        if isinstance(target, type):  # a tuple or a frozenset is made from all its elements at once
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
        target = self._target(name, now, MAPPINGS)
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
        kind = self._type(name, object)
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
        """The container to fill: the present one, or a new one. For a tuple or frozenset it is the type."""
        if name.startswith("="):
            return self._part(name[1:])
        kind = kinds[name] if name in kinds else self._type(name, tuple)
        if issubclass(kind, (tuple, frozenset)):
            return kind
        return now if type(now) is kind else kind()

    def _type(self, name: str, base: type) -> Any:
        """The enumeration, named tuple or dataclass of a name: a file can name no other type."""
        if name in self._types:
            kind: Any = self._types[name]
        else:
            module, _, qualified = name.partition(":")
            kind = sys.modules.get(module)
            for step in qualified.split("."):
                kind = getattr(kind, step, None)
        is_known = isinstance(kind, type) and (
            issubclass(kind, enum.Enum) or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
        )
        if not is_known or not issubclass(kind, base):
            raise ValueError(f"there is no enumeration, named tuple or dataclass {name} here")
        return kind


_BY_KIND: dict[str, Callable[[Unpacker, Any, Any], Any]] = {
    "value": lambda unpacker, content, now: content,
    "plain": Unpacker._plain,
    "tensor": Unpacker._tensor,
    "array": Unpacker._array,
    "bytes array": lambda unpacker, content, now: _array_from(content[2], content[0]).reshape(content[1]).copy(),
    "object array": Unpacker._object_array,
    "scalar": lambda unpacker, content, now: _array_from(content[2], content[1])[0],
    "generator": Unpacker._generator,
    "constant": Unpacker._constant,
    "enum": lambda unpacker, content, now: unpacker._type(content[0], enum.Enum)[content[1]],
    "same": lambda unpacker, content, now: now if content is None else unpacker._part(content),
    "again": lambda unpacker, content, now: unpacker._made[content],
    "items": Unpacker._items,
    "pairs": Unpacker._pairs,
    "object": Unpacker._object,
}


def _array_from(values: bytes, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(values, dtype=np.dtype(kind))


def _new_generator(content: Packed) -> Any:
    kind, state = content["kind"], content["state"]
    if kind == "Generator" and isinstance(state, Tensor):
        return torch.Generator()
    if kind == "Random":
        return random.Random()  # nosec: its state is set next
    name = state["bit_generator"] if isinstance(state, dict) else None
    if name not in _BIT_GENERATORS or kind not in {"Generator", "RandomState", *_BIT_GENERATORS}:
        raise ValueError(f"a random generator has the unknown kind {kind}")
    bits = getattr(np.random, name)()
    return bits if kind == name else getattr(np.random, kind)(bits)
