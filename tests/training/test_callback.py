from __future__ import annotations

import pytest
import torch
from torch import nn

from mxtorch import Callback
from mxtorch.callbacks import EMA, SWA, BestWeights, EarlyStopping
from mxtorch.checkpointing.file import CheckpointError


def test_the_order_of_events(net, loader, make, recorder):
    make(net, callbacks=[recorder]).fit(loader, loader, epochs=1)
    events = [event for event in recorder.events if event not in ("on_step", "on_log")]
    assert events == [
        "on_fit_start",
        "on_epoch_start",
        "on_epoch_trained",
        "on_evaluate_start",
        "on_evaluate_end",
        "on_epoch_complete",
        "on_epoch_end",
        "on_fit_end",
    ]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["on_epoch_start", "on_evaluate_start", "on_epoch_complete", "on_log"])
def test_every_start_has_its_end(net, loader, where, error, make, recorder):
    class Failing(Callback):
        pass

    def fail(self, *arguments):
        raise error

    setattr(Failing, where, fail)
    trainer = make(net, callbacks=[recorder, Failing()])
    with pytest.raises(type(error)):
        trainer.fit(loader, loader, epochs=2)
    for phase in ("fit", "epoch", "evaluate"):
        starts = recorder.events.count(f"on_{phase}_start")
        assert starts == recorder.events.count(f"on_{phase}_end")
    assert recorder.events[-1] == "on_fit_end"


def test_a_callback_can_stop_the_run(net, loader, make):
    class Stop(Callback):
        def on_epoch_complete(self, trainer, row):
            if row["epoch"] == 2:
                trainer.stop()

    assert len(make(net, callbacks=[Stop()]).fit(loader, epochs=9)) == 2


def of_run(loader):
    return [EMA(0.9), SWA(loader, start=0.0), EarlyStopping("train/loss", patience=9), BestWeights("train/loss")]


def states(trainer):
    return [str(state) for _, state in trainer.callbacks.state_dict()]


@pytest.mark.parametrize("fails", ["never", "first batch", "argument", "resume", "load"])
def test_a_fit_that_fails_before_its_first_step_leaves_what_was_loaded(make, loader, tmp_path, fails):
    file, bad = tmp_path / "a.ckpt", [(torch.randn(4, 3), torch.zeros(4).long())]

    def trainer_of():
        torch.manual_seed(0)
        return make(nn.Linear(8, 2), callbacks=of_run(loader))

    first = trainer_of()
    first.fit(loader, epochs=2)
    first.save(file)
    expected = trainer_of()
    expected.load(file)
    loaded = states(expected)
    expected.fit(loader)
    trainer = trainer_of()
    trainer.load(file)
    if fails == "first batch":
        with pytest.raises(ValueError, match="first batch"):
            trainer.fit(bad, schedule="constant")
    elif fails == "argument":
        with pytest.raises(ValueError, match="lr"):
            trainer.fit(loader, lr=-1.0)
    elif fails == "resume":
        with pytest.raises(CheckpointError, match="schedule"):
            trainer.fit(loader, schedule="one_cycle", resume=file)
    elif fails == "load":
        (tmp_path / "damaged.ckpt").write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CheckpointError):
            trainer.load(tmp_path / "damaged.ckpt")
    assert states(trainer) == loaded
    trainer.fit(loader)
    assert states(trainer) == states(expected)
    assert trainer.callbacks.callbacks[0].count == 3 * len(loader)


def test_a_file_that_can_not_be_loaded_is_not_gone_on_with(make, loader, tmp_path):
    """The next run begins afresh, as it would have."""
    other = make(nn.Linear(8, 3), callbacks=of_run(loader))
    other.fit(loader)
    other.save(tmp_path / "other.ckpt")
    trainer = make(nn.Linear(8, 2), callbacks=of_run(loader))
    trainer.fit(loader, epochs=2)
    with pytest.raises(CheckpointError):
        trainer.load(tmp_path / "other.ckpt")
    trainer.fit(loader)
    assert trainer.callbacks.callbacks[0].count == len(loader)
    assert trainer.callbacks.callbacks[2].best_epoch == 3
