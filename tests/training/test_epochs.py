"""What an epoch is: every sample once, and the loader decides when it ends."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
    get_worker_info,
)

from mxtorch import Callback, Trainer, schedules

COUNT = 24


def fit(data, *, epochs=1, net=None, callbacks=(), accumulate=1, **options):
    """The samples of each epoch, and the trainer."""
    torch.manual_seed(1)
    net = nn.Linear(1, 1) if net is None else net
    seen: list[list[int]] = []

    class Epochs(Callback):
        def on_epoch_start(self, trainer):
            seen.append([])

    def note(module, inputs, outputs):
        if module.training:  # a validation batch is tried before the first epoch, too
            seen[-1].extend(inputs[0].flatten().long().tolist())

    hook = net.register_forward_hook(note)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    trainer = Trainer(
        net,
        nn.MSELoss(),
        optimizer,
        callbacks=[Epochs(), *callbacks],
        accumulate=accumulate,
        device="cpu",
        progress=False,
    )
    trainer.fit(data, epochs=epochs, **options)
    hook.remove()
    return seen, trainer


def flat(epochs):
    return list(itertools.chain(*epochs))


def numbers() -> TensorDataset:
    return TensorDataset(torch.arange(float(COUNT))[:, None], torch.zeros(COUNT, 1))


class Growing:
    """Batches get smaller, and more, with each epoch."""

    epoch = 0

    def __len__(self):
        return 4 if self.epoch == 0 else 8

    def __iter__(self):
        size = COUNT // len(self)
        self.epoch += 1
        return iter([list(range(start, start + size)) for start in range(0, COUNT, size)])


class Shrinking(Growing):
    def __len__(self):
        return 8 if self.epoch == 0 else 4


class Wrong(Sampler):
    """Says a length that it does not have."""

    def __init__(self, promised):
        self.promised = promised

    def __len__(self):
        return self.promised

    def __iter__(self):
        return iter(range(COUNT))


class Stream(IterableDataset):
    """Splits its numbers between workers, which end with batches of different sizes."""

    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return ((torch.tensor([float(k)]), torch.zeros(1)) for k in range(first, COUNT, step))


class Sized(Stream):
    def __len__(self):
        return COUNT if self.length is None else self.length


class NoLength:
    def __iter__(self):
        return iter(DataLoader(numbers(), 5))


LOADERS = {
    "a growing batch sampler": lambda: DataLoader(numbers(), batch_sampler=Growing()),
    "a shrinking batch sampler": lambda: DataLoader(numbers(), batch_sampler=Shrinking()),
    "a sampler that promises too little": lambda: DataLoader(numbers(), 4, sampler=Wrong(8)),
    "a sampler that promises too much": lambda: DataLoader(numbers(), 4, sampler=Wrong(80)),
    "a stream with a length": lambda: DataLoader(Sized(), 5),
    "a stream with a length, and three workers": lambda: DataLoader(Sized(), 5, num_workers=3),
    "a stream with three workers": lambda: DataLoader(Stream(), 5, num_workers=3),
    "a stream with persistent workers": lambda: DataLoader(Sized(), 5, num_workers=2, persistent_workers=True),
    "a stream that promises too little": lambda: DataLoader(Sized(10), 5),
    "a stream that promises too much": lambda: DataLoader(Sized(100), 5),
    "shuffled": lambda: DataLoader(numbers(), 5, shuffle=True),
    "no length": NoLength,
    "a list": lambda: list(DataLoader(numbers(), 5)),
    "a batch sampler around a sampler": lambda: DataLoader(
        numbers(), batch_sampler=BatchSampler(SequentialSampler(range(COUNT)), 7, False)
    ),
}


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_has_every_sample_once(kind, accumulate):
    seen, _ = fit(LOADERS[kind](), epochs=3, accumulate=accumulate)
    assert [sorted(epoch) for epoch in seen] == [list(range(COUNT))] * 3


class AtItsEnd:
    """A loader that does something at the end of a pass, as those of Accelerate and torchdata do."""

    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 6

    def __iter__(self):
        yield from DataLoader(numbers(), 4)
        self.passes += 1


def test_a_loader_is_exhausted():
    data = AtItsEnd()
    fit(data, epochs=3)
    assert data.passes == 3


def test_a_loader_with_a_generator_deals_the_order_that_plain_torch_gets():
    def made():
        return DataLoader(numbers(), 4, shuffle=True, generator=torch.Generator().manual_seed(3))

    plain = made()
    expected = [[int(k) for inputs, _ in plain for k in inputs.flatten()] for _ in range(3)]
    assert fit(made(), epochs=3)[0] == expected


# ---------------------------------------------------------------- streams that are cut


class Endless(IterableDataset):
    def __iter__(self):
        return ((torch.tensor([float(k)]), torch.zeros(1)) for k in itertools.count())


class EndlessWithLength(Endless):
    def __len__(self):
        return 1000


class Plain:
    def __iter__(self):
        for k in itertools.count():
            yield torch.tensor([[float(k)]]), torch.zeros(1, 1)


def generator():
    yield from Plain()


CUT = {
    "a stream": lambda: DataLoader(Endless(), 1),
    "a stream with a length": lambda: DataLoader(EndlessWithLength(), 1),
    "a stream with a worker": lambda: DataLoader(Endless(), 1, num_workers=1),
    "a stream with a persistent worker": lambda: DataLoader(Endless(), 1, num_workers=1, persistent_workers=True),
    "an iterable": Plain,
    "an iterator": generator,
    "a loader with indices": lambda: DataLoader(numbers(), 1),
    "a list": lambda: list(DataLoader(numbers(), 1)),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", CUT)
def test_an_epoch_that_is_cut_is_gone_on_with(kind, accumulate):
    seen, trainer = fit(CUT[kind](), epochs=3, steps_per_epoch=3, accumulate=accumulate)
    assert flat(seen) == list(range(9 * accumulate))
    assert trainer.step == 9


@pytest.mark.parametrize("kind", ["shuffled", "no length", "a list", "a stream with a length"])
def test_data_that_end_are_begun_again_within_an_epoch(kind):
    seen, trainer = fit(LOADERS[kind](), epochs=5, steps_per_epoch=2, schedule="one_cycle")
    assert trainer.step == 10  # as the schedule was made for
    assert sorted(flat(seen)[:COUNT]) == list(range(COUNT))
    assert len(flat(seen)) == 2 * COUNT


def test_more_steps_than_there_are_end_with_the_data():
    seen, _ = fit(LOADERS["shuffled"](), epochs=2, steps_per_epoch=50)
    assert [sorted(epoch) for epoch in seen] == [list(range(COUNT))] * 2


def test_an_iterator_that_has_ended_is_an_error():
    with pytest.raises(ValueError, match="it has ended, and can be read only once"):
        fit(iter(list(DataLoader(numbers(), 4))), epochs=4, steps_per_epoch=3)


def test_no_worker_outlives_a_run_that_was_cut():
    import multiprocessing

    others = set(multiprocessing.active_children())
    fit(DataLoader(Endless(), 1, num_workers=1), epochs=2, steps_per_epoch=3)
    assert set(multiprocessing.active_children()) <= others


# ---------------------------------------------------------------- set_epoch


class Notes:
    """Anything with `set_epoch`."""

    def __init__(self):
        self.epochs: list[int] = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class NotingSampler(Notes, Sampler):
    def __iter__(self):
        return iter(range(COUNT))

    def __len__(self):
        return COUNT


class NotingBatchSampler(Notes):
    def __iter__(self):
        return iter([[0, 1], [2, 3]])

    def __len__(self):
        return 2


class NotingDataset(Notes, Dataset):
    def __getitem__(self, index):
        return torch.zeros(1), torch.zeros(1)

    def __len__(self):
        return COUNT


class NotingStream(Notes, Stream):
    pass


class NotingLoader(Notes):
    def __iter__(self):
        return iter(DataLoader(numbers(), 4))


def with_sampler():
    sampler = NotingSampler()
    return DataLoader(numbers(), 4, sampler=sampler), sampler


def with_batch_sampler():
    sampler = NotingBatchSampler()
    return DataLoader(numbers(), batch_sampler=sampler), sampler


def with_sampler_within():
    sampler = NotingSampler()
    return DataLoader(numbers(), batch_sampler=BatchSampler(sampler, 4, False)), sampler


def with_dataset():
    dataset = NotingDataset()
    return DataLoader(dataset, 4), dataset


def with_stream():
    dataset = NotingStream()
    return DataLoader(dataset, 4), dataset


def with_loader():
    data = NotingLoader()
    return data, data


NOTING = [with_sampler, with_batch_sampler, with_sampler_within, with_dataset, with_stream, with_loader]


@pytest.mark.parametrize("made", NOTING)
def test_the_epoch_is_set_once_for_each_pass(made):
    data, noting = made()
    trainer = fit(data, epochs=3)[1]
    assert noting.epochs == [0, 1, 2]
    trainer.callbacks.callbacks.clear()
    trainer.fit(data)
    assert noting.epochs == [0, 1, 2, 3]


def test_a_distributed_sampler_deals_a_new_order_in_each_epoch():
    data = DataLoader(numbers(), 6, sampler=DistributedSampler(numbers(), 1, 0))
    seen, _ = fit(data, epochs=3)
    assert len({tuple(epoch) for epoch in seen}) == 3


# ---------------------------------------------------------------- schedules


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
@pytest.mark.parametrize("kind", ["a sampler that promises too little", "a stream that promises too much"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine_annealing"])
def test_a_schedule_for_another_length_is_warned_of_once(kind, schedule):
    with pytest.warns(UserWarning, match="its length promised .* The schedule was made for the promise") as caught:
        fit(LOADERS[kind](), epochs=3, schedule=schedule)
    assert sum("promised" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize("schedule", [None, "constant", lambda step: 1.0])
def test_other_schedules_do_not_depend_on_the_length(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(LOADERS["a sampler that promises too little"](), epochs=2, schedule=schedule)


# ---------------------------------------------------------------- resume


class Saves(Callback):
    def __init__(self, step, path, when):
        self.step, self.path, self.when = step, path, when

    def on_step(self, trainer):
        if self.when == "step" and trainer.step == self.step:
            trainer.save(self.path)

    def on_epoch_complete(self, trainer, row):
        if self.when == "epoch" and trainer.step == self.step:
            trainer.save(self.path)


class Noisy(IterableDataset):
    """A stream that draws random numbers."""

    def __iter__(self):
        while True:
            yield torch.randn(1), torch.randn(1)


RESUMED = {
    "shuffled": lambda: DataLoader(numbers(), 2, shuffle=True),
    "shuffled, with a generator": lambda: DataLoader(
        numbers(), 2, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "a distributed sampler": lambda: DataLoader(numbers(), 2, sampler=DistributedSampler(numbers(), 1, 0)),
    "a stream": lambda: DataLoader(Endless(), 2),
    "workers": lambda: DataLoader(numbers(), 2, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(numbers(), 2, shuffle=True, num_workers=2, persistent_workers=True),
}


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("steps_per_epoch", [None, 5])
@pytest.mark.parametrize(
    "when", ["step 3", "step 5", "step 12", "step 13", "step 17", "epoch 5", "epoch 10", "epoch 12"]
)
@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_goes_on_where_it_was(kind, when, steps_per_epoch, validates, tmp_path):
    if kind == "a stream" and steps_per_epoch is None:
        pytest.skip("an endless stream has to be cut")
    event, step = when.split()
    if event == "epoch" and int(step) % (steps_per_epoch or 12):
        pytest.skip("no epoch ends there")
    if "workers" in kind and (validates or when not in ("step 3", "step 17", "epoch 10")):
        pytest.skip("slow")
    held_out = DataLoader(numbers(), 5, shuffle=True) if validates else None
    options = {"epochs": 4, "steps_per_epoch": steps_per_epoch, "schedule": schedules.OneCycle()}

    def network():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(1, 3), nn.Dropout(0.5), nn.Linear(3, 1))

    path = tmp_path / "x.ckpt"
    whole_net = network()
    seen, whole = fit(
        RESUMED[kind](), net=whole_net, callbacks=[Saves(int(step), path, event)], val_data=held_out, **options
    )
    net = network()
    rest, resumed = fit(RESUMED[kind](), net=net, val_data=held_out, resume=path, **options)
    rest = flat(rest)
    assert rest == flat(seen)[-len(rest) :]
    for mine, expected in zip(net.parameters(), whole_net.parameters(), strict=True):
        assert torch.equal(mine, expected)
    names = ["train/loss", "learning_rate", *(["val/loss"] if validates else [])]
    assert all(resumed.history[name] == whole.history[name] for name in names)
