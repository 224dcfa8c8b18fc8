"""The training data of a run: batches one after the other, and the way back to the same place in another process.

A plain loader has no state that could be saved. Its order follows from the random states when its iterator was made,
so a checkpoint holds those of the epoch's start and the number of batches taken. The way back: restore the states of
the start, make the iterator, take the same batches again, restore the states of the step.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset

from mxtorch._structure import digest
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.random_state import changed_generators, random_state, raw_random_state, set_random_state
from mxtorch.checkpointing.reachable import Walk, is_of_data
from mxtorch.checkpointing.serialization import LoaderPartStates
from mxtorch.data.sharding import Padding, is_shared, own_batches
from mxtorch.training.supervised import Batch, batch_size


class Window(NamedTuple):
    """The batches over which one optimizer step accumulates gradients.

    Attributes:
        batches: As the loader gave them.
        sizes: The number of samples in each; 1 where it is not known, 0 for a batch that is run along for the sake of
            other processes and counts nothing.
        samples: The sum of the sizes.
    """

    batches: list[Batch]
    sizes: list[int]
    samples: int


def window_of(batches: list[Batch], count: Callable[[Batch], int | None] = batch_size) -> Window:
    """The window of these batches, whose samples `count` counts."""
    if any(type(batch) is Padding for batch in batches):
        sizes = [0 if type(batch) is Padding else count(batch) or 1 for batch in batches]
        batches = [batch.batch if type(batch) is Padding else batch for batch in batches]
    else:
        sizes = [count(batch) or 1 for batch in batches]
    return Window(batches, sizes, sum(sizes))


def windows(data: Iterable[Batch], length: int, count: Callable[[Batch], int | None] = batch_size) -> Iterator[Window]:
    """Windows of `length` batches each; the last one has what is left. `count` counts the samples of a batch."""
    if length == 1:
        for batch in data:
            if type(batch) is Padding:
                yield window_of([batch], count)
                continue
            size = count(batch) or 1
            yield Window([batch], [size], size)
        return
    iterator = iter(data)
    while group := list(itertools.islice(iterator, length)):
        yield window_of(group, count)


def begin_epoch(data: Any, epoch: int) -> None:
    """Call `set_epoch(epoch)` of a loader and of what it draws from, where there is one.

    Samplers for several processes, streams that shuffle and loaders of Accelerate get a new order by it; without it
    they deal the same order in every epoch.
    """
    batch_sampler = getattr(data, "batch_sampler", None)
    parts = [data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    called: list[Any] = []
    for part in [*parts, getattr(data, "dataset", None)]:
        if part is not None and not any(part is one for one in called):
            called.append(part)
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)


class Feed:
    """Passes over the data, one after the other, and how far the data were read.

    A pass ends where the loader ends it. An epoch that is cut leaves its pass open, and the next epoch goes on in it.

    Args:
        data: A loader or another iterable of batches.
        interrupted: Raises if the run was told to stop: a signal may have taken worker processes with it.

    Attributes:
        batches: Taken in this pass.
        batches_before: Of these, taken before this epoch; negative if the pass was begun within the epoch.
        is_open: Whether a pass was begun and is not over.
    """

    def __init__(self, data: Iterable[Batch], interrupted: Callable[[], None] = lambda: None) -> None:
        self.data = data
        self.batches = 0
        self.batches_before = 0
        self.is_open = False
        self._pass: Iterator[Batch] | None = None
        self._epoch = 0  # in which the pass was begun
        self._interrupted = interrupted
        self._is_shared = is_shared(data)
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

    def open(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches to come of the pass that is open, or of a new one.

        Args:
            epoch: The number of the current epoch, for `set_epoch`.
        """
        if self._saved is not None:
            self.go_back()
        elif not self.is_open:
            if self._persistent and self._start is not None:
                self._past.append({**self._start, "batches": self.batches, "epoch": self._epoch})
            self.batches, self._epoch = 0, epoch
            begin_epoch(self.data, epoch)
            self._start = self._states()
            self._pass, self.is_open, self._over = iter(self.data), True, False
        iterator = self._pass
        assert iterator is not None
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                self._over = True
                self._pass, self.is_open = None, False
                return
            except Exception:
                self._interrupted()
                raise
            self.batches += 1
            self._last = batch
            if self._is_shared and (own := own_batches(self.data)) is not None and self.batches > own:
                batch = Padding(batch)
            yield batch

    def go_back(self) -> None:
        """Bring the loader to the place that was loaded, if one was."""
        saved, self._saved = self._saved, None
        if saved is not None:
            self._pass = self._back_to(saved)

    def release(self) -> None:
        """Let go of the iterator of a pass that is open, and so of its workers; no more batches are taken."""
        self._pass = None

    def begin_pass(self) -> None:
        """Note the states before a pass that its owner makes over the whole of the data, as validation does."""
        self._start = self._states()

    def end_pass(self, batches: int | None = None) -> None:
        """The pass is over, after so many batches; None for all."""
        if self._persistent and self._start is not None:
            self._past.append({**self._start, "batches": batches})
        self._start = None

    def rewind_pass(self) -> None:
        """The pass was broken off: give the random numbers back that it took."""
        if self._start is not None:
            self._set_states(self._start)

    def read_again(self, first: int, count: int) -> list[Batch]:
        """Batches of this epoch once more, of a data set with indices; none of other data, or of an earlier pass."""
        first += self.batches_before
        if not _has_indices(self.data) or self._start is None or self._persistent or first < 0:
            return []
        random, loader = random_state(), self._parts.state_dict()
        try:
            begin_epoch(self.data, self._epoch)
            self._set_states(self._start)
            return list(itertools.islice(iter(self.data), first, first + count))
        finally:
            set_random_state(random)
            self._parts.load_state_dict(loader)

    def state_dict(self, *, within_epoch: bool) -> dict[str, Any]:
        """Where the data were read to.

        Args:
            within_epoch: False at an epoch's end, where the next one begins with the states as they are, unless it
                goes on in a pass that is open.
        """
        past, within_pass = self._past, within_epoch or self.is_open
        if self._persistent and not within_pass and self.batches and self._start is not None:
            past = [*past, {**self._start, "batches": self.batches, "epoch": self._epoch}]
        return {
            "start": self._start if within_pass else None,
            "batches": self.batches if within_pass else 0,
            "epoch": self._epoch,
            "between_epochs": not within_epoch,
            "over": self._over,
            "past": list(past),
            "now": self._parts.state_dict(),
            "own": self.data.state_dict() if _has_state(self.data) else None,  # type: ignore[attr-defined]
            "last": digest(self._last) if within_pass else None,
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
        self._pass, self._saved, self.is_open = None, None, saved["start"] is not None
        if saved["start"] is not None:
            # Within an epoch its start may have drawn numbers already; between two, what comes before it draws them.
            random = None if saved.get("between_epochs", False) else random_state()
            self._saved, self.batches = {**saved, "random": random}, saved["batches"]
            self._start, self._epoch = saved["start"], saved.get("epoch", 0)
            return
        if saved["own"] is not None and _has_state(self.data):
            self.data.state_dict()  # type: ignore[attr-defined]  # makes the iterator of an epoch that is over
        self._replay_past()
        self._set_loader(saved["now"])

    def _back_to(self, saved: dict[str, Any]) -> Iterator[Batch]:
        """An iterator that goes on after the batches that were taken; the random states are those of the step."""
        self._start, self.batches = saved["start"], saved["batches"]
        random = saved["random"] or random_state()
        self._replay_past()
        begin_epoch(self.data, saved.get("epoch", 0))
        if saved["own"] is not None and _has_state(self.data):
            # Data that had ended would begin anew; the state makes the iterator of the epoch that is over instead.
            iterator = iter(()) if saved["over"] and self.data.state_dict() else iter(self.data)  # type: ignore[attr-defined]
        else:
            self._set_states(saved["start"])
            iterator = iter(self.data)
            self._take_again(iterator, saved)
        set_random_state(random)
        self._set_loader(saved["now"])
        return iterator

    def _replay_past(self) -> None:
        for epoch in self._past:
            begin_epoch(self.data, epoch.get("epoch", 0))
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
        if saved["last"] is None or digest(batch) == saved["last"]:
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
