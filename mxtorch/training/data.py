"""The training data of a run: batches one after the other, and the way back to the same place in another process.

A plain loader has no state that could be saved. Its order follows from the random states when its iterator was made,
so a checkpoint holds those of the epoch's start and the number of batches taken. The way back: restore the states of
the start, make the iterator, take the same batches again, restore the states of the step.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.random_state import changed_generators, random_state, raw_random_state, set_random_state
from mxtorch.checkpointing.reachable import Walk, is_of_data
from mxtorch.checkpointing.serialization import LoaderPartStates
from mxtorch.training.supervised import Batch, batch_size

# Elements of each tensor that a batch is recognised by: enough to tell two batches apart, quick for large images.
COMPARED_ELEMENTS = 4096


class Window(NamedTuple):
    """The batches over which one optimizer step accumulates gradients.

    Attributes:
        batches: As the loader gave them.
        sizes: The number of samples in each; 1 where it is not known.
        samples: The sum of the sizes.
    """

    batches: list[Batch]
    sizes: list[int]
    samples: int


def window_of(batches: list[Batch]) -> Window:
    """The window of these batches."""
    sizes = [batch_size(batch) or 1 for batch in batches]
    return Window(batches, sizes, sum(sizes))


def windows(data: Iterable[Batch], length: int) -> Iterator[Window]:
    """Windows of `length` batches each; the last one has what is left."""
    if length == 1:
        for batch in data:
            size = batch_size(batch) or 1
            yield Window([batch], [size], size)
        return
    iterator = iter(data)
    while group := list(itertools.islice(iterator, length)):
        yield window_of(group)


class Feed:
    """Opens the data once an epoch and knows how far it was read.

    Args:
        data: A loader or another iterable of batches.
        interrupted: Raises if the run was told to stop: a signal may have taken worker processes with it.
    """

    def __init__(self, data: Iterable[Batch], interrupted: Callable[[], None] = lambda: None) -> None:
        self.data = data
        self.batches = 0  # taken in this epoch
        self._interrupted = interrupted
        self._parts = LoaderPartStates(data)
        self._last: Batch = None
        self._start: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        # Persistent workers carry their random states from epoch to epoch, so the way back leads through all of them.
        persistent = _with_persistent_workers(data)
        self._persistent = bool(persistent)
        self._past: list[dict[str, Any]] = []
        self._over = False  # whether the epoch's last batch was taken, and the data have said so
        for loader in persistent:
            vars(loader)["_iterator"] = None  # workers of an earlier run have a past that no checkpoint knows

    def open(self) -> Iterator[Batch]:
        """The batches of an epoch, or of what is left of the one that was loaded."""
        saved, self._saved = self._saved, None
        self._over = False
        if saved is None:
            if self._persistent and self._start is not None:
                self._past.append({**self._start, "batches": self.batches})
            self.batches = 0
            self._start = self._states()
            iterator = iter(self.data)
        else:
            iterator = self._back_to(saved)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                self._over = True
                return
            except Exception:
                self._interrupted()
                raise
            self.batches += 1
            self._last = batch
            yield batch

    def begin_pass(self) -> None:
        """Note the states before a pass that its owner makes over the whole of the data, as validation does."""
        self._start = self._states()

    def end_pass(self) -> None:
        """The pass is over."""
        if self._persistent and self._start is not None:
            self._past.append({**self._start, "batches": None})
        self._start = None

    def rewind_pass(self) -> None:
        """The pass was broken off: give the random numbers back that it took."""
        if self._start is not None:
            self._set_states(self._start)

    def skip_rest(self) -> None:
        """Of an epoch that was loaded and has no batches to come: bring its loader to the place, and take none."""
        saved, self._saved = self._saved, None
        if saved is not None:
            self._back_to(saved)

    def read_again(self, first: int, count: int) -> list[Batch]:
        """Batches of this epoch once more, of a data set with indices; none of other data."""
        if not _has_indices(self.data) or self._start is None or self._persistent:
            return []
        random, loader = random_state(), self._parts.state_dict()
        try:
            self._set_states(self._start)
            return list(itertools.islice(iter(self.data), first, first + count))
        finally:
            set_random_state(random)
            self._parts.load_state_dict(loader)

    def state_dict(self, *, within_epoch: bool) -> dict[str, Any]:
        """Where the data were read to.

        Args:
            within_epoch: False at an epoch's end, where the next one begins with the states as they are.
        """
        past = self._past
        if self._persistent and not within_epoch and self.batches and self._start is not None:
            past = [*past, {**self._start, "batches": self.batches}]
        return {
            "start": self._start if within_epoch else None,
            "batches": self.batches if within_epoch else 0,
            "over": self._over,
            "past": list(past),
            "now": self._parts.state_dict(),
            "own": self.data.state_dict() if _has_state(self.data) else None,  # type: ignore[attr-defined]
            "last": digest(self._last) if within_epoch else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `state_dict` was called; global random states are the caller's to restore, now and in `open`.

        Raises:
            ValueError: It is malformed. Random states that can't be set raise what the generators do.
        """
        here = self._states()
        for states in [*saved["past"], *([] if saved["start"] is None else [saved["start"]])]:
            self._set_states(states)  # to find what is wrong with them now
        self._parts.load_state_dict(saved["now"])
        self._set_states(here)
        counts = [saved["batches"], *(epoch["batches"] or 0 for epoch in saved["past"])]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"the batches taken are {counts}, not whole numbers")
        if type(saved["last"]) not in (int, type(None)):
            raise ValueError(f"the checksum of the last batch is {saved['last']!r}")
        if saved["own"] is not None and _has_state(self.data):
            self.data.load_state_dict(saved["own"])  # type: ignore[attr-defined]
        self._past = list(saved["past"]) if self._persistent else []
        if saved["start"] is not None:
            self._saved, self.batches = {**saved, "random": random_state()}, saved["batches"]
            return
        if saved["own"] is not None and _has_state(self.data):
            self.data.state_dict()  # type: ignore[attr-defined]  # makes the iterator of an epoch that is over
        self._replay_past()
        self._set_loader(saved["now"])

    def _back_to(self, saved: dict[str, Any]) -> Iterator[Batch]:
        """An iterator that goes on after the batches that were taken; the random states are those of the step."""
        self._start, self.batches = saved["start"], saved["batches"]
        self._replay_past()
        if saved["own"] is not None and _has_state(self.data):
            # Data that had ended would begin anew; the state makes the iterator of the epoch that is over instead.
            iterator = iter(()) if saved["over"] and self.data.state_dict() else iter(self.data)  # type: ignore[attr-defined]
        else:
            self._set_states(saved["start"])
            iterator = iter(self.data)
            self._take_again(iterator, saved)
        set_random_state(saved["random"])
        self._set_loader(saved["now"])
        return iterator

    def _replay_past(self) -> None:
        for epoch in self._past:
            self._set_states(epoch)
            for _ in itertools.islice(iter(self.data), epoch["batches"]):
                pass

    def _take_again(self, iterator: Iterator[Batch], saved: dict[str, Any]) -> None:
        count = saved["batches"]
        with _draws_noted(iterator) as draws:
            try:
                if _draws_indices_alone(self.data):
                    for _ in range(count - 1):
                        iterator._next_index()  # type: ignore[attr-defined]  # the samples themselves are not needed
                else:
                    for _ in range(count - 1):
                        next(iterator)
                before = digest(self._states())
                batch = next(iterator) if count else None
            except StopIteration:
                raise CheckpointError(
                    f"train_data: it ended before batch {count}, where the checkpoint was written; give the same data"
                ) from None
        if draws:
            warnings.warn(
                "Whether the run goes on exactly can't be told: train_data's sampler draws random numbers from a "
                f"global generator ({', '.join(draws)}) for each batch, and they depend on what the model drew in "
                "between. Draw all of an epoch's when the sampler's __iter__ begins, or give it a generator of its "
                "own.",
                stacklevel=2,
            )
        if digest(batch) == saved["last"]:
            return
        if before == digest(self._states()):
            warnings.warn(
                f"The run can't go on exactly: batch {count} of train_data is not the one that the run saw. The data "
                "have changed, or have an order of their own that no random state tells; give a DataLoader over a "
                "data set with indices, or data with state_dict and load_state_dict.",
                stacklevel=2,
            )
        elif not _has_indices(self.data):
            warnings.warn(
                "Whether the run goes on exactly can't be told: train_data draw random numbers and have no state to "
                "save; give data with state_dict and load_state_dict.",
                stacklevel=2,
            )

    def _states(self) -> dict[str, Any]:
        return {"random": random_state(), "loader": self._parts.state_dict()}

    def _set_states(self, saved: dict[str, Any]) -> None:
        set_random_state(saved["random"])
        self._parts.load_state_dict(saved["loader"])

    def _set_loader(self, saved: dict[str, Any]) -> None:
        if not self._parts.load_state_dict(saved):
            warnings.warn(
                "The run may not go on exactly: the loader's samplers, data set or transforms are not of the kinds "
                "that they were of.",
                stacklevel=2,
            )


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


def _has_indices(data: Any) -> bool:
    return isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset)


def _draws_indices_alone(data: Any) -> bool:
    """Whether batches can be passed over without loading them: no worker's random state depends on them."""
    return _has_indices(data) and data.num_workers == 0


def _has_state(data: Any) -> bool:
    """Whether the data know their own place.

    A StatefulDataLoader over a data set with indices knows no random states of its workers: it is read again instead,
    unless its data set has a state.
    """
    if not (hasattr(data, "state_dict") and hasattr(data, "load_state_dict")):
        return False
    return not _has_indices(data) or hasattr(data.dataset, "load_state_dict")


def _with_persistent_workers(data: Any) -> list[DataLoader[Any]]:
    """The loaders in the data, which may be the data themselves, whose workers live on from epoch to epoch."""
    return [loader for loader in Walk(is_of_data).search([(data, "data")]).loaders if loader.persistent_workers]


@contextlib.contextmanager
def _draws_noted(iterator: Any) -> Iterator[list[str]]:
    """The global generators that a DataLoader's sampler draws from after its first batch."""
    found: list[str] = []
    draw = getattr(iterator, "_next_index", None)
    if draw is None:
        yield found
        return
    is_first = getattr(iterator, "_send_idx", 0) == 0  # workers are given the first ones when they start

    def noted() -> Any:
        nonlocal is_first
        before = raw_random_state()
        indices = draw()
        if not is_first:
            found.extend(name for name in changed_generators(before) if name not in found)
        is_first = False
        return indices

    iterator._next_index = noted
    try:
        yield found
    finally:
        del iterator._next_index
