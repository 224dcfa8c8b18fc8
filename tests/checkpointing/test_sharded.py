"""Checkpoints of sharded models: FSDP2 on gloo processes."""

from __future__ import annotations

import os
import signal
import warnings

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import EMA, Checkpoint
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.engines import DistributedEngine


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 15)  # which two processes can't halve
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(15, 15), nn.Tanh(), nn.Dropout(0.1)) for _ in range(2)])
        self.last = nn.Linear(15, 2)

    def forward(self, inputs):
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden) + hidden
        return self.last(hidden)


class EndedAt(Callback):
    def __init__(self, step: int, number: int, ranks: tuple[int, ...]) -> None:
        self.step, self.number, self.ranks = step, number, ranks

    def on_step(self, trainer):
        if trainer.step == self.step and trainer.engine.rank in self.ranks:
            os.kill(os.getpid(), self.number)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def run(rank: int, folder: str, batch: int, end: tuple | None, resume: str | None, strategy: str = "fsdp2"):
    torch.manual_seed(0)
    net = Blocks()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 8, generator=generator)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    callbacks = [Checkpoint(folder, every=2), EMA(0.9), *([] if end is None else [EndedAt(*end)])]
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(net.parameters(), 1e-2),
        callbacks=callbacks,
        engine=DistributedEngine("cpu", strategy=strategy),
        progress=False,
        seed=3,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(DataLoader(data, batch, shuffle=True), DataLoader(data, batch), epochs=2, lr=1e-2, resume=resume)
    with torch.no_grad():
        weights = [whole(tensor) for tensor in net.state_dict().values()]
    return weights, trainer.history["val/loss"], [str(one.message) for one in caught if "goes on" in str(one.message)]


def same(first, second) -> bool:
    return (
        all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True)) and first[1] == second[1]
    )


def test_a_sharded_run_goes_on_bit_for_bit_and_with_other_numbers_of_processes(tmp_path):
    reference = values(launch(2, run, str(tmp_path / "whole"), 16, None, None))
    assert same(*reference)
    ended = launch(2, run, str(tmp_path / "run"), 16, (9, signal.SIGKILL, (1,)), None)
    assert all(one.status != 0 and one.seconds < 30 for one in ended)
    saved = [path for path in (tmp_path / "run").iterdir() if path.name.startswith("step-")]
    assert all(path.is_dir() and (path / ".metadata").exists() for path in saved)
    before = tmp_path / "run" / "last.ckpt"
    name = before.resolve().name
    three = launch(3, run, str(tmp_path / "run"), 16, None, str(before))
    other = values(three)[0]
    assert "it was saved by 2 processes and goes on with 3" in " ".join(other[2])
    ended = launch(2, run, str(tmp_path / "again"), 16, (9, signal.SIGTERM, (1,)), None)
    assert [one.status for one in ended] == [143, 143]
    resumed = values(launch(2, run, str(tmp_path / "again"), 16, None, "auto"))
    assert all(same(one, reference[0]) for one in resumed)
    # One process takes the model whole, as for an export.
    net = Blocks()
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(net.parameters(), 1e-2),
        callbacks=[EMA(0.9)],
        device="cpu",
        progress=False,
    )
    trainer.load((tmp_path / "again" / "last.ckpt").resolve())
    assert all(torch.equal(one, other) for one, other in zip(net.state_dict().values(), resumed[0][0], strict=True))
    assert name.startswith("step-")
    with pytest.raises(CheckpointError, match="is a folder, and no checkpoint"):
        trainer.load(tmp_path)
