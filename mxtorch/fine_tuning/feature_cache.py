"""The features of a frozen backbone, computed once a sample instead of once a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mxtorch.callbacks.progress import progress_bar
from mxtorch.checks import check_integer
from mxtorch.fine_tuning import dataset_fingerprint, storage
from mxtorch.fine_tuning.dataset_fingerprint import CacheError
from mxtorch.fine_tuning.split_point import Cut, find_cut

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

# Samples in a pass of the frozen layers: enough to fill an accelerator; on a CPU so few that activations are small
# enough for the allocator to use their memory again. With 32 pictures of 224 pixels it asks the system for new pages
# each time, which doubles EfficientNet-Lite0's processor time.
BATCH_SIZE = 32
BATCH_SIZE_ON_CPU = 4


@dataclass
class _Bank:
    """The features of one data set.

    Attributes:
        features: [samples * views, ...]; the views of a sample stand together.
        rest: The targets of each row, as the data set gave them.
        views: Rows of a sample.
        dtype: Of the features when they are handed out.
        digest: What the data set was.
        checked: Hashes of some inputs; empty for random ones.
        file: Where the features are, if not in memory.
    """

    features: Tensor
    rest: list[Any]
    views: int
    dtype: torch.dtype
    digest: bytes
    checked: dict[int, bytes]
    file: Path | None


class FeatureCache:
    """Keeps what a trainer's frozen layers give for each sample, and has `find_lr`, `fit`, `evaluate` run on it.

        cache = FeatureCache(trainer)
        train, val = cache.loader(train_data), cache.loader(val_data)
        with cache.in_force():
            found = trainer.find_lr(train, schedule="one_cycle")
            trainer.fit(train, val, epochs=20, lr=found, schedule="one_cycle")
        cache.close()

    Losses, the order of the data and the random numbers of the training are those without the cache. Features are
    computed again when a frozen parameter or buffer has changed (seen at the start of each epoch), and for a data set
    that is no longer what it was: its definition with the transforms, the size and time of its files, and some items
    that are read again.

    Args:
        trainer: Whose model has frozen layers: parameters with `requires_grad=False`.
        at: The module whose input is kept. By default the last one that everything trainable comes after.
        where: `"auto"`, `"memory"`, `"file"` or a folder. `"auto"` keeps features in memory up to a third of what is
            free, else in a temporary memory-mapped file.
        half: Keep them in float16: half the room, rounded to three digits.
        tell: Is given sentences: how much room is taken, before it is, and why.

    Raises:
        TypeError, ValueError: An argument is off.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        at: str | None = None,
        where: storage.Where | str | Path = "auto",
        half: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        if where not in ("auto", "memory", "file") and not Path(where).is_dir():
            raise ValueError(f"where: got {str(where)!r}; give 'auto', 'memory', 'file' or a folder that exists")
        self.trainer = trainer
        self.at = at
        self.where = where
        self.half = half
        self.tell = tell
        self.cut: Cut | None = None
        self._banks: dict[int, tuple[Any, _Bank]] = {}  # the data set goes along, so that its id stays its own
        self._checksum: tuple[Any, ...] = ()
        self._values = b""

    def loader(self, data: Any, *, views: int = 1) -> DataLoader[Any]:
        """A loader of features that goes through the samples as `data` does.

        Args:
            data: A DataLoader of `(input, target)` items with torch's own collation.
            views: For data sets whose items change, as under random augmentation: how many times each item is read and
                kept. Epochs take them in turn.

        Raises:
            CacheError: The data have another form; items change and `views` is 1; there is no room. A ValueError.
            CutError: The model can't be cut. A ValueError, too.
        """
        check_integer(views, "views")
        dataset_fingerprint.check_loader(data)
        before = self.trainer.capture(data)
        try:
            if self.cut is None:
                self.cut = find_cut(self.trainer.model, self._probe(data.dataset), self.at)
                self._checksum, self._values = (
                    dataset_fingerprint.checksum(self.cut.frozen),
                    dataset_fingerprint.hash_of(self.cut.frozen),
                )
            bank = self._bank(data, views)
        finally:
            before.restore()
        return FeatureLoader(self, _Features(self, bank), data)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """In this block the trainer's model takes features; inputs it takes as well, and runs whole on them."""
        if self.cut is None:
            raise ValueError("in_force: there are no features yet; call loader(data) first")
        with self.cut.in_force():
            yield

    def close(self) -> None:
        """Let go of memory and files."""
        for _, bank in self._banks.values():
            _remove(bank)
        self._banks.clear()

    def refresh(self) -> None:
        """Compute features anew if what they come from has changed.

        Raises:
            ValueError: A layer before the cut is trained now.
        """
        assert self.cut is not None
        frozen = self.cut.frozen
        trained = [name for name, value in frozen.items() if value.requires_grad]
        if trained:
            raise ValueError(
                f"the features come from frozen layers, but {trained[0]!r} is trained now; leave the block of "
                "in_force() before unfreezing"
            )
        checksum = dataset_fingerprint.checksum(frozen)
        if checksum == self._checksum:
            return
        self._checksum, before = checksum, self._values
        self._values = dataset_fingerprint.hash_of(frozen)
        if self._values == before:
            return  # written, but with what they held, as by a restore
        self.tell("The frozen layers have changed: their features are computed again.")
        for dataset, bank in self._banks.values():
            self._fill(dataset, bank, workers=0)

    def _probe(self, dataset: Any) -> Tensor:
        inputs = [dataset_fingerprint.split_item(dataset[index % len(dataset)])[0] for index in range(2)]
        return self._moved(_stacked(inputs))

    def _moved(self, inputs: Tensor) -> Tensor:
        moved = self.trainer.engine.move(inputs)
        assert isinstance(moved, Tensor)
        return moved

    def _bank(self, data: DataLoader[Any], views: int) -> _Bank:
        dataset: Any = data.dataset
        definition = dataset_fingerprint.digest(dataset)
        _, known = self._banks.get(id(dataset), (None, None))
        if known is not None and known.digest == definition and known.views in (1, views):
            if known.views > 1 or dataset_fingerprint.fingerprints(dataset) == known.checked:
                self.refresh()
                return known
            self.tell("Samples have changed since their features were computed: they are computed again.")
        if known is not None:
            _remove(known)
            del self._banks[id(dataset)]
        random = dataset_fingerprint.random_transform(data)
        changing = random is not None or dataset_fingerprint.changes(dataset)
        if changing and views == 1:
            cause = f"it has {random}" if random else "two readings of an item differ"
            raise CacheError(f"its items change between calls ({cause}); views=k keeps k readings of each")
        bank = self._table(dataset, views if changing else 1, definition)
        try:
            self._fill(dataset, bank, workers=data.num_workers)
        except BaseException:
            _remove(bank)
            raise
        self._banks[id(dataset)] = (dataset, bank)
        return bank

    def _table(self, dataset: Any, views: int, definition: bytes) -> _Bank:
        """Room for the features, told before it is taken."""
        assert self.cut is not None
        with self.trainer.engine.autocast():
            feature = self.cut.features(self._probe(dataset))[0]
        dtype = torch.float16 if self.half and feature.is_floating_point() else feature.dtype
        rows = len(dataset) * views
        size = rows * feature.numel() * dtype.itemsize
        shape = " x ".join(map(str, feature.shape))
        what = f"Features, {self.cut}: {rows} x {shape} {str(dtype).removeprefix('torch.')}"
        if views > 1:
            what += f" ({views} views of {len(dataset)} samples)"
        place = storage.choose_place(size, self.where, what)
        if place is None:
            raise CacheError(f"{what}, {storage.in_words(size)}: there is no room")
        self.tell(place.sentence + ".")
        table, file = storage.table((rows, *feature.shape), dtype, place.folder)
        return _Bank(table, [None] * rows, views, feature.dtype, definition, {}, file)

    def _fill(self, dataset: Any, bank: _Bank, *, workers: int) -> None:
        """Run the frozen layers over all samples, with the random numbers of the training left alone."""
        assert self.cut is not None
        started = time.perf_counter()
        bar = progress_bar(len(bank.features), "features") if self.trainer.progress else None
        wanted = set(dataset_fingerprint.checked_indices(len(dataset))) if bank.views == 1 else set()
        before = self.trainer.capture(None)
        try:
            for view in range(bank.views):
                row = view
                for inputs, rest in self._read(dataset, workers, view):
                    with self.trainer.engine.autocast():
                        features = self.cut.features(self._moved(inputs))
                    rows = torch.arange(row, row + len(inputs) * bank.views, bank.views)
                    bank.features[rows] = features.to("cpu", bank.features.dtype)
                    for index, target, one in zip(rows.tolist(), rest, inputs, strict=True):
                        bank.rest[index] = target
                        if index in wanted:
                            bank.checked[index] = dataset_fingerprint.fingerprint(one)
                    row += len(inputs) * bank.views
                    if bar is not None:
                        bar.update(len(inputs))
        finally:
            before.restore()
            if bar is not None:
                bar.close()
        if bank.views == 1 and dataset_fingerprint.fingerprints(dataset) != bank.checked:
            raise CacheError("its items change between calls (some were read again, and differ)")
        self.tell(f"{len(bank.features)} samples in {time.perf_counter() - started:.1f} s.")

    def _read(self, dataset: Any, workers: int, view: int) -> Iterator[tuple[Tensor, list[Any]]]:
        # A generator of its own: workers' seeds come from it, and the global one is left alone.
        generator = torch.Generator().manual_seed(torch.initial_seed() + view)
        size = BATCH_SIZE_ON_CPU if self.trainer.engine.device.type == "cpu" else BATCH_SIZE
        reader: DataLoader[Any] = DataLoader(
            dataset, size, num_workers=workers, collate_fn=_with_targets_apart, generator=generator
        )
        yield from reader


class _Features(Dataset[Any]):
    """A bank as a data set; whole batches are taken at once."""

    def __init__(self, cache: FeatureCache, bank: _Bank) -> None:
        self.bank = bank
        self.passes = 0  # decides the view; the state of a loader, so that find_lr puts it back

    def __len__(self) -> int:
        return len(self.bank.features) // self.bank.views

    def __getitems__(self, indices: Sequence[int]) -> Any:
        bank = self.bank
        places = torch.as_tensor(indices)
        rows = places % len(self) * bank.views + (places + self.passes) % bank.views
        return dataset_fingerprint.join_batch(
            bank.features[rows].to(bank.dtype), [bank.rest[row] for row in rows.tolist()]
        )


class FeatureLoader(DataLoader[Any]):
    """Goes through features in the order in which another loader goes through its samples."""

    def __init__(self, cache: FeatureCache, features: _Features, data: DataLoader[Any]) -> None:
        self.cache = cache
        super().__init__(
            features,
            batch_sampler=data.batch_sampler,  # the very one: it holds the order
            collate_fn=_as_it_is,
            pin_memory=data.pin_memory,
            generator=data.generator,
        )

    def __iter__(self) -> Any:
        self.cache.refresh()
        self.dataset.passes += 1  # type: ignore[attr-defined]
        return super().__iter__()


def _with_targets_apart(items: list[Any]) -> tuple[Tensor, list[Any]]:
    pairs = [dataset_fingerprint.split_item(item) for item in items]
    return _stacked([inputs for inputs, _ in pairs]), [rest for _, rest in pairs]


def _stacked(inputs: list[Tensor]) -> Tensor:
    shapes = {tuple(one.shape) for one in inputs}
    if len(shapes) > 1:
        raise CacheError(f"its inputs have different shapes: {sorted(shapes)[:2]}")
    return torch.stack(inputs)


def _as_it_is(batch: Any) -> Any:
    return batch


def _remove(bank: _Bank) -> None:
    if bank.file is not None:
        with contextlib.suppress(OSError):
            bank.file.unlink()
