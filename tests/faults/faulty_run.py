"""The run that the fault tests kill, break and interrupt, in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # imported by the first optimizer otherwise, in each process anew
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mxtorch import Callback, ScheduledOptim, Trainer
from mxtorch.callbacks import Checkpoint

TIMES = ("seconds", "samples_per_second")
EPOCHS = 3
STEPS = 3 * 15

# As many kinds of run as there are; a trial takes one of them.
KINDS: dict[str, dict] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "half precision": {"precision": "fp16"},
    "workers": {"workers": 1},
    "persistent workers": {"workers": 2, "persistent": True},
    "adam": {"optimizer": torch.optim.Adam},
}


class Noisy(Dataset):
    """Random augmentation from all three global generators."""

    def __init__(self, count=240):
        self.inputs = torch.arange(count * 8, dtype=torch.float32).reshape(count, 8).sin()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return self.inputs[index] + 0.01 * noise, int(self.inputs[index].sum() > 0)


class Average(Callback):
    """Averaged weights."""

    def __init__(self):
        self.average = torch.zeros(1)

    def on_step(self, trainer):
        now = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        self.average = 0.9 * self.average + 0.1 * now

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


def build(folder, *, every=1, callbacks=(), accumulate=1, precision="fp32", optimizer=torch.optim.SGD, **options):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    return Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(optimizer(net.parameters(), lr=0.05)),
        callbacks=[Average(), *callbacks, Checkpoint(folder, every=every, keep=3)],
        device="cpu",
        progress=False,
        log_every=4,
        seed=3,
        accumulate=accumulate,
        precision=precision,
        **options,
    )


def loaders(workers=0, persistent=False):
    train = DataLoader(Noisy(), 16, shuffle=True, num_workers=workers, persistent_workers=persistent)
    return train, DataLoader(Noisy(64), 32)


def everything(trainer):
    """Weights, optimizer, callback, History: what has to be the same bit for bit."""
    history = [
        [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
        for rows in (trainer.history.rows, trainer.history.records)
    ]
    average = next(one for one in trainer.callbacks.callbacks if isinstance(one, Average))
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "average": average.average,
        "history": history,
        "random": torch.get_rng_state(),
    }


def train(folder, kind, *, result=None, every=1, callbacks=(), resume="auto", **fit):
    """Train to the end, or to where something happens; write what came out."""
    torch.set_num_threads(1)
    settings = dict(KINDS[kind])
    data = loaders(settings.pop("workers", 0), settings.pop("persistent", False))
    trainer = build(folder, every=every, callbacks=callbacks, **settings)
    trainer.fit(*data, epochs=EPOCHS, lr=0.05, schedule="one_cycle", resume=resume, **fit)
    if result is not None:
        torch.save(everything(trainer), result)


def start(target, *arguments, **named):
    """Run a function in a forked process that ends with it."""

    def outcome():
        try:
            target(*arguments, **named)
        except SystemExit as end:
            return end.code
        except KeyboardInterrupt:
            raise
        except BaseException:
            # torch tells a worker's death by a signal handler, which may raise while this prints.
            with contextlib.suppress(RuntimeError):
                traceback.print_exc()
            return 1
        return 0

    def run():
        torch.set_num_threads(1)  # the threads of the process that was forked are not there to wait for
        os.fsync = lambda descriptor: None  # a killed process, other than a machine, leaves its files to the system
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            status = outcome()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:  # in the training, or when it had just ended
            status = 130
        sys.stderr.flush()
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def same(first: Path, second: Path) -> bool:
    """Whether two results are equal bit for bit."""

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal(torch.load(first, weights_only=True), torch.load(second, weights_only=True))
