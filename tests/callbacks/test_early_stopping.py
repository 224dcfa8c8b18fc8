from __future__ import annotations

import pytest
import torch
from torch import nn

from mxtorch import Callback
from mxtorch.callbacks import BestWeights, EarlyStopping


class Scripted(Callback):
    """Puts figures into the history in place of real ones, and sets the weight to the number of the epoch."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def on_epoch_complete(self, trainer, row):
        row[self.name] = self.values[trainer.epoch - 1]
        with torch.no_grad():
            trainer.model.weight.fill_(trainer.epoch)


def fit(make, loader, values, *callbacks, name="val/accuracy", epochs=None):
    net = nn.Linear(8, 2)
    trainer = make(net, callbacks=[Scripted(name, values), *callbacks])
    trainer.fit(loader, epochs=epochs or len(values))
    return trainer


@pytest.mark.parametrize(
    ("name", "values", "options", "epochs"),
    [
        ("val/accuracy", [0.5, 0.6, 0.6, 0.5, 0.9], {"patience": 2}, 4),
        ("val/accuracy", [0.5, 0.6, 0.6, 0.7, 0.9], {"patience": 2}, 5),
        ("val/loss", [3, 2, 2.5, 2.4, 1], {"patience": 2}, 4),
        ("val/loss", [3, 2, 1.95, 1.93, 1], {"patience": 2, "min_delta": 0.1}, 4),
        ("val/score", [3, 2, 1, 0, 0], {"patience": 2, "mode": "max"}, 3),
        ("val/score", [3, 2, 1, 0, -1], {"patience": 2, "mode": "min"}, 5),
        ("val/loss", [float("nan")] * 5, {"patience": 3, "check_finite": False}, 3),
    ],
)
def test_when_it_stops(make, loader, name, values, options, epochs):
    stopping = EarlyStopping(name, **options)
    assert len(fit(make, loader, values, stopping, name=name).history) == epochs


def test_best_weights_come_back(make, loader):
    best = BestWeights("val/accuracy")
    trainer = fit(make, loader, [0.5, 0.9, 0.7, 0.8], best)
    assert trainer.model.weight[0, 0].item() == 2
    assert (best.best, best.best_epoch) == (0.9, 2)


def test_best_weights_come_back_after_an_error(make, loader):
    class Failing(Callback):
        def on_epoch_start(self, trainer):
            if trainer.run.epoch == 3:
                raise RuntimeError("enough")

    net = nn.Linear(8, 2)
    trainer = make(net, callbacks=[Scripted("val/accuracy", [0.5, 0.9, 0.7]), BestWeights("val/accuracy"), Failing()])
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(loader, epochs=4)
    assert net.weight[0, 0].item() == 2


@pytest.mark.parametrize("kind", [EarlyStopping, BestWeights])
def test_a_state_goes_on_where_it_was_saved_and_a_new_run_begins_afresh(make, loader, kind):
    first = kind("val/accuracy")
    fit(make, loader, [0.9, 0.7], first)
    second = kind("val/accuracy")
    second.load_state_dict(first.state_dict())
    fit(make, loader, [0.8, 0.85], second)
    assert second.best == 0.9
    assert second.epochs_without == 3
    fit(make, loader, [0.3], second)
    assert second.best == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience: got 0"),
        ({"min_delta": -1}, "min_delta: got -1"),
        ({"mode": "mini"}, "did you mean 'min'"),
    ],
)
def test_arguments_that_are_off(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


def test_a_figure_that_is_not_there(make, loader):
    with pytest.raises(ValueError, match=r"monitor: got 'val/acuracy'.*did you mean 'val/accuracy'"):
        fit(make, loader, [0.5], EarlyStopping("val/acuracy", mode="max"))


class Figures(Callback):
    """Puts figures of its own into the rows, in place of a validation's."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_complete(self, trainer, row):
        row["val/score"] = self.values[trainer.epoch - 1]


@pytest.mark.parametrize(
    ("values", "options", "epochs", "words"),
    [
        ([1.0, float("nan"), 0.5], {}, 2, "val/score is nan, no finite number, its best was 1, of epoch 1"),
        ([1.0, float("inf"), 0.5], {}, 2, "val/score is inf, no finite number"),
        ([float("nan")] * 3, {"check_finite": False}, 2, "has not improved for 2 epochs"),
        ([0.5, 0.3, 0.2], {"threshold": 0.3}, 2, "val/score is 0.3, as good as the threshold 0.3"),
        ([0.5, 0.7, 0.9], {"threshold": 0.7, "mode": "max"}, 2, "as good as the threshold 0.7"),
        ([0.5, 3.0, 0.2], {"divergence_threshold": 2.0}, 2, "val/score is 3, worse than the divergence_threshold 2"),
        ([0.5, 0.1, 0.2], {"divergence_threshold": 0.3, "mode": "max"}, 2, "worse than the divergence_threshold 0.3"),
        ([0.5, 0.4, 0.3], {"threshold": 0.1, "divergence_threshold": 2.0}, 3, ""),
    ],
    ids=str,
)
def test_it_ends_on_no_number_and_on_thresholds(make, loader, net, capsys, values, options, epochs, words):
    stopping = EarlyStopping("val/score", patience=2, **{"mode": "min"} | options)
    trainer = make(net, callbacks=[Figures(*values), stopping], progress=True)
    trainer.fit(loader, epochs=3)
    assert trainer.epoch == epochs
    out = capsys.readouterr().out
    assert words in out
    assert ("EarlyStopping" in out and f"The model has the weights of epoch {epochs}" in out) is bool(words)


@pytest.mark.parametrize("threshold", ["a", float("nan"), True, [1]])
def test_thresholds_are_checked(threshold):
    with pytest.raises(ValueError, match=r"threshold: got"):
        EarlyStopping(threshold=threshold)
    with pytest.raises(ValueError, match=r"divergence_threshold: got"):
        EarlyStopping(divergence_threshold=threshold)
