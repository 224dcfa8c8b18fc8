"""Runs of several gloo processes that are ended, and go on: bit for bit with the same number of processes."""

from __future__ import annotations

import os
import random
import signal
import warnings

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, Trainer
from mxtorch.callbacks import EMA, BestWeights, Checkpoint

STEPS = 21


class EndedAt(Callback):
    """Sends signals to some processes within a step, before its checkpoint is written."""

    def __init__(self, step: int, number: int, ranks: tuple[int, ...]) -> None:
        self.step, self.number, self.ranks = step, number, ranks

    def on_step(self, trainer):
        if trainer.step == self.step and trainer.engine.rank in self.ranks:
            os.kill(os.getpid(), self.number)


def samples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def run(rank: int, folder: str, batch: int, end: tuple | None, resume: str | None) -> tuple:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    callbacks = [Checkpoint(folder, every=2, keep=20), EMA(0.9), BestWeights()]
    if end is not None:
        callbacks.append(EndedAt(*end))
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(net.parameters(), 1e-2),
        callbacks=callbacks,
        metrics=MulticlassAccuracy(2),
        train_metrics=MulticlassAccuracy(2),
        device="cpu",
        progress=False,
        seed=3,
        log_every=5,
        log_dir=f"{folder}-log",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(
            DataLoader(samples(200), batch, shuffle=True),
            DataLoader(samples(53), batch),
            epochs=3,
            lr=1e-2,
            schedule="one_cycle",
            resume=resume,
        )
    rows = [
        {n: v for n, v in row.items() if n not in ("seconds", "samples_per_second")} for row in trainer.history.rows
    ]
    state = [tensor.clone() for tensor in net.state_dict().values()]
    return state, rows, trainer.step, [str(one.message) for one in caught]


def same(first: tuple, second: tuple) -> bool:
    return (
        all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True)) and first[1] == second[1]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple:
    """The run that nothing ended, of two processes."""
    first, second = values(launch(2, run, str(tmp_path_factory.mktemp("whole")), 16, None, None))
    assert same(first, second)
    assert first[2] == STEPS
    return first


@pytest.mark.parametrize(
    ("step", "number", "ranks"),
    [
        (8, signal.SIGTERM, (1,)),
        (14, signal.SIGTERM, (0, 1)),
        (10, signal.SIGINT, (0,)),
        (9, signal.SIGKILL, (0,)),
        (16, signal.SIGKILL, (1,)),
        (11, signal.SIGKILL, (0, 1)),
    ],
)
def test_what_one_process_is_told_ends_all_and_the_run_goes_on_bit_for_bit(step, number, ranks, whole, tmp_path):
    ended = launch(2, run, str(tmp_path), 16, (step, number, ranks), None)
    assert all(one.status != 0 and one.seconds < 30 for one in ended)
    if number == signal.SIGTERM:  # finished, saved, and said so
        assert [one.status for one in ended] == [143, 143]
        assert any(f"-{step:08d}" in name or f"-{step + 1:08d}" in name for name in os.listdir(tmp_path))
    resumed = values(launch(2, run, str(tmp_path), 16, None, "auto"))
    assert all(same(whole, one) for one in resumed)
    assert [one[3] for one in resumed] == [[], []]


def test_kills_at_random_moments(whole, tmp_path, request):
    """Twice; with `--kills 200`, twenty times."""
    chance = random.Random(7)
    for number in range(max(request.config.getoption("--kills") // 10, 1)):
        folder = str(tmp_path / str(number))
        ranks = chance.choice([(0,), (1,), (0, 1)])
        ended = launch(2, run, folder, 16, (chance.randrange(1, STEPS), signal.SIGKILL, ranks), None)
        assert all(one.seconds < 30 for one in ended)
        assert all(same(whole, one) for one in values(launch(2, run, folder, 16, None, "auto")))


@pytest.mark.parametrize(("processes", "batch", "exact"), [(1, 32, True), (4, 8, True), (3, 16, False)])
def test_another_number_of_processes_goes_on_and_says_what_is_not_the_same(processes, batch, exact, whole, tmp_path):
    launch(2, run, str(tmp_path), 16, (10, signal.SIGTERM, (1,)), None)
    if processes == 1:
        resumed = [run(0, str(tmp_path), batch, None, "auto")]
    else:
        resumed = values(launch(processes, run, str(tmp_path), batch, None, "auto"))
    text = " ".join(resumed[0][3])
    assert f"it was saved by 2 processes and goes on with {processes}" in text
    assert ("a step takes 48 samples, and took 32" in text) is not exact
    # The steps before the checkpoint are those of the run; of those after it the samples, but not the dropout.
    assert resumed[0][1][0] == whole[1][0]
    assert resumed[0][2] == (STEPS if exact else 19)
    assert all(same(resumed[0], one) for one in resumed)
    assert abs(resumed[0][1][-1]["val/loss"] - whole[1][-1]["val/loss"]) < 0.05
