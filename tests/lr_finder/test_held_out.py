from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mxtorch.lr_finder.held_out import LARGEST_SHARE, MOST_WINDOWS, HeldOutData

COUNT = 96


def numbered(count=COUNT):
    """Samples that are their own numbers."""
    return TensorDataset(torch.arange(count), torch.arange(count) % 3)


def numbers(batches):
    return [int(number) for batch in batches for number in batch[0]]


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
    data = HeldOutData(loader, None, accumulate, wanted=3)
    held_out = set(numbers(data.batches))
    assert len(held_out) == 3 * 8
    for seen in trained_on(data, passes=3):
        assert sorted(seen) == sorted(set(range(COUNT)) - held_out), "all others, once a pass"


def test_with_persistent_workers_that_have_run_before():
    loader = LOADERS["persistent workers"]()
    assert len(list(loader)) == 12
    data = HeldOutData(loader, None, 1, wanted=3)
    held_out = set(numbers(data.batches))
    for seen in trained_on(data, passes=2):
        assert not held_out & set(seen)


def test_the_other_random_numbers_differ_from_pass_to_pass():
    data = HeldOutData(DataLoader(numbered(), 8, shuffle=True), None, 1, wanted=3)
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
    HeldOutData(loader, None, 1, wanted=3)
    HeldOutData(loader, judge, 1, wanted=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), own)

    class Failing(Stream):
        def __iter__(self):
            torch.rand(3)
            raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        HeldOutData(loader, DataLoader(Failing(3), 2), 1, wanted=3)
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
    loader = DataLoader(numbered(count), 8) if has_length else DataLoader(Pairs(count), 8)
    data = HeldOutData(loader, None, accumulate, wanted)
    assert len(data.batches) == min(windows * accumulate, wanted)
    seen = trained_on(data)[0]
    assert len(seen) == count - windows * accumulate * 8
    assert not set(seen) & set(numbers(data.batches))
    assert LARGEST_SHARE * windows * accumulate <= count / 8


class Pairs(Stream):
    """Numbered samples without a length."""

    def __iter__(self):
        return ((number, number % 3) for number in range(self.count))


def test_an_iterable_of_ones_own():
    class Batches:
        def __iter__(self):
            for start in range(0, 40, 4):
                yield torch.arange(start, start + 4), torch.zeros(4)

    data = HeldOutData(Batches(), None, 1, wanted=2)
    assert numbers(data.batches) == list(range(8))
    assert trained_on(data, passes=2) == [list(range(8, 40))] * 2


def sorted_by_class(count, classes):
    return TensorDataset(torch.arange(count), torch.arange(count) * classes // count)


def test_a_validation_set_that_is_sorted_by_class_gives_batches_of_all_classes():
    loader = DataLoader(numbered(), 8, shuffle=True)
    data = HeldOutData(loader, DataLoader(sorted_by_class(600, 5), 16), 1, wanted=4)
    assert [len(batch[0]) for batch in data.batches] == [16] * 4
    for _, classes in data.batches:
        assert classes.bincount(minlength=5).min() >= 2
    assert sorted(trained_on(data)[0]) == list(range(COUNT)), "nothing of the training data is held out"


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 49, 63, 64, 65])
def test_small_validation_sets_are_taken_whole(count):
    data = HeldOutData([], DataLoader(sorted_by_class(count, 3), 16), 1, wanted=4)
    seen = numbers(data.batches)
    assert len(seen) == len(set(seen)) == min(count, 64)
    sizes = [len(batch[0]) for batch in data.batches]
    assert max(sizes) - min(sizes) <= 1, "no last batch of one sample, which batch normalisation can't take"


def test_a_validation_sampler_is_heeded():
    """One data set, split by two samplers: the other half is what is trained on."""
    whole = numbered()
    train, held_out = list(range(0, COUNT, 2)), list(range(1, COUNT, 2))
    loader = DataLoader(whole, 8, sampler=SubsetRandomSampler(train))
    data = HeldOutData(loader, DataLoader(whole, 8, sampler=SubsetRandomSampler(held_out)), 1, wanted=4)
    assert len(numbers(data.batches)) == 32
    assert set(numbers(data.batches)) <= set(held_out)
    endless = WeightedRandomSampler(torch.ones(COUNT), 10**6)
    assert len(numbers(HeldOutData(loader, DataLoader(whole, 8, sampler=endless), 1, wanted=4).batches)) == 32


@pytest.mark.parametrize("kind", ["batch sampler", "stream", "list", "no batches"])
def test_validation_data_that_only_yields_batches(kind):
    batches = list(DataLoader(numbered(), 8))
    judges = {
        "batch sampler": LOADERS["batch sampler"](),
        "stream": DataLoader(Pairs(COUNT), 8),
        "list": batches,
        "no batches": DataLoader(Batched(batches), batch_size=None),
    }
    data = HeldOutData(DataLoader(numbered(), 8), judges[kind], 1, wanted=3)
    assert numbers(data.batches) == list(range(24))


class Batched(torch.utils.data.Dataset):
    """A data set of whole batches."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_validation_data_keep_their_collate_function():
    def collate(samples):
        return {"x": torch.stack([sample[0] for sample in samples]), "labels": [sample[1] for sample in samples]}

    data = HeldOutData([], DataLoader(numbered(), 8, collate_fn=collate), 1, wanted=2)
    assert [list(batch) for batch in data.batches] == [["x", "labels"]] * 2


def test_the_same_windows_in_the_same_order_for_every_heat():
    data = HeldOutData(DataLoader(numbered(), 8, shuffle=True), None, 1, wanted=3)
    torch.manual_seed(1)
    first = trained_on(data)[0]
    torch.manual_seed(2)
    windows = itertools.islice(data.windows(), 4)
    assert numbers(batch for window in windows for batch in window.batches) == first[:32]
