"""Nested structures of tensors: tuples, lists, dictionaries, data classes, as loaders and models give them.

`torch.utils._pytree` walks tuples, lists, named tuples and dictionaries. Other mappings, such as the `BatchEncoding` of
transformers, are leaves to it; they are walked here as dictionaries. Instances of data classes are walked by fields.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# Elements of each tensor that a batch is recognised by: enough to tell two batches apart, quick for large images.
COMPARED_ELEMENTS = 4096


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with `function` applied to every tensor; everything else stays as it is.

    >>> map_tensors(lambda tensor: tensor.shape[0], {"x": torch.zeros(3, 2), "name": "cat"})
    {'x': 3, 'name': 'cat'}
    """

    def apply(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if isinstance(leaf, Mapping):
            return map_tensors(function, dict(leaf))
        return _with_fields(leaf, lambda field: map_tensors(function, field)) if _has_fields(leaf) else leaf

    return function(value) if isinstance(value, Tensor) else tree_map(apply, value)


def move_tensors(move: Callable[[Tensor], Any], value: Any, device: torch.device) -> Any:
    """The same structure with every tensor moved; an object that has a `to` of its own is moved by that.

    Such are `PackedSequence`, whose batch sizes stay on the CPU, and the batches of graph libraries.

    Args:
        move: Moves a tensor.
        value: The structure.
        device: What `to` is given.
    """

    def apply(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return move(leaf)
        if isinstance(leaf, Mapping):
            return move_tensors(move, dict(leaf), device)
        if callable(getattr(leaf, "to", None)) and not isinstance(leaf, type):
            moved = leaf.to(device)
            return leaf if moved is None else moved  # some move themselves
        return _with_fields(leaf, lambda field: move_tensors(move, field, device)) if _has_fields(leaf) else leaf

    def is_leaf(node: Any) -> bool:
        return isinstance(node, tuple) and hasattr(node, "to")

    return move(value) if isinstance(value, Tensor) else tree_map(apply, value, is_leaf=is_leaf)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a structure, in its order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(dict(leaf))
        elif _has_fields(leaf):
            yield from tensors_in([getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)])


def detached(value: Any) -> Any:
    """The same structure without the graph of its tensors."""
    return map_tensors(Tensor.detach, value)


def to_host(value: Any) -> Any:
    """The same structure on the CPU, half-precision tensors in float32."""

    def move(tensor: Tensor) -> Tensor:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        return tensor.to("cpu", torch.float32 if half else tensor.dtype)

    return map_tensors(move, value)


def concatenate(parts: Sequence[Any]) -> Any:
    """Structures of one shape, joined: tensors along the first dimension, everything else into lists.

    A list of dictionaries has one for each sample, as detectors give them: such lists are put one after the other.
    """
    first = parts[0]
    if all(isinstance(part, list) and all(isinstance(item, Mapping) for item in part) for part in parts) and any(parts):
        return [item for part in parts for item in part]
    if isinstance(first, Tensor):
        return torch.cat([part if part.ndim else part.unsqueeze(0) for part in parts])
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        joined = [concatenate(items) for items in zip(*parts, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    return list(parts)


def digest(value: Any) -> int:
    """A checksum of the numbers in a batch; of large tensors an even selection."""
    if isinstance(value, Tensor):
        flat = value.detach().reshape(-1)
        chosen = flat[:: max(1, flat.numel() // COMPARED_ELEMENTS)].cpu().contiguous()
        return zlib.crc32(
            chosen.view(torch.uint8).numpy().tobytes(), zlib.crc32(repr((value.shape, value.dtype)).encode())
        )
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        return zlib.crc32(repr([digest(item) for item in value]).encode())
    plain = isinstance(value, (str, bytes, bool, int, float, type(None)))
    return zlib.crc32(repr(value).encode() if plain else type(value).__name__.encode())


def describe(value: Any) -> str:
    """A structure in words, for error messages.

    >>> describe((torch.zeros(32, 3), torch.zeros(32, dtype=torch.long)))
    'tuple of (float32 tensor [32, 3], int64 tensor [32])'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return "dict of {" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of (" + ", ".join(describe(item) for item in value[:8]) + ")"
    if _has_fields(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return f"{type(value).__name__} of (" + ", ".join(f"{k}={describe(v)}" for k, v in fields.items()) + ")"
    return type(value).__name__


def _has_fields(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _with_fields(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of an instance of a data class with its fields changed, also of a frozen one; `__init__` is not called."""
    twin = copy.copy(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            object.__setattr__(twin, field.name, change(getattr(value, field.name)))
    return twin
