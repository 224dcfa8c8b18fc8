"""A run that dies in a chosen step and is resumed, beside the run that never stopped."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mxtorch import Callback, ScheduledOptim, Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing.random_state import seed_everything

TIMES = ("seconds", "samples_per_second")


class Augmented(Dataset):
    """Each of the three global generators adds noise to every sample, as random augmentation does."""

    def __init__(self, count=90):
        self.inputs = torch.arange(count * 8, dtype=torch.float32).reshape(count, 8).sin()
        self.own = np.random.default_rng(7)
        self.uses_own = False
        self.taken = 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.taken += 1
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        noise += self.own.random() + 1e-3 * self.taken if self.uses_own else 0.0
        return self.inputs[index] + 0.01 * noise, int(self.inputs[index].sum() > 0)


class Counting(nn.Module):
    """State that no state_dict has: a counter, a tensor, a list, a generator, a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.last = torch.zeros(1)
        self.seen = [0.0, 0.0]
        self.noise = torch.Generator().manual_seed(2)
        self.register_buffer("mean", torch.zeros(16), persistent=False)

    def forward(self, inputs):
        if self.training:
            self.calls += 1
            self.last.copy_(inputs.detach().mean())
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
            self.seen.append(float(self.last))
            del self.seen[0]
        noise = torch.rand((), generator=self.noise)
        return inputs - 0.1 * self.mean + 1e-3 * (self.calls + sum(self.seen) + noise) + self.last


class Average(Callback):
    """An average of the weights, as EMA keeps: state of a callback, moved in every step."""

    def __init__(self):
        self.average = None

    def on_step(self, trainer):
        now = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        self.average = now.clone() if self.average is None else 0.9 * self.average + 0.1 * now

    def state_dict(self):
        return {} if self.average is None else {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


class KilledError(Exception):
    """The process ends here."""


class Kill(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        if trainer.step == self.at:
            raise KilledError


def build(folder, kill=None, *, every=1, callbacks=(), optimizer=torch.optim.SGD, **options):
    """A trainer as a new process would make it; it dies in the step after `kill`."""
    seed_everything(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), Counting(), nn.Linear(16, 2))
    settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    groups = [{"params": net[0].parameters(), "lr": 0.02}, {"params": net[1:].parameters(), "lr": 0.05}]
    callbacks = [Checkpoint(folder, every=every), Average(), *callbacks]
    if kill is not None:
        callbacks.insert(0, Kill(kill + 1))
    return Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(optimizer(groups, **settings)),
        callbacks=callbacks,
        **({"device": "cpu", "progress": False, "log_every": 4} | options),
    )


def everything(trainer):
    """All numbers that training left, by name."""
    counting = trainer.model[4]
    average = next(callback for callback in trainer.callbacks.callbacks if isinstance(callback, Average))
    found = {f"model {name}": value.clone() for name, value in trainer.model.state_dict().items()}
    found |= {"calls": counting.calls, "last": counting.last, "mean": counting.mean, "seen": list(counting.seen)}
    for index, entry in enumerate(trainer.optimizer.state.values()):
        found |= {f"optimizer {index} {name}": value for name, value in entry.items()}
    found |= {"rates": trainer.optimizer.learning_rates, "steps": trainer.optimizer.current_steps}
    found |= {"step": trainer.step, "epoch": trainer.epoch, "average": average.average}
    found |= {"torch": torch.get_rng_state(), "python": random.random(), "numpy": np.random.rand()}
    if trainer.engine.precision == "fp16":
        found["scale"] = trainer.engine.state_dict()["scale"]
    for name in ("rows", "records"):
        rows = getattr(trainer.history, name)
        found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, f"{name} differs: {value} {second[name]}"


def check(folder, make_data, kill, *, val=None, fit=None, epochs=3, expect_warning=None, again=None, **options):
    """Train whole; train, die, resume; compare."""
    fit = {"lr": 0.05, "schedule": "one_cycle"} if fit is None else fit

    loaders = []

    def go(name, kill, resume):
        end_workers()
        trainer = build(folder / name, kill, **options)
        data = make_data()
        val_data = None if val is None else val()
        loaders.extend([data, val_data])
        arguments = {key: value(trainer) if callable(value) else value for key, value in fit.items()}
        seed_everything(5)
        trainer.fit(data, val_data, epochs=epochs, resume=resume, **arguments)
        return everything(trainer)

    def end_workers():
        """As the end of their process does."""
        for loader in loaders:
            if hasattr(getattr(loader, "_iterator", None), "_shutdown_workers"):
                loader._iterator._shutdown_workers()
        loaders.clear()

    whole = go("whole", None, None)
    with pytest.raises(KilledError):
        go("broken", kill, "auto")
    if again is not None:
        with pytest.raises(KilledError):
            go("broken", again, "auto")
    if expect_warning:
        with pytest.warns(UserWarning, match=expect_warning):
            go("broken", None, "auto")
        return
    assert_same(whole, go("broken", None, "auto"))
    end_workers()


def plain(**settings):
    return lambda: DataLoader(Augmented(), 16, shuffle=True, **settings)  # 6 batches an epoch, the last one short
