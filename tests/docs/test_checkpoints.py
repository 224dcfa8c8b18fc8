"""The code of docs/checkpoints.md runs, and its names exist."""

import inspect
import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import ScheduledOptim, Trainer
from mxtorch.callbacks import Checkpoint

DOCUMENT = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def test_the_script_runs_and_can_be_started_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    for _ in range(2):
        net = nn.Linear(4, 2)
        data = DataLoader(TensorDataset(torch.ones(8, 4), torch.tensor([0, 1] * 4)), 4)
        scope = {
            "net": net,
            "loss": nn.CrossEntropyLoss(),
            "optimizer": ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1)),
            "train_data": data,
            "val_data": data,
        }
        exec(compile(code, "docs/checkpoints.md", "exec"), scope)
        assert scope["trainer"].step == 20
    assert len(list(tmp_path.glob("runs/dogs/checkpoints/step-*.ckpt"))) <= 4


def test_what_it_names_exists():
    for name in ("every", "keep", "monitor", "mode"):
        assert name in inspect.signature(Checkpoint).parameters
    assert {"resume", "auto_accumulate"} <= inspect.signature(Trainer.fit).parameters.keys()
