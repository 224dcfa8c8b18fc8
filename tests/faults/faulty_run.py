"""The run that the fault tests kill, break and interrupt, in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import OrderedDict
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch._dynamo  # imported by the first optimizer otherwise, in each process anew
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from mxtorch import Callback, ScheduledOptim, Trainer
from mxtorch.callbacks import EMA, SWA, Checkpoint
from mxtorch.data.mixing import Mixed

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


# Settings where the way back is harder. A run that can't go on exactly has to say so when it is resumed.
HARD_KINDS: dict[str, dict] = {
    "lazy sampler": {"sampler": "lazy", "may_tell": True},
    "sampler that shuffles in place": {"sampler": "in place"},
    "stateful loader": {"stateful": True, "accumulate": 4},
    "averaged at the end": {"averages": SWA},
    "exponential average": {"averages": EMA},
    "three workers": {"workers": 3},
    "accumulation with a rest": {"accumulate": 4, "workers": 1, "persistent": True, "around": True},
    "half precision with a module's own state": {"precision": "fp16", "holds": True},
    "two fits": {"fits": 2, "workers": 1},
    "stream": {"stream": True, "may_tell": True},
    "mixed samples": {"mixed": True, "holds": True},
    "another number of workers": {"workers": "changing", "may_tell": True},
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


class Lazy(Sampler):
    """Draws one index after the other from a global generator."""

    def __iter__(self):
        return (int(torch.randint(240, ())) for _ in range(240))

    def __len__(self):
        return 240


class InPlace(Sampler):
    """Goes on from the order of the epoch before."""

    def __init__(self):
        self.indices = list(range(240))

    def __iter__(self):
        random.shuffle(self.indices)
        return iter(list(self.indices))

    def __len__(self):
        return 240


class Stream(IterableDataset):
    """Samples one after the other; a second pass goes on with other ones."""

    def __iter__(self):
        for index in range(240):
            yield torch.full((8,), float(index)).sin() + 0.1 * random.random(), index % 2


class StatefulStream(Stream):
    """Knows its place."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 240:
            self.place += 1
            yield torch.full((8,), float(self.place)).sin(), self.place % 2
        self.place = 0

    def __len__(self):
        return 240

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


class Around:
    """A loader around a loader, which counts its epochs."""

    def __init__(self, loader):
        self.loader, self.epoch = loader, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.epoch += 1
        for inputs, labels in self.loader:
            yield inputs + 0.1 * self.epoch, labels


def pictures(samples):
    inputs, labels = default_collate(samples)
    return inputs.reshape(-1, 8, 1, 1), labels


class Held(NamedTuple):
    count: int
    mean: torch.Tensor


class Holds(nn.Module):
    """State in a hidden module, a helper object, a named tuple and an order."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.BatchNorm1d(16)]
        self.helper = SimpleNamespace(seen=[0.0], inner=SimpleNamespace(count=0))
        self.held = Held(0, torch.zeros(16))
        self.order = OrderedDict((name, float(name)) for name in range(4))

    def forward(self, inputs):
        if self.training:
            with torch.no_grad():
                self.hidden[0](inputs.float())
                self.held = Held(self.held.count + 1, self.held.mean + self.hidden[0].running_mean)
                self.helper.inner.count += 1
                self.helper.seen.append(float(self.held.mean.mean()))
                self.order.move_to_end(next(iter(self.order)))
                self.made = getattr(self, "made", 0) + 1
        change = self.helper.inner.count + next(iter(self.order.values())) + getattr(self, "made", 0)
        return inputs + 0.001 * self.held.mean + 0.001 * (change % 7)


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


def build(
    folder, *, every=1, callbacks=(), accumulate=1, precision="fp32", optimizer=torch.optim.SGD, holds=False, **options
):
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)]
    net = nn.Sequential(*([*layers[:4], Holds(), *layers[4:]] if holds else layers))
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


def loaders(workers=0, persistent=False, sampler=None, stateful=False, stream=False, around=False, mixed=False):
    settings = {"num_workers": workers, "persistent_workers": persistent}
    if stateful:
        train = StatefulDataLoader(StatefulStream(), 16)
    elif stream:
        train = DataLoader(Stream(), 16)
    elif sampler is not None:
        train = DataLoader(Noisy(), 16, sampler=Lazy() if sampler == "lazy" else InPlace())
    else:
        train = DataLoader(Noisy(), 16, shuffle=True, **settings, collate_fn=pictures if mixed else None)
    train = Mixed(train, num_classes=2, cutmix=None) if mixed else train
    return Around(train) if around else train, DataLoader(Noisy(64), 32)


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
    """Train to the end, or to where something happens; write what came out, and what was told."""
    torch.set_num_threads(1)
    settings = dict((KINDS | HARD_KINDS)[kind])
    settings.pop("may_tell", None)
    fits, averages = settings.pop("fits", 1), settings.pop("averages", None)
    if settings.get("workers") == "changing":
        settings["workers"] = 1 if list(Path(folder).glob("step-*")) else 2
    if settings.get("stream"):
        fit["steps_per_epoch"] = STEPS // EPOCHS
    names = ("workers", "persistent", "sampler", "stateful", "stream", "around", "mixed")
    data = loaders(**{name: settings.pop(name) for name in names if name in settings})
    if averages is not None:
        callbacks = [*callbacks, averages(data[0]) if averages is SWA else averages(0.9)]
    trainer = build(folder, every=every, callbacks=callbacks, **settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(fits):
            trainer.fit(*data, epochs=EPOCHS, lr=0.05, schedule="one_cycle", resume=resume, **fit)
    if any(words in str(one.message) for one in told for words in ("exactly", "bit for bit")):
        Path(folder).with_suffix(".told").touch()
    if result is not None:
        torch.save(everything(trainer), result)


class Process(ForkProcess):
    """A forked process that is waited for without its workers, which outlive one that is killed by seconds."""

    def join(self, timeout=math.inf):
        end = time.monotonic() + timeout
        while self.exitcode is None and time.monotonic() < end:
            time.sleep(0.005)


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

    process = Process(target=run)
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
