"""Nested structures of tensors: tuples, lists, dictionaries, as loaders and models give them.

`torch.utils._pytree` walks tuples, lists, named tuples and dictionaries. Other mappings, such as the `BatchEncoding` of
transformers, are leaves to it; they are walked here as dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with `function` applied to every tensor; everything else stays as it is.

    >>> map_tensors(lambda tensor: tensor.shape[0], {"x": torch.zeros(3, 2), "name": "cat"})
    {'x': 3, 'name': 'cat'}
    """

    def apply(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        return map_tensors(function, dict(leaf)) if isinstance(leaf, Mapping) else leaf

    return function(value) if isinstance(value, Tensor) else tree_map(apply, value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a structure, in its order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(dict(leaf))


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
    """Structures of one shape, joined: tensors along the first dimension, everything else into lists."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part if part.ndim else part.unsqueeze(0) for part in parts])
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        joined = [concatenate(items) for items in zip(*parts, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    return list(parts)


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
    return type(value).__name__
