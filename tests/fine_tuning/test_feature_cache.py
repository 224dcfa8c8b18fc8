from __future__ import annotations

import errno
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision.transforms import v2

from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.checkpointing.snapshot import LoaderSnapshot, parts_of
from mxtorch.fine_tuning import CacheError, FeatureCache
from mxtorch.training.modes import set_training_mode


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache_of(told):
    caches = []

    def build(trainer, **options):
        caches.append(FeatureCache(trainer, tell=told.append, **options))
        return caches[-1]

    yield build
    for cache in caches:
        cache.close()


def run(net, make, cache_of, train, val, *, cached, **options):
    """find_lr, then fit with validation, then a random number."""
    seed_everything(7)
    trainer = make(net, channels_last=False)
    if not cached:
        found = trainer.find_lr(train, num_steps=40)
        history = trainer.fit(train, val, epochs=3, lr=0.1, schedule="one_cycle")
    else:
        cache = cache_of(trainer, **options)
        features, val_features = cache.loader(train), cache.loader(val)
        with cache.in_force():
            found = trainer.find_lr(features, num_steps=40)
            history = trainer.fit(features, val_features, epochs=3, lr=0.1, schedule="one_cycle")
    return found, history, torch.rand(1), random.random(), np.random.rand()


def same(one, other, tolerance):
    (found, history, *numbers), (found2, history2, *numbers2) = one, other
    assert numbers == numbers2
    assert [trial.rate for trial in found.trials] == [trial.rate for trial in found2.trials]
    assert [trial.loss for trial in found.trials] == pytest.approx([one.loss for one in found2.trials], rel=tolerance)
    for name in ("train/loss", "val/loss"):
        assert history[name] == pytest.approx(history2[name], rel=tolerance)


@pytest.mark.parametrize("where", ["memory", "file", "folder"])
@pytest.mark.parametrize("workers", [0, 2])
def test_losses_order_and_random_numbers_are_those_without_it(
    frozen, make, train, val, cache_of, where, workers, tmp_path, pictures
):
    initial = {name: value.clone() for name, value in frozen.state_dict().items()}
    if workers:
        train = DataLoader(pictures, 5, shuffle=True, num_workers=workers)
    without = run(frozen, make, cache_of, train, val, cached=False)
    frozen.load_state_dict(initial)
    frozen.samples = 0
    with_it = run(frozen, make, cache_of, train, val, cached=True, where=tmp_path if where == "folder" else where)
    same(with_it, without, 1e-5)
    assert frozen.samples < 120  # 43 samples once, and the search for the cut; without, 3 epochs and 30 steps: 335
    assert not list(tmp_path.iterdir()), "the files have no names, so that nothing stays after a crash"


def test_a_full_disk_is_an_error_that_names_the_folder(frozen, make, train, tmp_path, told, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mxtorch.fine_tuning.storage._reserve", full)
    cache = FeatureCache(make(frozen), where=tmp_path, tell=told.append)
    with pytest.raises(ValueError, match=rf"no room in {tmp_path} \(No space left on device\)"):
        cache.loader(train)
    assert "memory-mapped file" in told[0]
    assert not list(tmp_path.iterdir())


def test_float16_takes_half_the_room(frozen, make, train, val, cache_of, told):
    initial = {name: value.clone() for name, value in frozen.state_dict().items()}
    without = run(frozen, make, cache_of, train, val, cached=False)
    frozen.load_state_dict(initial)
    same(run(frozen, make, cache_of, train, val, cached=True, half=True), without, 2e-2)
    assert "32 x 8 float16, 512 bytes" in told[0]


def test_room_is_told_before_it_is_taken_and_never_over_a_third(
    frozen, make, train, cache_of, told, monkeypatch, tmp_path
):
    from mxtorch.fine_tuning import storage

    monkeypatch.setattr(storage, "free_memory", lambda: 4000)
    cache_of(make(frozen)).loader(train)  # 1024 bytes: below a third
    assert "32 x 8 float32, 1.0 kB in memory (free: 4.0 kB)" in told[-2]
    monkeypatch.setattr(storage, "free_memory", lambda: 3000)
    order = []
    real = storage.table
    monkeypatch.setattr(storage, "table", lambda *arguments: order.append(len(told)) or real(*arguments))
    told.clear()
    cache_of(make(frozen)).loader(train)
    assert "memory-mapped file" in told[0]
    assert "over a third of the free memory (free: 3.0 kB)" in told[0]
    assert order == [1]
    told.clear()
    cache_of(make(frozen), where="memory").loader(train)
    assert "as asked for" in told[0]
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: Usage(0, 0, 2000))
    with pytest.raises(CacheError, match="there is no room"):
        cache_of(make(frozen)).loader(train)


def test_a_changed_backbone_is_seen(frozen, make, train, cache_of, told):
    trainer = make(frozen)
    cache = cache_of(trainer)
    features = cache.loader(train)
    before = features.dataset.bank.features.clone()
    for change in (
        lambda: frozen[0][0].weight.data.mul_(2),  # past torch's count of versions
        lambda: frozen[1][1].running_mean.add_(1),
        lambda: frozen[0].load_state_dict({name: value + 1 for name, value in frozen[0].state_dict().items()}),
    ):
        told.clear()
        change()
        next(iter(features))
        assert "have changed" in told[0]
        now = features.dataset.bank.features.clone()
        assert not torch.allclose(now, before)
        before = now
        with torch.no_grad():
            frozen.eval()
            expected = frozen[1](frozen[0](torch.stack([picture for picture, _ in train.dataset])))
        assert torch.allclose(now, expected, atol=1e-5)
    told.clear()
    frozen[2][1].weight.data.add_(1)  # the head is no part of it
    next(iter(features))
    assert not told
    frozen[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"'1\.0\.weight' is trained now"):
        next(iter(features))


def test_changed_samples_are_seen(frozen, make, pictures, train, cache_of, told):
    cache = cache_of(make(frozen))
    first = cache.loader(train).dataset.bank.features.clone()
    frozen.samples = 0
    assert torch.equal(cache.loader(DataLoader(pictures, 3)).dataset.bank.features, first)
    assert frozen.samples == 0  # known already
    pictures.transform = v2.Normalize([1.0] * 3, [2.0] * 3)
    second = cache.loader(train).dataset.bank.features.clone()
    assert not torch.allclose(first, second)
    pictures.transform.mean = [0.0] * 3
    assert not torch.allclose(second, cache.loader(train).dataset.bank.features)
    pictures.transform = None
    pictures.targets[3] = 1 - pictures.targets[3]
    assert cache.loader(train).dataset.bank.rest == pictures.targets


class Files(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.paths = [folder / f"{index}.pt" for index in range(40)]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return torch.load(self.paths[index], weights_only=True), 0


@pytest.mark.parametrize("picklable", [True, False])
def test_changed_files_are_seen(frozen, make, tmp_path, cache_of, picklable):
    files = Files(tmp_path)
    if not picklable:
        files.function = lambda: None
    for index, path in enumerate(files.paths):
        torch.save(torch.full((3, 8, 8), float(index)), path)
    cache = cache_of(make(frozen))
    data = DataLoader(files, 8)
    first = cache.loader(data).dataset.bank.features.clone()
    torch.save(torch.full((3, 8, 8), -1.0), files.paths[7])  # none of those that are read again
    second = cache.loader(data).dataset.bank.features
    assert (first != second).any(1).nonzero().flatten().tolist() == [7]


class Noisy:
    """Adds noise that is drawn from a generator of torch."""

    def __call__(self, picture):
        return picture + torch.rand(1)


@pytest.mark.parametrize("transform", [v2.RandomHorizontalFlip(0.01), v2.Compose([Noisy()]), Noisy()])
def test_items_that_change_are_refused_or_kept_in_views(frozen, make, pictures, transform, cache_of, told):
    pictures.transform = transform
    cache = cache_of(make(frozen))
    generator = torch.Generator()  # the order's own: the transforms draw from the global one
    data = DataLoader(pictures, 5, shuffle=True, generator=generator)
    with pytest.raises(CacheError, match=r"items change between calls.*views=k"):
        cache.loader(data)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    views = cache.loader(data, views=3)
    assert torch.equal(torch.rand(1), expected)  # drawing the views leaves no trace
    assert "96 x 8 float32" in told[0]
    assert "3 views of 32 samples" in told[0]
    assert len(views) == len(data)
    epochs = []
    for _ in range(4):
        generator.manual_seed(1)
        features, labels = zip(*views, strict=True)
        epochs.append(torch.cat(features))
        generator.manual_seed(1)
        assert torch.equal(torch.cat(labels), torch.cat([y for _, y in data]))
    if not isinstance(transform, v2.RandomHorizontalFlip):
        assert not torch.equal(epochs[0], epochs[1])  # passes 1 and 3, of three views


def test_views_are_pointless_where_nothing_changes(frozen, make, train, cache_of, told):
    assert len(cache_of(make(frozen)).loader(train, views=4).dataset.bank.features) == 32


def test_items_that_change_later_are_refused(frozen, make, pictures, cache_of):
    pictures.calls = 0

    def drifting(picture):
        pictures.calls += 1
        return picture + (1.0 if pictures.calls > 50 else 0.0)

    pictures.transform = drifting
    with pytest.raises(CacheError, match="read again, and differ"):
        cache_of(make(frozen)).loader(DataLoader(pictures, 4))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.ones(3, 8, 8), 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(torch.ones(2, 3, 8, 8), torch.tensor([0, 1]))], "not a torch.utils.data.DataLoader"),
        (DataLoader(Stream()), "no indices"),
        (DataLoader([(torch.ones(3, 8, 8), 0)] * 4, collate_fn=lambda items: items), "collate_fn of its own"),
        (DataLoader([{"x": torch.ones(3, 8, 8)}] * 4), "an item is a dict"),
        (DataLoader([(torch.ones(3, 8, 8), 0), (torch.ones(3, 9, 8), 0)] * 3), "different shapes"),
        (DataLoader([(torch.ones(3, 8, 8), 0)] * 4, batch_size=None), "batch_size=None"),
    ],
)
def test_data_that_can_not_be_kept(frozen, make, cache_of, data, message):
    with pytest.raises(CacheError, match=message):
        cache_of(make(frozen)).loader(data)


def test_samplers_subsets_and_bare_tensors(frozen, make, pictures, cache_of):
    cache = cache_of(make(frozen))
    torch.manual_seed(3)
    data = DataLoader(pictures, 4, sampler=SubsetRandomSampler([1, 5, 9, 30]))
    features = cache.loader(data)
    torch.manual_seed(3)
    labels = [labels.tolist() for _, labels in data]
    torch.manual_seed(3)
    assert [labels.tolist() for _, labels in features] == labels
    assert len(cache.loader(DataLoader(Subset(pictures, range(6)), 3)).dataset) == 6
    bare = DataLoader(TensorDataset(pictures.pictures, torch.zeros(32, 2)), 8)
    assert next(iter(cache.loader(bare)))[1].shape == (8, 2)
    only = next(iter(cache.loader(DataLoader(pictures.pictures, 8))))
    assert only.shape == (8, 8)


def test_arguments_that_are_off(frozen, make, train):
    with pytest.raises(ValueError, match="where: got 'nowhere'"):
        FeatureCache(make(frozen), where="nowhere")
    with pytest.raises(ValueError, match="views: got 0"):
        FeatureCache(make(frozen)).loader(train, views=0)
    with pytest.raises(ValueError, match="no features yet"), FeatureCache(make(frozen)).in_force():
        pass


def test_a_failure_leaves_no_trace(frozen, make, pictures, cache_of, tmp_path):
    calls = []

    def failing(picture):
        calls.append(1)
        if len(calls) > 40:
            raise OSError("the disk is gone")
        return picture

    pictures.transform = failing
    before = torch.get_rng_state()
    with pytest.raises(OSError, match="the disk is gone"):
        cache_of(make(frozen), where=tmp_path).loader(DataLoader(pictures, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


def test_what_is_frozen_stays_in_evaluation_mode(net):
    net[0].requires_grad_(False)
    set_training_mode(net)
    assert not any(module.training for module in net[0].modules())  # dropout, too
    assert all(module.training for module in net[1].modules())
    assert isinstance(net[2][0], nn.Dropout)
    assert net[2][0].training


def test_what_the_features_come_from_is_no_part_of_the_loader(frozen, make, train, val, cache_of):
    trainer = make(frozen)
    cache = cache_of(trainer)
    features = cache.loader(train)
    parts = parts_of(features)
    assert not [part for part in parts if isinstance(part, nn.Module)]
    assert train.sampler in parts, "it decides the order"
    versions = [value._version for value in cache.cut.frozen.values()]
    with cache.in_force():
        for _ in range(3):
            snapshot = LoaderSnapshot(features)
            list(features)
            snapshot.restore()
    assert features.dataset.passes == 0
    assert [value._version for value in cache.cut.frozen.values()] == versions, "nothing was copied and written back"
