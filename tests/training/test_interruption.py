from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from torch import nn

from mxtorch import Callback
from mxtorch.callbacks import Checkpoint


class Send(Callback):
    """Sends signals to the process itself in the midst of a step, or of validation."""

    def __init__(self, *numbers, at=3, hook="step"):
        self.numbers, self.at, self.hook = numbers, at, hook

    def in_step(self, trainer):
        if self.hook == "step" and trainer.step + 1 == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)

    def on_evaluate_start(self, trainer):
        if self.hook == "validation":
            torch.rand(3)  # takes random numbers that must be given back
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heeded():
    """A process that a shell starts in the background ignores Ctrl-C, and so does the trainer then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(make, loader, tmp_path):
    """Trains with a sender; returns the trainer and what was raised."""

    def go(send, resume=None, name="run", **fit):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        trainer = make(net, callbacks=[Checkpoint(tmp_path / name), send] if send else [Checkpoint(tmp_path / name)])
        step = trainer.training_step

        def training_step(batch):
            output = step(batch)
            if send is not None:
                send.in_step(trainer)
            return output

        trainer.training_step = training_step
        torch.manual_seed(2)
        raised = None
        try:
            trainer.fit(loader, loader, epochs=2, resume=resume, **fit)
        except BaseException as error:
            raised = error
        return trainer, raised

    return go


@pytest.mark.parametrize("hook", ["step", "validation"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_step_is_finished_and_saved(run, number, hook, tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    whole, raised = run(None, name="whole")
    assert raised is None
    trainer, raised = run(Send(number, hook=hook))
    assert trainer.step == (3 if hook == "step" else 8)
    if number == signal.SIGTERM:
        assert isinstance(raised, SystemExit)
        assert raised.code == 143
    else:
        assert isinstance(raised, KeyboardInterrupt)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert "finishing the step" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == [f"step-{trainer.step:08d}.ckpt"]
    resumed, raised = run(None, resume="auto")
    assert raised is None
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history["val/loss"] == whole.history["val/loss"]


def test_everything_is_usable_after_ctrl_c(run, loader):
    trainer, raised = run(Send(signal.SIGINT))
    assert isinstance(raised, KeyboardInterrupt)
    assert trainer.evaluate(loader)["val/loss"] > 0
    trainer.callbacks.callbacks = []
    trainer.fit(loader)
    assert trainer.step == 3 + 8


def test_a_second_ctrl_c_ends_it_at_once(run, tmp_path):
    trainer, raised = run(Send(signal.SIGINT, signal.SIGINT))
    assert isinstance(raised, KeyboardInterrupt)
    assert trainer.step == 2
    assert not list((tmp_path / "run").glob("step-*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_users_own_handler_is_called_after_saving(run, tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(len(list(tmp_path.glob("run/step-*")))))
    try:
        _, raised = run(Send(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(raised, SystemExit)
    assert seen == [1]


def test_a_signal_that_is_ignored_stays_so(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer, raised = run(Send(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised is None
    assert trainer.step == 16


def test_off_the_main_thread_no_handler_is_installed(run):
    results = []
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    class Look(Callback):
        def in_step(self, trainer):
            results.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers)

    thread = threading.Thread(target=lambda: results.append(run(Look())[1]))
    thread.start()
    thread.join()
    assert results == [True] * 16 + [None]


def test_a_signal_after_the_last_step_is_not_lost(run):
    trainer, raised = run(Send(signal.SIGTERM, at=16))
    assert isinstance(raised, SystemExit)
    assert trainer.step == 16
