from __future__ import annotations

import sys
import types

import pytest
from torchmetrics.classification import MulticlassAccuracy

from mxtorch.callbacks import ProgressBar
from mxtorch.callbacks.progress import progress_bar, summary


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


@pytest.mark.parametrize(("notebook", "shown"), [(True, True), (False, False)])
def test_in_a_notebook_there_is_a_bar(notebook, shown, monkeypatch):
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with progress_bar(3, "work") as bar:
        assert bar.disable is not shown


def test_figures_in_one_line():
    values = {"epoch": 1.0, "train/loss": 0.31234, "learning_rate/group0": 1.2e-3, "learning_rate/group1": 1e-4}
    assert summary({**values, "samples_per_second": 811.7}) == "train/loss 0.3123  lr 1.2e-03  812 samples/s"
