"""Data for several processes: each process gets its share of what one process with a larger batch would be given.

Two processes with batches of 16 see in each step the samples that one process with batches of 32 sees. The main process
draws the order and tells it to the others, so it is that of the loader's own sampler, whatever kind that is. Samples
that are left over at the end are split as evenly as they can be, and none is there twice: a process that would be left
without any runs a batch along that counts nothing (`Padding`), so that all processes take the same number of steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from mxtorch._structure import digest
from mxtorch.data.mixing import Mixed

# Of a sampler without a length the order is drawn so many batches of all processes at a time.
BATCHES_AHEAD = 1024
_LOADER_SETTINGS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    *("prefetch_factor", "persistent_workers"),
)


class Padding:
    """A batch that counts nothing: other processes have samples left, and this one has none.

    Attributes:
        batch: To be run along, where models exchange numbers while they run; its loss weighs nothing.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class Dealing(Protocol):
    """How data are dealt, which an engine knows.

    Attributes:
        rank: The place of this process, from 0.
        world_size: The number of processes.
        whole: Whether all shares are dealt to this process, one after the other, as in a search alone.
    """

    rank: int
    world_size: int
    whole: bool

    def broadcast(self, value: Any) -> Any:
        """What the main process gives."""

    def gather(self, value: Any) -> list[Any]:
        """What all processes give, in their order."""


def share(data: Any, dealing: Dealing) -> Any:
    """This process's share of data, as data of the same kind.

    Data that are shared already, by this, by torch's `DistributedSampler` or by Accelerate, stay as they are.
    """
    if is_shared(data):
        return data
    if isinstance(data, Mixed):
        mixed = copy.copy(data)
        mixed.data = share(data.data, dealing)
        return mixed
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset) and _is_plain(data):
        return _shared_loader(data, dealing)
    return SharedBatches(data, dealing)


def _shared_loader(data: DataLoader[Any], dealing: Dealing) -> DataLoader[Any]:
    settings = {name: getattr(data, name) for name in _LOADER_SETTINGS}
    for name in ("pin_memory_device", "in_order"):
        if (value := getattr(data, name, None)) not in (None, "", True):
            settings[name] = value
    if data.batch_sampler is None:  # the data set gives what the sampler asks for as it is
        return DataLoader(
            data.dataset, batch_size=None, sampler=SharedSampler(data.sampler, None, False, dealing), **settings
        )
    sampler: Any = data.batch_sampler
    if type(sampler) is BatchSampler:
        shared = SharedSampler(sampler.sampler, sampler.batch_size, sampler.drop_last, dealing)
    else:
        shared = SharedSampler(sampler, None, False, dealing)
    return DataLoader(data.dataset, batch_sampler=shared, **settings)


class SharedSampler(Sampler[Any]):
    """A process's share of what a sampler, or a batch sampler, gives.

    Args:
        sampler: Gives indices, or whole batches of them.
        batch_size: Of one process; None where `sampler` gives batches.
        drop_last: Leave out the samples that do not fill a batch on every process.
        dealing: How they are dealt.

    Attributes:
        count: This process's batches in the pass that was begun last; what comes after them is padding. None before
            it is known.
    """

    def __init__(self, sampler: Any, batch_size: int | None, drop_last: bool, dealing: Dealing) -> None:
        self.sampler, self.batch_size, self.drop_last, self.dealing = sampler, batch_size, drop_last, dealing
        self.count: int | None = None

    @property
    def _items(self) -> int:
        """Items of the sampler to a step of all processes."""
        return self.dealing.world_size * (self.batch_size or 1)

    def __len__(self) -> int:
        items = len(self.sampler)
        if self.dealing.whole:
            steps, rest = divmod(items, self._items)
            return steps * self.dealing.world_size + (0 if self.drop_last or not rest else len(self._parts([0] * rest)))
        return items // self._items if self.drop_last else -(-items // self._items)

    def __iter__(self) -> Iterator[Any]:
        rank, batches = self.dealing.rank, 0
        self.count = None
        for group in self._groups():
            parts = self._parts(group)
            if self.dealing.whole:
                yield from parts
                continue
            own = rank < len(parts)
            if not own and self.count is None:
                self.count = batches
            batches += 1
            # Only the last group may have too few for all.
            yield parts[rank] if own else parts[-1] if self.batch_size is None else group

    def _groups(self) -> Iterator[list[Any]]:
        """The items of each step of all processes, in the order that the main process draws."""
        source = iter(self.sampler)
        try:
            ahead, ends = len(self.sampler), True
        except TypeError:
            ahead, ends = BATCHES_AHEAD * self._items, False
        while True:
            # The others draw as well, so that generators of their samplers keep in step with the main process's.
            drawn: Any = list(source if ends else itertools.islice(source, ahead))
            if not self.dealing.whole:
                plain = bool(drawn) and set(map(type, drawn)) == {int}
                agreed = self.dealing.broadcast(np.asarray(drawn) if plain else drawn)
                drawn = agreed.tolist() if isinstance(agreed, np.ndarray) else agreed
            for start in range(0, len(drawn), self._items):
                group = drawn[start : start + self._items]
                if len(group) == self._items or not self.drop_last:
                    yield group
            if ends or len(drawn) < ahead:
                return

    def _parts(self, group: list[Any]) -> list[Any]:
        """A step's batches, one for each process that has one."""
        if self.batch_size is None:
            return group
        if len(group) == self._items:
            size = self.batch_size
            return [group[start : start + size] for start in range(0, len(group), size)]
        even, more = divmod(len(group), self.dealing.world_size)
        sizes = [even + (rank < more) for rank in range(self.dealing.world_size)]
        ends = list(itertools.accumulate(sizes))
        return [group[end - size : end] for end, size in zip(ends, sizes, strict=True) if size]


class SharedBatches:
    """A process's share of the batches of an iterable: each process reads all of them, and takes each so-manieth.

    What else the data have, as `set_epoch`, `state_dict` or `dataset`, is looked up there.

    Args:
        data: Batches, in the same order on every process.
        dealing: How they are dealt.

    Raises:
        ValueError: From a pass: the processes do not read the same batches.
    """

    def __init__(self, data: Iterable[Any], dealing: Dealing) -> None:
        self.data, self.dealing = data, dealing

    def __len__(self) -> int:
        batches = len(self.data)  # type: ignore[arg-type]
        return batches if self.dealing.whole else -(-batches // self.dealing.world_size)

    def __iter__(self) -> Iterator[Any]:
        rank, size = self.dealing.rank, self.dealing.world_size
        iterator = iter(self.data)
        first = True
        while group := list(itertools.islice(iterator, size)):
            if self.dealing.whole:
                yield from group
                continue
            if first:
                self._compare(group)
                first = False
            yield group[rank] if rank < len(group) else Padding(group[-1])

    def _compare(self, group: Sequence[Any]) -> None:
        """Raise where another process reads other data."""
        digests = self.dealing.gather([digest(batch) for batch in group])
        if any(other != digests[0] for other in digests):
            raise ValueError(
                "data: the processes read different batches from it, so that it can't be split among them. Give a "
                "DataLoader over a data set with indices; or let the order be the same on all processes, as by a "
                "seed of its own; or, where each process reads its own part already, say so with "
                "Trainer(engine=DistributedEngine(split_data=False))"
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("data", "dealing"):
            raise AttributeError(name)
        return getattr(self.data, name)


def is_shared(data: Any) -> bool:
    """Whether each process has data of its own already."""
    if isinstance(data, SharedBatches):
        return True
    if isinstance(data, Mixed):
        return is_shared(data.data)
    samplers = [getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    samplers += [getattr(one, "sampler", None) for one in samplers]
    if any(isinstance(one, SharedSampler) or hasattr(one, "num_replicas") for one in samplers if one is not None):
        return True
    return any(base.__module__ == "accelerate.data_loader" for base in type(data).__mro__)


def is_dealt(data: Any) -> bool:
    """Whether data were shared by `share`, which can deal a process the batches of all."""
    if isinstance(data, Mixed):
        return is_dealt(data.data)
    samplers = (getattr(data, "batch_sampler", None), getattr(data, "sampler", None))
    return isinstance(data, SharedBatches) or any(isinstance(sampler, SharedSampler) for sampler in samplers)


def own_batches(data: Any) -> int | None:
    """How many batches of the pass over a loader that was begun last are this process's; None where all are.

    A loader can't say of a batch that it is padding, since workers load it; its sampler knows from which one on.
    """
    if isinstance(data, Mixed):
        return own_batches(data.data)
    for sampler in (getattr(data, "batch_sampler", None), getattr(data, "sampler", None)):
        if isinstance(sampler, SharedSampler):
            return sampler.count
    return None


def marked(data: Iterable[Any]) -> Iterator[Any]:
    """The batches of data, those that count nothing as `Padding`."""
    for index, batch in enumerate(data):
        own = own_batches(data)
        yield batch if own is None or index < own else Padding(batch)


def check_enough(data: Any, processes: int) -> None:
    """Raise where data are known to have fewer samples, or batches, than there are processes."""
    if processes == 1:
        return
    for sampler in (getattr(data, "batch_sampler", None), getattr(data, "sampler", None)):
        if isinstance(sampler, SharedSampler):
            count, what = _length(sampler.sampler), "samples" if sampler.batch_size else "batches"
            if count is not None and count < processes:
                raise ValueError(
                    f"train_data: it has {count} {what}, fewer than the {processes} processes; start fewer of them"
                )
    if isinstance(data, SharedBatches) and (count := _length(data.data)) is not None and count < processes:
        raise ValueError(
            f"train_data: it has {count} batches, fewer than the {processes} processes; start fewer of them"
        )


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _is_plain(data: DataLoader[Any]) -> bool:
    """Whether a loader can be made anew from its settings: its class has no way of its own to go through the data."""
    own = type(data).__iter__
    return own is DataLoader.__iter__ or (
        type(data).__module__.startswith("torchdata.") and not hasattr(data.dataset, "load_state_dict")
    )


def batch_size_of_all(data: Any) -> int | None:
    """The samples to a batch of all processes together; None where it is not known."""
    if isinstance(data, Mixed):
        return batch_size_of_all(data.data)
    if isinstance(data, SharedBatches):
        size = getattr(data.data, "batch_size", None)
        return None if size is None else size * data.dealing.world_size
    sampler = getattr(data, "batch_sampler", None)
    if isinstance(sampler, SharedSampler):
        return None if sampler.batch_size is None else sampler.batch_size * sampler.dealing.world_size
    size = getattr(data, "batch_size", None)
    return size if type(size) is int else None
