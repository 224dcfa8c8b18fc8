"""A search restores all state of a training; state that can't be restored is named before the search."""

from __future__ import annotations

import io
import itertools
import os
import queue
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from settings_of_a_search import (
    DATA,
    LOSSES,
    MODULES,
    PLACES,
    RANDOM,
    SAMPLERS,
    WRAPPED,
    Augmented,
    Growing,
    InAttributes,
    Stateful,
    Wrapper,
    drawing,
    loader_of,
    loss_of,
    nested,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer
from mxtorch.checkpointing import snapshot
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.checkpointing.snapshot import LoaderSnapshot, TrainingState

setting = st.fixed_dictionaries(
    {
        "generator": st.sampled_from(RANDOM),
        "wrapped": st.lists(st.sampled_from(sorted(WRAPPED)), max_size=9),
        "place": st.sampled_from(PLACES),
        "sampler": st.sampled_from(SAMPLERS),
        "data": st.sampled_from(sorted(DATA)),
        "around": st.booleans(),
        "modules": st.lists(st.sampled_from(MODULES), min_size=1, max_size=3),
        "loss": st.sampled_from(LOSSES),
        "optimizer": st.sampled_from([torch.optim.SGD, torch.optim.Adam]),
        "trained_before": st.booleans(),
    }
)


def composed(case):
    seed_everything(7)
    Growing.begun = 0

    def draw():
        return InAttributes(nested(case["wrapped"], drawing(case["generator"])), case["place"])

    loader = loader_of(case["data"], case["sampler"], draw(), case["around"])
    net = nn.Sequential(*(Stateful(kind, draw()) for kind in case["modules"]), nn.Linear(6, 2))
    trained = [parameter for name, parameter in net.named_parameters() if "extra" not in name]
    optimizer = case["optimizer"](trained, lr=0.01)
    return Trainer(net, loss_of(case["loss"], draw()), optimizer, device="cpu", progress=False, log_every=1), loader


def outcome(case, *, searches):
    trainer, loader = composed(case)
    if case["trained_before"]:
        trainer.fit(loader, epochs=1)
    if searches:
        trainer.find_lr(loader, start_lr=1e-4, end_lr=0.1, num_steps=10)
    trainer.fit(loader, epochs=2)
    found = [*trainer.model.state_dict().values(), torch.get_rng_state(), torch.tensor(random.random())]
    found += [torch.tensor(np.random.rand()), torch.tensor([row["train/loss"] for row in trainer.history.rows])]
    found += [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    return [value.clone() for value in found]


@pytest.mark.filterwarnings("ignore:The optimizer leaves out trainable parameters")
@settings(
    max_examples=120, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(setting)
def test_no_trace_in_composed_settings(case):
    first, second = outcome(case, searches=False), outcome(case, searches=True)
    assert len(first) == len(second)
    assert all(map(torch.equal, first, second))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_wrapper_around_a_loader_with_persistent_workers():
    def run(searches):
        seed_everything(7)
        draw = nested(["object"], drawing("python global"))
        loader = DataLoader(Augmented(draw), 8, shuffle=True, num_workers=1, persistent_workers=True)
        data = Wrapper(loader, draw)
        net = nn.Linear(6, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
        trainer.fit(data)
        if searches:
            trainer.find_lr(data, num_steps=6)
        trainer.fit(data)
        return net.weight.detach().clone()

    assert torch.equal(run(False), run(True))


def search(loader, **attributes):
    net = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    vars(trainer).update(attributes)
    trainer.find_lr(loader, num_steps=4)


UNCOVERED = {
    "open file": lambda: io.BytesIO(b"abc"),
    "generator": lambda: (one for one in range(9)),
    "iterator": lambda: iter([1, 2]),
    "count": lambda: itertools.count(),
    "map": lambda: map(int, "12"),
    "queue": lambda: queue.Queue(),
    "SystemRandom": lambda: random.SystemRandom(),
    "iterator of a loader": lambda: iter(DataLoader(Augmented(random.random), 4)),
}


@pytest.mark.parametrize("kind", UNCOVERED)
def test_state_that_can_not_be_restored_is_named_before_the_search(kind):
    data = Augmented(random.random)
    data.transform = {"budget": [UNCOVERED[kind]()]}
    with pytest.warns(UserWarning, match=r"data\.dataset\.transform\['budget'\]\[0\]: an? ") as told:
        search(DataLoader(data, 4))
    assert len(told) == 1


def test_a_running_thread_and_a_file_in_a_closure_are_named_in_one_warning(tmp_path):
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with open(tmp_path / "log", "w") as file, pytest.warns(UserWarning, match="thread: a .*Thread") as told:
            search(DataLoader(Augmented(lambda: file.fileno() * 0.0), 4), thread=thread)
        assert len(told) == 1
        assert "file" in str(told[0].message)
    finally:
        end.set()
        thread.join()


def test_ctrl_c_at_the_start_of_a_restore(monkeypatch):
    loader = DataLoader(Augmented(random.random), 4)
    net = nn.Linear(6, 2)
    before = TrainingState([net], None, loader=loader)
    weight = net.weight.detach().clone()
    nn.init.zeros_(net.weight)
    deferred, calls = snapshot.deferred_interrupt, []

    def interrupted():
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return deferred()

    monkeypatch.setattr(snapshot, "deferred_interrupt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        before.restore()
    assert torch.equal(net.weight, weight)


def test_large_data_are_not_copied_and_their_changes_are_reported():
    data = TensorDataset(torch.zeros(3 * 2**20, 2), torch.zeros(3 * 2**20))
    data.numbers = np.zeros(2**22)
    before = LoaderSnapshot(DataLoader(data, 4))
    assert sum(saved.nbytes for _, saved in before._tensors) <= snapshot.MOST_COPIED_OF_DATA
    before.restore()
    data.tensors[0][0] += 1
    data.numbers[0] = 1
    with pytest.warns(UserWarning, match=r"data\.dataset\.numbers.*data\.dataset\.tensors\[0\]|tensors\[0\].*numbers"):
        before.restore()


@pytest.mark.parametrize(
    "values",
    [
        lambda: list(range(10**6)),
        lambda: [(f"{index}.png", index % 9) for index in range(300_000)],
        lambda: {index: str(index) for index in range(300_000)},
    ],
    ids=["numbers", "samples", "dictionary"],
)
def test_long_data_cost_little(values):
    data = Augmented(random.random)
    data.samples = values()
    began = time.process_time()  # other processes do not count
    before = LoaderSnapshot(DataLoader(data, 4))
    assert time.process_time() - began < 2
    if isinstance(data.samples, list):
        random.shuffle(data.samples)
        before.restore()
        assert data.samples == values()


def test_generators_among_global_variables_and_on_classes():
    before = LoaderSnapshot(DataLoader(UsesGlobals(), 4))
    first = [UsesGlobals()[0] for _ in range(3)]
    before.restore()
    assert [UsesGlobals()[0] for _ in range(3)] == first


CHANCE = random.Random(4)


class UsesGlobals(Augmented):
    own = np.random.default_rng(3)
    read = 0

    def __init__(self):
        super().__init__(random.random)

    def __getitem__(self, index):
        type(self).read += 1
        return CHANCE.random() + self.own.random() + self.read


def test_a_model_that_a_loader_refers_to_is_no_part_of_the_loader():
    data = Augmented(random.random)
    net = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    data.trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    loader = DataLoader(data, 4)
    before, taken = LoaderSnapshot(loader), data.taken
    data.trainer.fit(loader)
    weight = net.weight.detach().clone()
    before.restore()
    assert data.taken == taken
    assert torch.equal(net.weight, weight)
    assert data.trainer.optimizer.current_steps == 8
