"""Small networks and data that the tests share."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import threading

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, ScheduledOptim, Trainer

matplotlib.use("Agg")
# What a forked process, as a worker of a loader, has from this one is not for it to collect: looking through it would
# copy all of its memory.
os.register_at_fork(after_in_child=gc.freeze)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=12, help="runs that tests/faults kills and resumes")
    parser.addoption("--fuzz", type=int, default=400, help="damaged and foreign files that tests/faults reads")


def pytest_collection_finish():
    """What was imported stays; the collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """A shell starts what runs in its background without Ctrl-C; tests of it need Python's own handler."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _workers_ended():
    """End the workers of loaders that a test leaves.

    A loader may be part of a cycle, as an exception makes one with its frames. Python's collector then closes the
    queues of the loader's workers before the loader tells them to end, and torch waits 5 seconds for each of them,
    in whatever test the collector happens to run.
    """
    yield
    if multiprocessing.active_children():
        for one in gc.get_objects():
            if hasattr(type(one), "_shutdown_workers"):
                one._shutdown_workers()


@pytest.fixture
def two_moons() -> TensorDataset:
    """256 points of two classes that a line does not quite separate."""
    inputs = torch.randn(256, 8)
    labels = (inputs[:, 0] + inputs[:, 1] ** 2 > 0.5).long()
    return TensorDataset(inputs, labels)


@pytest.fixture
def loader(two_moons) -> DataLoader:
    return DataLoader(two_moons, batch_size=32, shuffle=True)


@pytest.fixture
def net() -> nn.Module:
    """Batch normalisation and dropout: state besides the parameters, randomness in the step."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


@pytest.fixture
def make():
    """Makes a trainer on the CPU, with momentum, as `make(net, loss, lr=0.1, **options)`."""

    def make_trainer(net: nn.Module, loss=None, lr: float = 0.1, **options) -> Trainer:
        optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9))
        options = {"device": "cpu", "progress": False} | options
        return Trainer(net, nn.CrossEntropyLoss() if loss is None else loss, optimizer, **options)

    return make_trainer


@pytest.fixture
def weights():
    """Copies a network's parameters."""
    return lambda net: [parameter.detach().clone() for parameter in net.parameters()]


class Recorder(Callback):
    """Writes down every hook that is called."""

    def __init__(self) -> None:
        self.events: list[str] = []


def _recording(hook: str):
    return lambda self, *arguments: self.events.append(hook)


for _hook in [name for name in vars(Callback) if name.startswith("on_")]:
    setattr(Recorder, _hook, _recording(_hook))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
