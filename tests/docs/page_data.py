"""Small real data and networks, which blocks of the documentation may take for granted.

A page says which of them it needs in a comment that readers do not see, before the block that needs them:
`<!-- before the next block: from page_data import trainer -->`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder

from mxtorch import ScheduledOptim, Trainer, model_zoo

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


_nets: list[nn.Module] = []


@functools.cache
def points() -> tuple[DataLoader, DataLoader]:
    """Two classes that a line does not quite separate: 192 points to train with, 64 to validate."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    labels = (inputs[:, 0] + inputs[:, 1] ** 2 > 0.5).long()
    train, val = TensorDataset(inputs[:192], labels[:192]), TensorDataset(inputs[192:], labels[192:])
    return DataLoader(train, 16, shuffle=True), DataLoader(val, 16)


def pictures(batch_size: int = 20) -> tuple[DataLoader, DataLoader]:
    """Drawn dogs of ten breeds in `pictures/`: 40 to train with, 20 to validate, 32 pixels."""
    from toy_breeds import write_dataset

    write_dataset(Path("pictures"), train_per_breed=4, val_per_breed=2, size=32)
    transform = model_zoo.preprocess(model_zoo.efficientnet_lite0(), size=32)
    train, val = (ImageFolder(f"pictures/{part}", transform) for part in ("train", "val"))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size)


def __getattr__(name: str) -> Any:
    """`train_data`, `val_data`, `net`, `loss`, `trainer` for points; `optimizer` is for the newest `net`."""
    if name in ("train_data", "val_data"):
        return points()[name == "val_data"]
    if name == "net":
        _nets.append(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
        return _nets[-1]
    if name == "optimizer":
        return ScheduledOptim(torch.optim.SGD(_nets[-1].parameters(), lr=0.05, momentum=0.9))
    if name == "loss":
        return nn.CrossEntropyLoss()
    if name == "trainer":
        net, metrics = __getattr__("net"), {"accuracy": MulticlassAccuracy(num_classes=2, average="micro")}
        return Trainer(net, nn.CrossEntropyLoss(), __getattr__("optimizer"), metrics=metrics, log_every=5)
    raise AttributeError(name)
