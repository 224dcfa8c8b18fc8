"""What a batch is: its inputs and targets, its size, where its tensors are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

Batch = Any

LABEL_KEYS = ("labels", "label", "targets", "target")


class Example(NamedTuple):
    """A batch taken apart: `model(*inputs, **named_inputs)` is compared with `targets`."""

    inputs: tuple[Any, ...]
    named_inputs: dict[str, Any]
    targets: Any


def split_batch(batch: Batch, *, keep_labels: bool = False) -> Example:
    """Take a batch apart.

    `(x, y)` has one input and a target; in a longer tuple or list all but the last are inputs; a dictionary's
    entries are passed by name (Hugging Face style), its `labels` (or `label`, `targets`, `target`) being the
    target; anything else is an input without a target.

    Args:
        batch: What a loader yields.
        keep_labels: Leave a dictionary's labels among the inputs, for models that compute their own loss.
    """
    if isinstance(batch, Mapping):
        named = dict(batch)
        key = next((key for key in LABEL_KEYS if key in named), None)
        targets = None if key is None else named[key]
        if key is not None and not keep_labels:
            del named[key]
        return Example((), named, targets)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return Example(tuple(batch[:-1]), {}, batch[-1])
    if isinstance(batch, (tuple, list)):
        return Example(tuple(batch), {}, None)
    return Example((batch,), {}, None)


def batch_size(batch: Batch) -> int | None:
    """The length of the first tensor's first dimension; None where there is no such tensor."""
    if type(batch) in (tuple, list) and batch and isinstance(batch[0], Tensor) and batch[0].ndim:
        return batch[0].shape[0]  # the usual case, without the search
    for value in _leaves(batch):
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0]
    return None


def move(batch: Batch, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
    """The batch with every tensor on `device`, images (4-d floats) in `memory_format` when one is given.

    Copies do not block where the source is in pinned memory.
    """
    if isinstance(batch, Tensor):
        if memory_format is not None and batch.ndim == 4 and batch.is_floating_point():
            return batch.to(device, non_blocking=True, memory_format=memory_format)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move(value, device, memory_format) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return _like(batch, [move(value, device, memory_format) for value in batch])
    return batch


def to_host(value: Any) -> Any:
    """Tensors on the CPU, half-precision ones in float32; structure kept."""
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype)
    if isinstance(value, Mapping):
        return {key: to_host(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [to_host(item) for item in value])
    return value


def detached(value: Any) -> Any:
    """The same without its graph; structure kept."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: detached(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [detached(item) for item in value])
    return value


class Window(NamedTuple):
    """The batches that one optimizer step accumulates over.

    Attributes:
        batches: As the loader gave them.
        sizes: The number of samples in each; 1 where it can't be told.
        samples: Their sum.
    """

    batches: list[Batch]
    sizes: list[int]
    samples: int


def windows(data: Iterable[Batch], length: int) -> Iterator[Window]:
    """Groups of `length` batches, the last one as short as it comes."""
    iterator = iter(data)
    while group := list(islice(iterator, length)):
        sizes = [batch_size(batch) or 1 for batch in group]
        yield Window(group, sizes, sum(sizes))


def describe(value: Any) -> str:
    """A batch in words, for error messages: `tuple of (float32 tensor [32, 3, 224, 224], int64 tensor [32])`."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return "dict of {" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of (" + ", ".join(describe(item) for item in value[:8]) + ")"
    return type(value).__name__


def concatenate(parts: Sequence[Any]) -> Any:
    """Join what batches gave, structure by structure: tensors along the first dimension, the rest into a list."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part if part.ndim else part.unsqueeze(0) for part in parts])
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        return _like(first, [concatenate(items) for items in zip(*parts, strict=True)])
    return list(parts)


def _like(sequence: Any, items: list[Any]) -> Any:
    """The items in a tuple or list of the same kind; a named tuple takes them one by one."""
    return type(sequence)(*items) if hasattr(sequence, "_fields") else type(sequence)(items)


def _leaves(batch: Batch) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch
