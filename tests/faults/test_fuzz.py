"""Files that are damaged, foreign or forged: one kind of error, nothing run, nothing changed.

`pytest tests/faults/test_fuzz.py --fuzz 10000` for more of them.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, ScheduledOptim, Trainer, schedules
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing.file import CheckpointError

JUNK = [None, True, -1, 0, 3, 2**70, 0.5, float("nan"), "", "x", b"y", [], [1], {}, {"a": 1}, (), torch.ones(2)]
JUNK += [torch.zeros(0), torch.tensor([float("inf")]), [[]], {"names": [], "values": None, "present": None}, set()]


class Stateful(Callback):
    count = torch.zeros(2)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def build(folder, every="epoch"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.1), nn.Linear(4, 2))
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    callbacks = [Stateful(), Checkpoint(folder, every=every, keep=100)]
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False)


def loader():
    return DataLoader(TensorDataset(torch.arange(48.0).reshape(12, 4).sin(), torch.arange(12) % 2), 4, shuffle=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of mid-epoch."""
    folder = tmp_path_factory.mktemp("source")
    build(folder, every=1).fit(loader(), epochs=2, lr=0.1, schedule="one_cycle")
    return folder / "step-00000004.ckpt"


def state_of(trainer):
    return copy.deepcopy(
        [
            trainer.model.state_dict(),
            trainer.optimizer.state_dict(),
            trainer.history.rows,
            trainer.step,
            trainer.epoch,
            torch.get_rng_state(),
            [one.state_dict() for one in trainer.callbacks.callbacks],
        ]
    )


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def tried(trainer, path, *, resume):
    """Load a file: True where it was refused, with the one kind of error and nothing changed."""
    before = state_of(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = None
        try:
            if resume:
                trainer.fit(loader(), epochs=2, lr=0.1, schedule="one_cycle", resume=path)
            else:
                trainer.load(path)
        except CheckpointError as error:
            refusal = str(error)
    if refusal is None:
        return False
    if "train_data" not in refusal:  # which is told when the data are opened, after the rest was loaded
        assert str(path) in refusal
        assert equal(before, state_of(trainer))
    return True


def mutated(content, chance):
    """One value somewhere in the structure replaced, removed or doubled."""
    content = copy.deepcopy(content)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            place = inner
            continue
        if chance.random() < 0.2:
            del place[key]
        else:
            place[key] = chance.choice(JUNK)
        return content


def test_damaged_bytes(checkpoint, tmp_path, request):
    chance, whole = random.Random(1), checkpoint.read_bytes()
    trainer, path = build(tmp_path / "run"), tmp_path / "damaged.ckpt"
    refused = 0
    count = request.config.getoption("--fuzz")
    for _ in range(count):
        content = bytearray(whole)
        kind = chance.randrange(4)
        if kind == 0:
            del content[chance.randrange(len(content)) :]
        elif kind == 1:
            for _ in range(chance.randint(1, 8)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            start = chance.randrange(len(content))
            content[start : start + chance.randint(1, 500)] = chance.randbytes(chance.randint(0, 500))
        else:
            content = bytearray(chance.randbytes(chance.randint(0, 3000)))
        path.write_bytes(content)
        refused += tried(trainer, path, resume=False)
    assert refused >= 0.6 * count  # flips in the padding between records mean nothing


@pytest.mark.parametrize("resume", [False, True])
def test_forged_structures(checkpoint, tmp_path, request, resume, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    chance, content = random.Random(2), torch.load(checkpoint, weights_only=True)
    path = tmp_path / "forged.ckpt"
    refused = 0
    count = request.config.getoption("--fuzz") // (8 if resume else 2)
    for index in range(count):
        torch.save(mutated(content, chance), path)
        refused += tried(build(tmp_path / f"run{index}"), path, resume=resume)
    assert refused >= 0.3 * count


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["model", "run", "random", "callbacks", "alone", "bare"])
def test_no_code_is_run(checkpoint, tmp_path, place):
    proof, path = tmp_path / "proof", tmp_path / "evil.ckpt"
    evil = Evil(f"touch {proof}")
    if place == "bare":
        path.write_bytes(pickle.dumps(evil))
    else:
        content = torch.load(checkpoint, weights_only=True)
        torch.save(evil if place == "alone" else {**content, place: evil}, path)
    assert tried(build(tmp_path / "run"), path, resume=False)
    assert not proof.exists()


def test_settings_of_schedules(request):
    """The dictionaries from which a checkpoint makes its schedule again."""
    chance = random.Random(3)
    kinds = [schedules.OneCycle(10), schedules.WarmupCosine(10, 2), schedules.MultiStep([3, 6]), schedules.Step(4)]
    for _ in range(request.config.getoption("--fuzz")):
        forged = mutated(chance.choice(kinds).to_dict(), chance)
        try:
            made = schedules.from_dict(forged)
        except (ValueError, TypeError):
            continue
        assert isinstance(made, schedules.Schedule)
