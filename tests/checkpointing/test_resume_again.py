"""A call of `fit` that was broken off, and is made again in the same process."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from resumed_run import KilledError, assert_same, build, everything, plain

from mxtorch import Callback


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("error", [KilledError, KeyboardInterrupt])
def test_the_same_call_again_in_the_same_process(tmp_path, error):
    """As in a notebook: Ctrl-C, and the cell is run again. A call that has not saved yet goes on with itself, too."""

    class Once(Callback):
        at = 9

        def on_step(self, trainer):
            if trainer.step == self.at:
                self.at = None
                raise error

    def train(trainer, **arguments):
        return trainer.fit(plain()(), lr=0.05, schedule="one_cycle", **{"epochs": 3, "resume": "auto"} | arguments)

    whole = build(tmp_path / "whole")
    train(whole)
    train(whole, epochs=2)
    expected = everything(whole)
    once = Once()
    trainer = build(tmp_path / "broken", callbacks=[once])
    for at in (9, 15, None):
        once.at = at
        with contextlib.nullcontext() if at is None else pytest.raises(error):
            train(trainer)
    assert trainer.step == 18
    once.at = 25  # in a second run
    with pytest.raises(error):
        train(trainer, epochs=2)
    train(trainer, epochs=2)
    assert trainer.step == 30
    assert_same(expected, everything(trainer))


def test_the_same_call_again_where_the_validation_of_the_end_was_broken_off(tmp_path):
    class StopAndInterrupt(Callback):
        interrupts = False

        def on_epoch_complete(self, trainer, row):
            if trainer.epoch == 1:
                self.interrupts = True
                trainer.stop()

        def on_evaluate_start(self, trainer):
            if self.interrupts:
                self.interrupts = False
                os.kill(os.getpid(), signal.SIGINT)

    def train(trainer):
        return trainer.fit(plain()(), plain()(), epochs=3, validate_every=9, resume="auto")

    trainer = build(tmp_path, callbacks=[StopAndInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert "val/loss" not in trainer.history.rows[0]
    assert "val/loss" in train(trainer).rows[0]
    assert (trainer.step, len(trainer.history)) == (6, 1)


def test_a_run_that_was_broken_off_may_be_left(tmp_path):
    """Without `resume`, and after `load`, the next call is a new run, and its checkpoints are its own."""
    trainer = build(tmp_path / "run", 8)
    with pytest.raises(KilledError):
        trainer.fit(plain()(), epochs=3)
    trainer.callbacks.callbacks[0].at = None
    trainer.fit(plain()(), epochs=1)
    assert (trainer.run.ordinal, trainer.step) == (2, 9 + 6)
    trainer.callbacks.callbacks[0].at = 17
    with pytest.raises(KilledError):
        trainer.fit(plain()(), epochs=1)
    trainer.callbacks.callbacks[0].at = None
    trainer.load(tmp_path / "run" / "step-00000015.ckpt")
    trainer.fit(plain()(), epochs=1, resume="auto")
    assert (trainer.run.ordinal, trainer.step) == (4, 15 + 6)
