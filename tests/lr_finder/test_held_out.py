from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mxtorch.lr_finder.held_out import LARGEST_SHARE, MOST_BATCHES_READ, MOST_WINDOWS, HeldOutData

COUNT = 96


def numbered(count=COUNT):
    """Samples that are their own numbers."""
    return TensorDataset(torch.arange(count), torch.arange(count) % 3)


def numbers(batches):
    return [int(number) for batch in batches for number in batch[0]]


def hold_out(train_data, val_data, accumulate, batches, **options):
    """As many samples as so many batches of eight, or of sixteen for validation data, have."""
    size = 8 if val_data is None else getattr(val_data, "batch_size", None) or 8
    return HeldOutData(train_data, val_data, accumulate, batches * size, batches, **options)


def trained_on(data, passes=1):
    return [numbers(batch for window in data.windows() for batch in window.batches) for _ in range(passes)]


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


LOADERS = {
    "shuffling": lambda: DataLoader(numbered(), 8, shuffle=True),
    "in order": lambda: DataLoader(numbered(), 8),
    "own generator": lambda: DataLoader(numbered(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "sampler": lambda: DataLoader(numbered(), 8, sampler=SubsetRandomSampler(range(0, COUNT, 1))),
    "batch sampler": lambda: DataLoader(numbered(), batch_sampler=BatchSampler(SequentialSampler(range(96)), 8, False)),
    "workers": lambda: DataLoader(numbered(), 8, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(numbered(), 8, shuffle=True, num_workers=2, persistent_workers=True),
    "list": lambda: list(DataLoader(numbered(), 8)),
}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_held_out_is_never_trained_on(kind, accumulate):
    loader = LOADERS[kind]()
    data = hold_out(loader, None, accumulate, 3)
    held_out = set(numbers(data.batches))
    assert len(held_out) == 3 * 8
    for seen in trained_on(data, passes=3):
        assert sorted(seen) == sorted(set(range(COUNT)) - held_out), "all others, once a pass"


def test_with_persistent_workers_that_have_run_before():
    loader = LOADERS["persistent workers"]()
    assert len(list(loader)) == 12
    data = hold_out(loader, None, 1, 3)
    held_out = set(numbers(data.batches))
    for seen in trained_on(data, passes=2):
        assert not held_out & set(seen)


def test_the_other_random_numbers_differ_from_pass_to_pass():
    data = hold_out(DataLoader(numbered(), 8, shuffle=True), None, 1, 3)
    drawn = []
    for _ in range(3):
        for _ in data.windows():
            pass
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3, "dropout is not to be the same in every pass"


def test_opening_leaves_the_loaders_as_they_were():
    generator = torch.Generator().manual_seed(3)
    loader, judge = (DataLoader(numbered(), 8, shuffle=True, generator=generator) for _ in range(2))
    before, own = torch.get_rng_state(), generator.get_state()
    hold_out(loader, None, 1, 3)
    hold_out(loader, judge, 1, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), own)

    class Failing(Stream):
        def __iter__(self):
            torch.rand(3)
            raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        hold_out(loader, DataLoader(Failing(3), 2), 1, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("count", "accumulate", "wanted", "windows"),
    [
        *[(8, 1, 7, 0), (16, 1, 7, 0), (24, 1, 7, 1), (48, 1, 7, 2), (960, 1, 7, 7), (960, 1, 99, MOST_WINDOWS)],
        *[(96, 4, 7, 1), (192, 4, 7, 2), (24, 8, 7, 0)],
    ],
)
@pytest.mark.parametrize("has_length", [True, False])
def test_at_most_a_third_of_a_pass(count, accumulate, wanted, windows, has_length):
    loader = DataLoader(numbered(count), 8) if has_length else DataLoader(Pairs(numbered(count)), 8)
    data = hold_out(loader, None, accumulate, wanted)
    assert len(data.batches) == min(windows * accumulate, wanted)
    seen = trained_on(data)[0]
    assert len(seen) == count - windows * accumulate * 8
    assert not set(seen) & set(numbers(data.batches))
    assert LARGEST_SHARE * windows * accumulate <= count / 8


def test_an_iterable_of_ones_own():
    class Batches:
        def __iter__(self):
            for start in range(0, 40, 4):
                yield torch.arange(start, start + 4), torch.zeros(4)

    data = hold_out(Batches(), None, 1, 2)
    assert numbers(data.batches) == list(range(8))
    assert trained_on(data, passes=2) == [list(range(8, 40))] * 2


def sorted_by_class(count, classes):
    return TensorDataset(torch.arange(count), torch.arange(count) * classes // count)


def test_a_validation_set_that_is_sorted_by_class_gives_batches_of_all_classes():
    loader = DataLoader(numbered(), 8, shuffle=True)
    data = hold_out(loader, DataLoader(sorted_by_class(600, 5), 16), 1, 4)
    assert [len(batch[0]) for batch in data.batches] == [16] * 4
    for _, classes in data.batches:
        assert classes.bincount(minlength=5).min() >= 2
    assert sorted(trained_on(data)[0]) == list(range(COUNT)), "nothing of the training data is held out"


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 49, 63, 64, 65])
def test_small_validation_sets_are_taken_whole(count):
    data = hold_out([], DataLoader(sorted_by_class(count, 3), 16), 1, 4)
    seen = numbers(data.batches)
    assert len(seen) == len(set(seen)) == min(count, 64)
    sizes = [len(batch[0]) for batch in data.batches]
    assert max(sizes) - min(sizes) <= 1, "no last batch of one sample, which batch normalisation can't take"


def test_a_validation_sampler_is_heeded():
    """One data set, split by two samplers: the other half is what is trained on."""
    whole = numbered()
    train, held_out = list(range(0, COUNT, 2)), list(range(1, COUNT, 2))
    loader = DataLoader(whole, 8, sampler=SubsetRandomSampler(train))
    data = hold_out(loader, DataLoader(whole, 8, sampler=SubsetRandomSampler(held_out)), 1, 4)
    assert len(numbers(data.batches)) == 32
    assert set(numbers(data.batches)) <= set(held_out)
    endless = WeightedRandomSampler(torch.ones(COUNT), 10**6)
    assert len(numbers(hold_out(loader, DataLoader(whole, 8, sampler=endless), 1, 4).batches)) == 32


class Batched(torch.utils.data.Dataset):
    """A data set of whole batches."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def judges(count, classes=5):
    """Validation data sorted by class, of kinds that only yield batches, or give samples in batches of their own."""
    samples = sorted_by_class(count, classes)
    batches = list(DataLoader(samples, 8))
    return {
        "batch sampler": DataLoader(samples, batch_sampler=BatchSampler(SequentialSampler(samples), 8, False)),
        "stream": DataLoader(Pairs(samples), 8),
        "list": batches,
        "tuple": tuple(batches),
        "without a length": Reiterable(batches),
        "no batches": DataLoader(Batched(batches), batch_size=None),
        "dictionaries": [{"x": numbers, "labels": labels} for numbers, labels in batches],
        "nested": [({"x": numbers, "more": [labels]}, labels) for numbers, labels in batches],
    }


class Pairs(IterableDataset):
    """Samples one after the other, without a length."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter([self.samples[index] for index in range(len(self.samples))])


class Reiterable:
    """Batches that can be read again and again, and nothing else."""

    def __init__(self, batches):
        self.batches, self.read = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            yield batch


@pytest.mark.parametrize("kind", judges(8))
@pytest.mark.parametrize("count", [600, 3001])
def test_batches_that_are_sorted_by_class_are_mixed(kind, count):
    """One-sided batches mean nothing, least of all to batch normalisation."""
    data = HeldOutData(DataLoader(numbered(), 8), judges(count)[kind], 1, 64, 16)
    assert data.note == ""
    labels = [batch["labels"] if isinstance(batch, dict) else batch[-1] for batch in data.batches]
    assert sum(map(len, labels)) == 64
    assert all(len(set(batch.tolist())) >= 3 for batch in labels), "each batch has several of the five classes"
    assert torch.cat(labels).bincount(minlength=5).min() >= 4


@pytest.mark.parametrize("kind", judges(8))
def test_the_same_samples_every_time(kind):
    first, second = (HeldOutData([], judges(600)[kind], 1, 64, 16).batches for _ in range(2))
    for one, other in zip(first, second, strict=True):
        leaves = zip(tree_leaves(one), tree_leaves(other), strict=True)
        assert all(torch.equal(a, b) for a, b in leaves)


def test_inputs_and_targets_stay_together():
    batches = [(torch.arange(start, start + 8), torch.arange(start, start + 8) * 2) for start in range(0, 400, 8)]
    for inputs, targets in HeldOutData([], batches, 1, 64, 16).batches:
        assert torch.equal(targets, inputs * 2)


def test_no_more_is_read_than_a_bound_and_it_is_said():
    batches = Reiterable([(torch.full((2,), index), torch.zeros(2)) for index in range(MOST_BATCHES_READ + 50)])
    data = HeldOutData([], batches, 1, 64, 16)
    assert batches.read <= MOST_BATCHES_READ
    assert f"only the first {MOST_BATCHES_READ} batches of val_data" in data.note
    assert max(numbers(data.batches)) > MOST_BATCHES_READ / 2, "from all over them"


def padded(count):
    """Texts, as long in each batch as its longest."""
    return [(torch.zeros(4, 5 + index % 3, dtype=torch.long), torch.full((4,), index)) for index in range(count)]


def named(count):
    return [(torch.zeros(4, 3), torch.full((4,), index), ["a", "b", "c", "d"]) for index in range(count)]


def weighted(count):
    """A tensor of each batch that has no entry a sample."""
    return [(torch.zeros(4, 3), torch.full((4,), index), torch.ones(())) for index in range(count)]


@pytest.mark.parametrize("make", [padded, named, weighted])
def test_batches_that_cant_be_mixed_are_taken_whole_from_all_over(make):
    data = HeldOutData([], make(48), 1, 64, 16)
    assert "can't be mixed" in data.note
    which = [int(batch[1][0]) for batch in data.batches]
    assert len(which) == 16
    assert len(set(which)) == 16
    assert min(which) < 8
    assert max(which) >= 40


def test_where_one_sided_batches_would_mislead_training_data_are_held_out():
    data = HeldOutData(DataLoader(numbered(), 8), padded(48), 1, 16, 16, needs_mixed=True)
    assert "training data are held out" in data.note
    assert numbers(data.batches) == list(range(16))
    assert trained_on(data)[0] == list(range(16, COUNT))


def test_without_a_batch_of_validation_data_training_data_are_held_out():
    data = HeldOutData(DataLoader(numbered(), 8), DataLoader(Stream(0), 8), 1, 16, 16)
    assert data.note == "val_data yields no batches, so training data are held out"
    assert numbers(data.batches) == list(range(16))
    assert trained_on(data)[0] == list(range(16, COUNT))


def test_too_few_training_data_to_hold_any_out():
    data = HeldOutData(DataLoader(numbered(16), 8), None, 1, 16, 16)
    assert data.batches == []
    assert "give val_data" in data.note


def test_validation_data_keep_their_collate_function():
    def collate(samples):
        return {"x": torch.stack([sample[0] for sample in samples]), "labels": [sample[1] for sample in samples]}

    data = hold_out([], DataLoader(numbered(), 8, collate_fn=collate), 1, 2)
    assert [list(batch) for batch in data.batches] == [["x", "labels"]] * 2


def test_the_same_windows_in_the_same_order_for_every_heat():
    data = hold_out(DataLoader(numbered(), 8, shuffle=True), None, 1, 3)
    torch.manual_seed(1)
    first = trained_on(data)[0]
    torch.manual_seed(2)
    windows = itertools.islice(data.windows(), 4)
    assert numbers(batch for window in windows for batch in window.batches) == first[:32]
