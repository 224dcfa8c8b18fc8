"""A short run with limits that can be broken off, and the comparison of two."""

import contextlib
import os
import signal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint


class Watch(Callback):
    """Notes what happens, and breaks off at a step or in a validation."""

    def __init__(self, at_step=None, in_validation=None):
        self.at_step, self.in_validation = at_step, in_validation
        self.validated, self.rates, self.passes, self.rows = [], [], 0, 0

    def on_step(self, trainer):
        self.rates.append(trainer.optimizer.learning_rate)
        if trainer.step == self.at_step:
            raise KeyboardInterrupt

    def on_evaluate_start(self, trainer):
        self.passes += 1
        if self.passes == self.in_validation:
            os.kill(os.getpid(), signal.SIGINT)

    def on_validated(self, trainer, figures):
        self.validated.append((trainer.step, figures))

    def on_epoch_complete(self, trainer, row):
        self.rows += 1


def sets(count=2):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 40, 8, generator=generator)
    return [DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10) for x in inputs]


def run(loader, folder=None, *, watch=None, callbacks=(), trainer_options=None, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    callbacks = [*callbacks, watch or Watch(), *([] if folder is None else [Checkpoint(folder, every=1, keep=99)])]
    options = {"schedule": "one_cycle"} | options
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu",
        **{"progress": False} | (trainer_options or {}),
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(loader, **options)
    return trainer


def same(one, another):
    assert one.step == another.step
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, another.model.state_dict()[name]), name
    assert one.optimizer.learning_rates == another.optimizer.learning_rates
    timed = ("seconds", "samples_per_second")
    for rows, others in ((one.history.rows, another.history.rows), (one.history.records, another.history.records)):
        assert [{k: v for k, v in row.items() if k not in timed} for row in rows] == [
            {k: v for k, v in row.items() if k not in timed} for row in others
        ]
