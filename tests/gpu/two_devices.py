"""What each process does for `test_distributed.py`: `python two_devices.py PART DEVICE ARGUMENTS...` under torchrun.

It runs with `cpu` as the device as well, where the parts can be tried.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.engines import DistributedEngine, LocalEngine

DEVICE = sys.argv[2]


class Blocks(nn.Module):
    """Blocks that FSDP2 gathers one by one."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(2)])
        self.last = nn.Linear(32, 4)

    def forward(self, inputs):
        hidden = self.norm(self.first(inputs))
        for block in self.blocks:
            hidden = block(hidden) + hidden
        return self.last(hidden)


def data(count: int = 250) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 16, generator=generator)
    return TensorDataset(inputs, (inputs[:, :4]).argmax(1))


def make(engine, *, norm: bool = False, kind: type[Trainer] = Trainer, **options) -> Trainer:
    torch.manual_seed(0)
    net = Blocks(norm)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=DEVICE != "cpu")
    options = {"progress": False, "seed": 3, "clip_grad_norm": 1.0, "log_every": 5} | options
    return kind(net, nn.CrossEntropyLoss(), optimizer, engine=engine, **options)


def weights_of(trainer: Trainer) -> torch.Tensor:
    with torch.no_grad():
        parts = [getattr(one, "full_tensor", lambda one=one: one)() for one in trainer.model.parameters()]
        return torch.cat([part.float().cpu().flatten() for part in parts])


def say(trainer: Trainer, words: str) -> None:
    if trainer.engine.is_main:
        print(words)


def equality(strategy: str, precision: str) -> None:
    """Two against one, uneven data, accumulation."""
    engine = DistributedEngine(DEVICE, precision, strategy=strategy)
    trainer = make(engine, accumulate=2)
    trainer.fit(DataLoader(data(), 16, shuffle=True), DataLoader(data(53), 16), epochs=6)
    alone = make(LocalEngine(engine.device, precision), accumulate=2)
    with engine.together():
        alone.fit(DataLoader(data(), 16 * engine.world_size, shuffle=True), DataLoader(data(53), 32), epochs=6)
    most = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 3e-2}[precision]
    distance = float((weights_of(trainer) - weights_of(alone)).norm() / weights_of(alone).norm())
    figures = abs(trainer.history["val/loss"][-1] - alone.history["val/loss"][-1])
    assert distance < most, distance
    assert figures < 3 * most, figures
    say(trainer, f"equal: {distance:.1e}")


class EndedAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer):
        if trainer.step == self.step and trainer.engine.rank == trainer.engine.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def resume(strategy: str, folder: str) -> None:
    """Ended at a step, and gone on with."""
    engine = DistributedEngine(DEVICE, strategy=strategy)

    def run(name: str, *callbacks: Callback, resume: str | None = None) -> Trainer:
        trainer = make(engine, callbacks=[Checkpoint(f"{folder}/{name}", every=3), *callbacks])
        trainer.fit(DataLoader(data(), 16, shuffle=True), epochs=3, lr=1e-2, schedule="one_cycle", resume=resume)
        return trainer

    whole = weights_of(run("whole"))
    with pytest.raises(SystemExit, match="143"):
        run("ended", EndedAt(10))
    resumed = run("ended", resume="auto")
    assert torch.equal(whole, weights_of(resumed))
    say(resumed, "goes on")


def search() -> None:
    """The same rate on all, and everything as it was."""
    trainer = make(DistributedEngine(DEVICE))
    loader = DataLoader(data(2000), 16, shuffle=True)
    before = weights_of(trainer), torch.get_rng_state()
    found = trainer.find_lr(loader, epochs=3, budget=1.0)
    assert torch.equal(before[0], weights_of(trainer))
    assert torch.equal(before[1], torch.get_rng_state())
    assert len(set(trainer.engine.gather_values((found.suggestion, tuple(trial.loss for trial in found.trials))))) == 1
    say(trainer, f"no trace: {found}")


def waiting() -> None:
    """Between two readings of the loss no step waits for the device."""

    class Watched(Trainer):
        def training_step(self, batch):
            if DEVICE != "cpu" and self.step == 4:
                torch.cuda.set_sync_debug_mode("error")
            return super().training_step(batch)

    trainer = make(DistributedEngine(DEVICE), kind=Watched, log_every=1000, clip_grad_norm=None)
    batches = DataLoader(TensorDataset(*(one.to(trainer.engine.device) for one in data(2000).tensors)), 16)
    try:
        trainer.fit(batches, max_steps=40, epochs=1)
    finally:
        if DEVICE != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    say(trainer, "no waiting")


def sync_batch_norm() -> None:
    """As one process with the batch of both."""
    engine = DistributedEngine(DEVICE, sync_batch_norm=DEVICE != "cpu")
    trainer = make(engine, norm=True)
    trainer.fit(DataLoader(data(256), 16, shuffle=True), epochs=3)
    alone = make(LocalEngine(engine.device), norm=True)
    with engine.together():
        alone.fit(DataLoader(data(256), 16 * engine.world_size, shuffle=True), epochs=3)
    distance = float((weights_of(trainer) - weights_of(alone)).norm() / weights_of(alone).norm())
    assert distance < (1e-3 if DEVICE != "cpu" else 1.0), distance
    say(trainer, f"equal: {distance:.1e}")


def nonfinite() -> None:
    """A NaN in the share of one process."""
    inputs, targets = data(160).tensors
    inputs[100] = torch.nan
    trainer = make(DistributedEngine(DEVICE), on_nonfinite="skip")
    trainer.fit(DataLoader(TensorDataset(inputs, targets), 16), epochs=2)
    assert set(trainer.engine.gather_values(trainer.skipped_steps)) == {2}
    trainer = make(trainer.engine)
    try:
        trainer.fit(DataLoader(TensorDataset(inputs, targets), 16), epochs=2)
    except FloatingPointError as error:
        say(trainer, f"found by both: {error}")


def fault(kind: str) -> None:
    """One process fails in a step."""

    class Failing(Trainer):
        def training_step(self, batch):
            if self.step == 5 and self.engine.rank == 1:
                if kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    raise RuntimeError("the step is broken")
                finally:
                    if kind == "hangs":  # it lives on, so that no connection breaks
                        sys.excepthook = lambda *error: (sys.__excepthook__(*error), time.sleep(60))
            return super().training_step(batch)

    make(DistributedEngine(DEVICE), kind=Failing).fit(DataLoader(data(2000), 16), epochs=2)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[3:])
