"""A trainer can be pickled, before and after `fit`, and within it; the copy trains on."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, ScheduledOptim, Trainer, schedules
from mxtorch.callbacks import EMA, SWA, BestWeights, Checkpoint, EarlyStopping, Freeze, ProgressBar, TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")

SETTINGS = {
    "plain": {},
    "metrics": {
        "metrics": {"accuracy": MulticlassAccuracy(num_classes=2)},
        "train_metrics": {"accuracy": MulticlassAccuracy(num_classes=2)},
    },
    "accumulation and clipping": {"accumulate": 3, "clip_grad_norm": 1.0},
    "bf16": {"precision": "bf16"},
    "skip": {"on_nonfinite": "skip"},
    "progress": {"progress": True},
}
CALLBACKS = {
    "ema": lambda loader, folder: [EMA(0.9)],
    "swa": lambda loader, folder: [SWA(loader, start=0.0)],
    "best": lambda loader, folder: [BestWeights(), EarlyStopping()],
    "checkpoint": lambda loader, folder: [Checkpoint(folder / "checkpoints", every=3)],
    "tensorboard": lambda loader, folder: [TensorBoard(folder / "log")],
    "others": lambda loader, folder: [ProgressBar(), Freeze("0", epoch=2)],
    "all": lambda loader, folder: [EMA(0.9), BestWeights(), Checkpoint(folder / "c"), TensorBoard(folder / "log")],
}


def make_trainer(net, **options):
    optimizer = ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=0.01))
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, **({"device": "cpu", "progress": False} | options))


def goes_on_alike(trainer, twin, loader):
    """Both train on, to the same weights."""
    results = []
    for one in (twin, trainer):
        torch.manual_seed(3)
        one.fit(loader, loader, epochs=2)
        results.append([parameter.detach() for parameter in one.model.parameters()])
        one.predict(loader)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert twin.step == trainer.step
    assert [row["val/loss"] for row in twin.history.rows] == [row["val/loss"] for row in trainer.history.rows]


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(net, loader, settings, fitted):
    trainer = make_trainer(net, **copy.deepcopy(SETTINGS[settings]))
    if fitted:
        trainer.fit(loader, loader, epochs=1, schedule=schedules.Constant())
    goes_on_alike(trainer, pickle.loads(pickle.dumps(trainer)), loader)


@pytest.mark.parametrize("callbacks", CALLBACKS)
def test_callbacks(net, loader, tmp_path, callbacks):
    trainer = make_trainer(net, callbacks=CALLBACKS[callbacks](loader, tmp_path))
    trainer.fit(loader, loader, epochs=1)
    twin = pickle.loads(pickle.dumps(trainer))
    twin.callbacks.callbacks = [one for one in twin.callbacks.callbacks if not isinstance(one, Checkpoint)]
    goes_on_alike(trainer, twin, loader)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    ],
)
def test_schedulers(net, loader, scheduler):
    trainer = make_trainer(net)
    trainer.fit(loader, loader, schedule=scheduler(trainer.optimizer), schedule_every="epoch")
    goes_on_alike(trainer, pickle.loads(pickle.dumps(trainer)), loader)


def test_a_deep_copy_trains_on(net, loader):
    trainer = make_trainer(net, callbacks=[EMA(0.9), BestWeights()])
    trainer.fit(loader, loader, epochs=1)
    goes_on_alike(trainer, copy.deepcopy(trainer), loader)


class Pickle(Callback):
    """Ends the run with a copy of the trainer in its hands."""

    copies: ClassVar[list[bytes]] = []

    def on_epoch_complete(self, trainer, row):
        if not self.copies:
            self.copies.append(pickle.dumps(trainer))
            raise KeyboardInterrupt


def test_within_a_fit_and_after_an_interrupted_one(net, loader, tmp_path):
    Pickle.copies.clear()
    callbacks = [EMA(0.9), Pickle(), Checkpoint(tmp_path / "c", every=1), TensorBoard(tmp_path / "log"), ProgressBar()]
    trainer = make_trainer(net, callbacks=callbacks)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader, loader, epochs=2)
    for content in (pickle.dumps(trainer), *Pickle.copies):
        twin = pickle.loads(content)
        assert twin.run is None
        assert twin.step == 8
        twin.callbacks.callbacks = [one for one in twin.callbacks.callbacks if not isinstance(one, Checkpoint)]
        twin.fit(loader, loader, epochs=2)
        assert twin.step == 24


def test_after_a_search_and_a_save(net, loader, tmp_path):
    trainer = make_trainer(net)
    trainer.find_lr(loader, num_steps=20)
    trainer.fit(loader, loader)
    twin = pickle.loads(pickle.dumps(trainer))
    twin.save(tmp_path / "x.ckpt")
    trainer.load(tmp_path / "x.ckpt")
    goes_on_alike(trainer, twin, loader)
