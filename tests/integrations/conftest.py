"""One task for all libraries: the same networks, batches and optimizer, and what `Trainer.find_lr` finds for them."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_loops import SmallTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import ScheduledOptim, Trainer, schedules
from mxtorch.lr_finder import budget

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
BATCH, HELD_OUT = 16, 40
OPTIONS = {"training_steps": 40, "num_steps": 120, "progress": False}


def pytest_collection_modifyitems(items):
    """The tests of a library run in one process, since importing it takes seconds."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # of the libraries


def _convolutional():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 36, 2)]
    return nn.Sequential(*layers)


@functools.cache
def _samples(name):
    generator = torch.Generator().manual_seed(0)
    shape = (8,) if name == "transformer" else (3, 8, 8)
    inputs = torch.randn(240, *shape, generator=generator)
    return TensorDataset(inputs, (inputs.flatten(1)[:, :8].sum(1) > 0).long())


def seed(number=5):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class Task:
    """A network, its loss and its data.

    Attributes:
        name: `"cnn"` or `"transformer"`.
        schedule: Of 30 steps, two epochs.
        data: The training samples; the validation samples are the first of them.
        held_out: The validation samples.
    """

    loss = nn.CrossEntropyLoss()
    options = OPTIONS
    # Torch's LambdaLR, which it is compared with, does not cycle momentum.
    schedule = schedules.OneCycle(30, cycle_momentum=False)

    def __init__(self, name):
        self.name = name
        self.data = _samples(name)
        self.held_out = TensorDataset(*(tensor[:120] for tensor in self.data.tensors))

    def network(self):
        torch.manual_seed(1)
        return SmallTransformer() if self.name == "transformer" else _convolutional()

    def optimizer(self, network, lr=1e-3):
        return torch.optim.AdamW(network.parameters(), lr=lr)

    def scheduled(self, network, lr=1e-3):
        return ScheduledOptim(self.optimizer(network, lr), self.schedule)

    def train_loader(self, shuffle=False):
        return DataLoader(self.data, BATCH, shuffle=shuffle)

    def val_loader(self):
        return DataLoader(self.held_out, HELD_OUT)

    def expected(self, **options):
        """What `Trainer.find_lr` finds, in the memory format of the other libraries."""
        return _expected(self.name, tuple(options.items()))

    def seed(self):
        seed()

    def check(self, found, expected, rel=0.0):
        """The same rate, status and losses; `rel` is the relative tolerance of losses."""
        assert found.suggestion == pytest.approx(expected.suggestion, rel=1e-6)
        assert found.status == expected.status
        assert [trial.rate for trial in found.trials] == [trial.rate for trial in expected.trials]
        losses, others = ([trial.loss for trial in one.trials] for one in (found, expected))
        assert losses == (others if rel == 0 else pytest.approx(others, rel=rel))


@functools.cache
def _expected(name, options):
    task = Task(name)
    network = task.network()
    trainer = Trainer(network, task.loss, task.optimizer(network), device="cpu", progress=False, channels_last=False)
    seed()
    given = {key: value for key, value in (OPTIONS | dict(options)).items() if key != "progress"}
    return trainer.find_lr(task.train_loader(), task.val_loader(), **given)


@pytest.fixture(params=["cnn", "transformer"])
def task(request):
    return Task(request.param)


@pytest.fixture
def cnn():
    return Task("cnn")


@pytest.fixture
def numbers_of():
    """All numbers that a training left: of a module, and of the random generators."""

    def numbers(module):
        chance = [torch.rand(1), torch.tensor(random.random()), torch.tensor(np.random.rand())]
        return [*(value.detach().clone() for value in module.state_dict().values()), *chance]

    return numbers


@pytest.fixture
def same():
    def check(values, others):
        different = [place for place, pair in enumerate(zip(values, others, strict=True)) if not torch.equal(*pair)]
        assert not different, f"of {len(values)}"
        return True

    return check


@pytest.fixture
def run_page(monkeypatch, tmp_path):
    """Runs the code of a page as it stands, with searches of half a second, and returns its names."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(budget, "NUMBERS", dataclasses.replace(budget.NUMBERS, seconds=0.5))
        scope = {"__name__": f"page_{name}"}
        sys.modules[scope["__name__"]] = SimpleNamespace(**scope)  # where classes of the page say they are from
        for block in re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), flags=re.DOTALL):
            exec(compile(block, f"docs/integrations/{name}.md", "exec"), scope)
        return scope

    return run


@pytest.fixture
def examples():
    """Runs the examples in the docstrings of a module."""

    def run(module):
        torch.manual_seed(0)
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0
        return result.attempted

    return run
