"""The features of a frozen backbone, computed once for each sample instead of in every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mxtorch._checks import check_integer
from mxtorch.callbacks.bars import progress_bar
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.fine_tuning import dataset_fingerprint, storage
from mxtorch.fine_tuning.cut import Cut
from mxtorch.fine_tuning.dataset_fingerprint import CacheError
from mxtorch.fine_tuning.feature_bank import FeatureBank
from mxtorch.fine_tuning.feature_loader import FeatureDataset, FeatureLoader
from mxtorch.fine_tuning.frozen_pass import FrozenPass
from mxtorch.fine_tuning.split_point import find_cut, unchanged
from mxtorch.training.trainer_view import TrainerView
from mxtorch.training.trial import run_in_memory_format

# Samples in one pass of the frozen layers. On an accelerator enough to fill it. On a CPU few, so that activations are
# small enough for the allocator to use their memory again: with 32 pictures of 224 pixels it asks the system for new
# pages each time, which doubles EfficientNet-Lite0's processor time.
BATCH_SIZE = 32
BATCH_SIZE_ON_CPU = 4
# Trained parameters up to which steps on features are taken by one thread: of a head, 64 rows are then some 10 ms.
LARGEST_ON_ONE_THREAD = 1_000_000


class FeatureCache:
    """Keeps the outputs of a trainer's frozen layers for each sample, so that `find_lr`, `fit`, `evaluate` skip them.

        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> from mxtorch import Trainer
        >>> from mxtorch.fine_tuning import FeatureCache
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), nn.Linear(16, 2))
        >>> net[0].requires_grad_(False).training
        True
        >>> optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
        >>> train_data = DataLoader([(torch.randn(4), n % 2) for n in range(32)], 8, shuffle=True)
        >>> cache = FeatureCache(trainer)
        >>> train = cache.loader(train_data)  # doctest: +ELLIPSIS
        Features, the input of '1': 32 x 16 float32, 2.0 kB in memory (free: ...).
        32 samples in ... s.
        >>> with cache.in_force():
        ...     history = trainer.fit(train, epochs=3)
        >>> cache.close()

    Of several processes each computes its share of the features, and is given those of the others: the order of the
    data goes all over the data set, so that each needs all of them.

    The order of the data and the random numbers of the training are the same as without the cache, and so are losses,
    but for rounding: batch normalisation is folded into the convolutions before it (networks of the zoo), and large
    JPEG files are decoded at a reduced scale where the transform begins by resizing them. `exact=True` does neither. On
    a CPU several batches are computed at once, one a thread. Features are computed again when a frozen parameter or
    buffer has changed, which is checked at the start of each epoch; and when the data set has changed: its definition
    with the transforms, the size and time of its files, or some items that are read again.

    Args:
        trainer: A `mxtorch.Trainer` whose model has frozen layers: parameters with `requires_grad=False`.
        at: The name of the module whose input is kept. By default the last one that everything trainable comes after.
        where: `"auto"`, `"memory"`, `"file"` or a folder. `"auto"` keeps features in memory up to a third of what is
            free, otherwise in a temporary memory-mapped file.
        half: Whether features are kept in float16: half the room, rounded to three digits.
        exact: Whether pictures are decoded whole and the network is run as it is.
        tell: A function that is given notes: how much room will be taken and why, before it is taken.

    Raises:
        ValueError: `where` is neither a known name nor a folder that exists.
    """

    def __init__(
        self,
        trainer: TrainerView,
        *,
        at: str | None = None,
        where: storage.Where | str | Path = "auto",
        half: bool = False,
        exact: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        storage.check_where(where, "where")
        self.trainer = trainer
        self.at = at
        self.where = where
        self.half = half
        self.exact = exact
        self.tell = tell
        self.cut: Cut | None = None
        self._banks: dict[int, tuple[Any, FeatureBank]] = {}  # by id; data sets are kept, so that no id is reused
        self._checksum: tuple[Any, ...] = ()
        self._values: tuple[tuple[str, int], ...] = ()
        self._pass: tuple[Any, FrozenPass] | None = None  # with the values that it was made from

    def loader(self, data: Any, *, views: int = 1) -> DataLoader[Any]:
        """A loader of features that goes through the samples in the same order as `data`.

        Args:
            data: A DataLoader of `(input, target)` items with torch's own collation.
            views: How many times each item is read and kept, for data sets whose items change, as under random
                augmentation. Epochs use the readings in turn.

        Raises:
            CacheError: A ValueError: the data have another form, items change and `views` is 1, or there is no room.
            CutError: A ValueError, too: the model can't be cut.
        """
        views = check_integer(views, "views")
        data = self.trainer.engine.share(data)
        dataset_fingerprint.check_loader(data)
        # All but the pass itself are small pieces of work, which threads that wait for one another only slow down.
        with unchanged(self.trainer.model, data), self._one_thread() as threads:
            if self.cut is None:
                self.cut = find_cut(self.trainer.model, self._probe(data.dataset), self.at)
                self._checksum = dataset_fingerprint.checksum(self.cut.frozen)
                self._values = dataset_fingerprint.values_of(self.cut.frozen)
            bank = self._bank(data, views, threads)
        return FeatureLoader(FeatureDataset(bank), data, self.refresh)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """In this block the trainer's model takes features; it takes inputs as well, and runs whole on them.

        On a CPU torch uses one thread in it where what is trained is small: there is nothing to share then, and threads
        that wait for one another cost more than they compute, many times more on a busy machine.

        Raises:
            ValueError: No loader was made yet.
        """
        if self.cut is None:
            raise ValueError("in_force: there are no features yet; call loader(data) first")
        self._pass = None  # its room is of no use while the network is trained
        with self.cut.in_force(), self._threads():
            yield

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        trained = sum(value.numel() for value in self.trainer.model.parameters() if value.requires_grad)
        with contextlib.nullcontext() if trained > LARGEST_ON_ONE_THREAD else self._one_thread():
            yield

    @contextlib.contextmanager
    def _one_thread(self) -> Iterator[int]:
        """On a CPU torch uses one thread in this block, which is given how many there were before."""
        before = torch.get_num_threads()
        if self.trainer.engine.device.type != "cpu" or before == 1:
            yield before
            return
        torch.set_num_threads(1)
        try:
            yield before
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Free the memory and the room on the disk, once no loader of features is left either."""
        self._banks.clear()
        self._pass = None

    def refresh(self) -> None:
        """Compute features again if the layers that they come from have changed.

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
        self._values = dataset_fingerprint.values_of(frozen)
        if self._values == before:
            return  # they were written, but with the values that they had, as by a restore
        self.tell("The frozen layers have changed: their features are computed again.")
        with self._one_thread() as threads:
            for _, bank in self._banks.values():
                self._fill(bank, workers=0, threads=threads)
        self._pass = None

    def _probe(self, dataset: Any) -> Tensor:
        probe: Tensor = self.trainer.engine.move(_stacked(self._probe_inputs(dataset)))
        return probe

    def _probe_inputs(self, dataset: Any) -> list[Any]:
        return [dataset_fingerprint.split_item(dataset[index % len(dataset)])[0] for index in range(2)]

    def _features(self, inputs: Tensor) -> Tensor:
        """The features of a batch, in the engine's memory format if the frozen layers can take it."""

        def capture() -> TrainingState:
            return TrainingState((self.trainer.model,), None, before_first_step=True)

        def compute() -> Tensor:
            assert self.cut is not None
            with self.trainer.engine.autocast():
                return self.cut.features(self.trainer.engine.move(inputs))

        return run_in_memory_format(self.trainer.engine, "features", capture, compute)

    def _bank(self, data: DataLoader[Any], views: int, threads: int) -> FeatureBank:
        """The features of a loader's data set, which are computed unless they are known and up to date."""
        dataset: Any = data.dataset
        definition = dataset_fingerprint.digest(dataset)
        _, known = self._banks.get(id(dataset), (None, None))
        if known is not None and known.definition == definition and known.views in (1, views):
            if known.views > 1 or dataset_fingerprint.fingerprints(known.reading) == known.checked:
                self.refresh()
                return known
            self.tell("Samples have changed since their features were computed: they are computed again.")
        if known is not None:
            del self._banks[id(dataset)]
        random = dataset_fingerprint.random_transform(data)
        changing = random is not None or dataset_fingerprint.changes(dataset)
        if changing and views == 1:
            cause = f"it has {random}" if random else "two readings of an item differ"
            raise CacheError(f"its items change between calls ({cause}); views=k keeps k readings of each")
        bank = self._empty_bank(dataset, views if changing else 1, definition)
        self._fill(bank, workers=data.num_workers, threads=threads)
        self._banks[id(dataset)] = (dataset, bank)
        return bank

    def _empty_bank(self, dataset: Any, views: int, definition: bytes) -> FeatureBank:
        """Room for the features, reported before it is taken."""
        assert self.cut is not None
        feature = self._features(_stacked(self._probe_inputs(dataset)))[0]
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
        try:
            table = storage.table((rows, *feature.shape), dtype, place.folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CacheError(f"{what}, {storage.in_words(size)}: no room in {place.folder} ({reason})") from error
        return FeatureBank(table, [None] * rows, views, feature.dtype, definition, {}, self._reading(dataset))

    def _reading(self, dataset: Any) -> Any:
        """The data set that samples are read from; one that decodes at a reduced scale, where that is right."""
        if self.exact:
            return dataset
        from mxtorch.fine_tuning.reduced_decoding import reduced  # imports torchvision

        reading, loader = reduced(dataset)
        if loader is not None:
            self.tell(
                f"Large JPEG files are decoded at a reduced scale, at no less than {loader.side} pixels a side, before "
                "they are resized; exact=True decodes them whole."
            )
        return reading

    def _frozen_pass(self, dataset: Any, threads: int) -> FrozenPass:
        """The frozen layers made ready for many batches; once for all data sets, as long as they stay the same."""
        assert self.cut is not None
        values = dataset_fingerprint.values_of(self.cut.frozen)
        if self._pass is None or self._pass[0] != values or self._pass[1].threads != threads:
            probe = self._probe(dataset)
            made = FrozenPass(self.cut, self.trainer.engine, self._features, probe, exact=self.exact, threads=threads)
            self._pass = values, made
        return self._pass[1]

    def _fill(self, bank: FeatureBank, *, workers: int, threads: int) -> None:
        """Run the frozen layers over all samples; the random numbers of the training stay the same."""
        assert self.cut is not None
        started = time.perf_counter()
        dataset = bank.reading
        wanted = set(dataset_fingerprint.checked_indices(len(dataset))) if bank.views == 1 else set()
        with contextlib.ExitStack() as ends:
            bar = progress_bar(len(bank.features), "features") if self.trainer.progress else None
            if bar is not None:
                ends.callback(bar.close)
            ends.enter_context(unchanged(self.trainer.model))
            run = self._frozen_pass(dataset, threads)
            for view in range(bank.views):
                for inputs, (indices, rest), features in run(self._read(dataset, workers, view)):
                    rows = [index * bank.views + view for index in indices]
                    self._fill_rows(bank, rows, inputs, rest, features, wanted)
                    if bar is not None:
                        bar.update(len(inputs) * self.trainer.engine.world_size)
        if bank.views == 1 and dataset_fingerprint.fingerprints(dataset) != bank.checked:
            raise CacheError("its items change between calls (some were read again, and differ)")
        how = ", with batch normalisation folded" if run.is_folded else ""
        self.tell(f"{len(bank.features)} samples in {time.perf_counter() - started:.1f} s{how}.")

    def _fill_rows(
        self, bank: FeatureBank, rows: list[int], inputs: Tensor, rest: list[Any], features: Tensor, wanted: set[int]
    ) -> None:
        """Write down the features of one batch, and those that other processes have computed meanwhile."""
        checked = {
            row: dataset_fingerprint.fingerprint(one) for row, one in zip(rows, inputs, strict=True) if row in wanted
        }
        found = (rows, features.to("cpu", bank.features.dtype), rest, checked)
        for others in self.trainer.engine.gather_values(found):
            bank.features[others[0]] = others[1]
            for row, target in zip(others[0], others[2], strict=True):
                bank.rest[row] = target
            bank.checked.update(others[3])

    def _read(self, dataset: Any, workers: int, view: int) -> Iterator[tuple[Tensor, tuple[list[int], list[Any]]]]:
        """The inputs of this process's batches, with indices and targets; as many batches on all processes."""
        # The seeds of the workers come from a generator of its own, so that the global one stays as it is.
        generator = torch.Generator().manual_seed(torch.initial_seed() + view)
        size = BATCH_SIZE_ON_CPU if self.trainer.engine.device.type == "cpu" else BATCH_SIZE
        engine = self.trainer.engine
        batches = [list(range(start, min(start + size, len(dataset)))) for start in range(0, len(dataset), size)]
        own = [batches[min(step + engine.rank, len(batches) - 1)] for step in range(0, len(batches), engine.world_size)]
        reader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=own, num_workers=workers, collate_fn=_with_targets_apart, generator=generator
        )
        for indices, (inputs, rest) in zip(own, reader, strict=True):
            yield inputs, (indices, rest)


def _with_targets_apart(items: list[Any]) -> tuple[Tensor, list[Any]]:
    pairs = [dataset_fingerprint.split_item(item) for item in items]
    return _stacked([inputs for inputs, _ in pairs]), [rest for _, rest in pairs]


def _stacked(inputs: list[Tensor]) -> Tensor:
    shapes = {tuple(one.shape) for one in inputs}
    if len(shapes) > 1:
        raise CacheError(f"its inputs have different shapes: {sorted(shapes)[:2]}")
    return torch.stack(inputs)
