from __future__ import annotations

import os
import signal
import sys

import pytest
from torchmetrics.classification import MulticlassAccuracy

from mxtorch.callbacks import Callback, ProgressBar
from mxtorch.callbacks.progress import fitted, summary


def test_a_line_for_each_epoch_where_there_is_no_terminal(make, net, loader, capsys):
    accuracy = MulticlassAccuracy(num_classes=2)
    make(net, metrics={"accuracy": accuracy}, progress=True).fit(loader, loader, epochs=2)
    output = capsys.readouterr()
    lines = (output.out + output.err).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for figure in ("train/loss ", "val/loss ", "val/accuracy ", "lr ", " samples/s"):
        assert figure in lines[1]


def test_a_bar_with_loss_metrics_rate_and_speed(make, net, loader, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # capsys's own
    monkeypatch.setenv("COLUMNS", "160")
    shown = []

    class Watched(ProgressBar):
        def on_log(self, trainer, record):
            super().on_log(trainer, record)
            shown.append(str(self._bar))

    metrics = {"accuracy": MulticlassAccuracy(num_classes=2)}
    make(net, metrics=metrics, callbacks=[Watched()], log_every=2).fit(loader, loader, epochs=2)
    assert shown[-1].startswith("epoch 2/2")
    for figure in ("train/loss ", "val/loss ", "val/accuracy ", "lr 1.0e-01", " samples/s"):
        assert figure in shown[-1]


def test_nothing_is_printed_when_not_wanted(make, net, loader, capsys):
    trainer = make(net)
    trainer.find_lr(loader, num_steps=40)
    trainer.find_lr(loader, method="sweep", num_steps=20)
    trainer.fit(loader, loader)
    assert capsys.readouterr() == ("", "")


class StopAfterTwo(Callback):
    def on_epoch_complete(self, trainer, row):
        if row["epoch"] == 2:
            trainer.stop()


def test_a_run_that_ends_early_says_so(make, net, loader, capsys):
    make(net, progress=True, callbacks=[StopAfterTwo()]).fit(loader, epochs=5)
    assert "ended early: a callback stopped the run after epoch 2 of 5" in capsys.readouterr().out
    make(net, progress=True).fit(loader, epochs=2)
    assert "ended" not in capsys.readouterr().out


class InterruptAtStep(Callback):
    def on_step(self, trainer):
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_says_where(make, net, loader, capsys):
    with pytest.raises(KeyboardInterrupt):
        make(net, progress=True, callbacks=[InterruptAtStep()]).fit(loader, epochs=2)
    assert "interrupted in epoch 1 of 2, after step 3" in capsys.readouterr().out


def test_the_last_figures_are_left_out_where_there_is_no_room():
    figures = ["train/loss 0.3123", "lr 1.2e-03", "val/loss 0.5", "812 samples/s"]
    assert fitted(figures, 200) == figures
    assert fitted(figures, 30) == figures[:2]
    assert fitted(figures, 29) == figures[:2]
    assert fitted(figures, 28) == figures[:1]
    assert fitted(figures, 3) == figures[:1]


def test_figures_in_one_line():
    values = {"epoch": 1.0, "train/loss": 0.31234, "learning_rate/group0": 1.2e-3, "learning_rate/group1": 1e-4}
    assert summary({**values, "samples_per_second": 811.7}) == "train/loss 0.3123  lr 1.2e-03  812 samples/s"
