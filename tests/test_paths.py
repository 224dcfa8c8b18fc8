"""Paths that a user gives: the home folder, and addresses that are no paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mxtorch import Trainer
from mxtorch.callbacks import Checkpoint, TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")

USES = {
    "folder": lambda trainer, loader, path: Checkpoint(path),
    "log_dir": lambda trainer, loader, path: TensorBoard(path),
    "save": lambda trainer, loader, path: trainer.save(path),
    "load": lambda trainer, loader, path: trainer.load(path),
    "resume": lambda trainer, loader, path: trainer.fit(loader, resume=path),
    "export": lambda trainer, loader, path: trainer.export(path, example=torch.ones(2, 8)),
    "to_csv": lambda trainer, loader, path: trainer.history.to_csv(path),
}


@pytest.fixture
def trainer(net):
    return Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), device="cpu", progress=False)


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/x.safetensors", Path("s3://bucket/x.safetensors"), "gs://b/x", "hf://x/y", "https://x.org/a"],
)
@pytest.mark.parametrize("use", USES)
def test_addresses_are_refused(trainer, loader, use, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="only paths of this machine's file system"):
        USES[use](trainer, loader, address)
    assert not list(tmp_path.iterdir())


def test_the_home_folder(net, loader, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), 0.1),
        callbacks=[Checkpoint("~/checkpoints")],
        log_dir="~/log",
        device="cpu",
        progress=False,
    )
    trainer.fit(loader)
    trainer.close()
    trainer.save("~/x.ckpt")
    trainer.load("~/x.ckpt")
    trainer.history.to_csv("~/x.csv")
    written = trainer.export("~/x.safetensors", example=torch.ones(2, 8))
    assert written == tmp_path / "x.safetensors"
    assert {"checkpoints", "log", "x.ckpt", "x.csv", "x.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    trainer.fit(loader, resume="~/checkpoints/last.ckpt")
