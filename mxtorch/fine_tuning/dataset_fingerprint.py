"""Whether a data set gives the same items every time, and whether it has changed since it was last read."""

from __future__ import annotations

import hashlib
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from mxtorch.checkpointing.snapshot import parts_of

# How many items are read twice to find out whether they change.
CHECKED_ITEMS = 8
# Transforms of torchvision that are random and whose names do not begin with "Random".
_RANDOM_NAMES = (
    "ColorJitter",
    "AutoAugment",
    "RandAugment",
    "TrivialAugmentWide",
    "AugMix",
    "ElasticTransform",
    "GaussianNoise",
    "ScaleJitter",
    "JPEG",
    "MixUp",
    "CutMix",
)


class CacheError(ValueError):
    """The features of these data can't be kept; the message says why.

    Example:
        >>> issubclass(CacheError, ValueError)
        True
    """


def split_item(item: Any) -> tuple[Tensor, Any]:
    """The input and the rest of an item: `(x, y)`, or `x` alone, whose rest is None.

    Raises:
        CacheError: It has another form.
    """
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor):
        return item[0], item[1]
    raise CacheError(f"an item is a {type(item).__name__}, not (input, target) with a tensor as the input")


def join_batch(inputs: Tensor, rest: list[Any]) -> Any:
    """A batch as the loader would give it: the inputs, and the collated targets, if there are any."""
    return inputs if all(value is None for value in rest) else [inputs, default_collate(rest)]


def check_loader(loader: Any) -> None:
    """Raise a CacheError unless a loader takes single items of a data set by index and joins them as torch does."""
    if type(loader) is not DataLoader:
        raise CacheError(f"it is a {type(loader).__name__}, not a torch.utils.data.DataLoader")
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise CacheError("its data set has no indices")
    if loader.batch_sampler is None:
        raise CacheError("its data set makes the batches (batch_size=None)")
    if loader.collate_fn is not default_collate:
        raise CacheError("it has a collate_fn of its own, which may look at the inputs")
    if len(loader.dataset) == 0:
        raise CacheError("its data set is empty")


def random_transform(loader: Any) -> str | None:
    """The name of a random transform of torchvision in a loader's data set; None if there is none to be found."""
    for part in parts_of(loader.dataset):
        name = type(part).__name__
        if "torchvision.transforms" in type(part).__module__ and (name.startswith("Random") or name in _RANDOM_NAMES):
            return name
    return None


def checked_indices(count: int) -> list[int]:
    """The indices of some items, evenly spaced over a data set."""
    step = max(1, count // CHECKED_ITEMS)
    return list(range(0, count, step))[:CHECKED_ITEMS]


def fingerprint(value: Tensor) -> bytes:
    """A hash of a tensor's values and shape."""
    host = value.detach().cpu().contiguous()
    digest = hashlib.blake2b(repr((host.dtype, tuple(host.shape))).encode(), digest_size=16)
    digest.update(host.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def fingerprints(dataset: Any) -> dict[int, bytes]:
    """The hashes of the inputs of some items, which are read again."""
    return {index: fingerprint(split_item(dataset[index])[0]) for index in checked_indices(len(dataset))}


def changes(dataset: Any) -> bool:
    """Whether items differ from one reading to the next."""
    return fingerprints(dataset) != fingerprints(dataset)


def digest(dataset: Any) -> bytes:
    """A hash of a data set's whole definition: lists of samples, settings of transforms, size and time of its files.

    A data set that can't be pickled gets a new hash each time, so that it counts as changed.
    """
    writer = _HashWriter()
    try:
        _Pickler(writer).dump(dataset)
    except Exception:  # whatever the objects in the data set raise when they are pickled
        return os.urandom(16)
    return writer.hash.digest()


def checksum(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """What changes when parameters or buffers change: which tensors they are, their versions, sums of their bits.

    The sums also reveal changes through `.data`, which torch does not count as a new version. They cost milliseconds.
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        value.detach().reshape(-1).view(bits[value.element_size()]).sum(dtype=torch.int64) for value in tensors.values()
    ]
    totals = torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []  # waits for them once
    return tuple(
        (name, value.data_ptr(), value._version, total)
        for (name, value), total in zip(tensors.items(), totals, strict=True)
    )


def values_of(tensors: dict[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """What tells whether the values of parameters and buffers are others: a CRC-32 of each.

    It is quick, because a search asks after each of its trainings, and need not withstand a forger.
    """
    return tuple(
        (name, zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data))
        for name, value in tensors.items()
    )


class _HashWriter:
    """A file that keeps only the hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


class _Pickler(pickle.Pickler):
    """Pickles a data set; where it names a file, the size and time of the file are written, too."""

    def __init__(self, writer: _HashWriter) -> None:
        super().__init__(writer, protocol=5)
        self._writer = writer

    def persistent_id(self, value: Any) -> Any:
        """None: everything is pickled as usual."""
        if isinstance(value, (str, Path)) and len(str(value)) < 4096 and os.path.isfile(value):
            facts = os.stat(value)
            self._writer.write(repr((facts.st_size, facts.st_mtime_ns)).encode())
        return None
