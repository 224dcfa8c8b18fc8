from __future__ import annotations

import csv

import pytest

from mxtorch import History


@pytest.fixture
def history():
    history = History()
    history.rows = [
        {"epoch": 1.0, "train/loss": 2.0, "step": 8.0, "learning_rate": 0.1, "seconds": 1.25},
        {"epoch": 2.0, "train/loss": 1.0, "val/loss": 1.5, "step": 16.0, "learning_rate": 0.05, "seconds": 1.0},
    ]
    history.records = [
        {"step": float(step), "train/loss": 2.0 - step / 16, "learning_rate/group0": 0.1} for step in range(4, 17, 4)
    ]
    return history


def test_columns_and_rows(history):
    assert len(history) == 2
    assert history["train/loss"] == [2.0, 1.0]
    assert history["val/loss"][1] == 1.5
    assert history["val/loss"][0] != history["val/loss"][0], "NaN where an epoch lacks the figure"
    with pytest.raises(KeyError, match=r"accuracy.*there are epoch, train/loss"):
        history["accuracy"]


def test_as_text_html_and_file(history, tmp_path):
    lines = str(history).splitlines()
    assert lines[0].split() == ["epoch", "train/loss", "step", "learning_rate", "seconds", "val/loss"]
    assert lines[2].split() == ["2", "1.0000", "16", "5.00e-02", "1.0", "1.5000"]
    assert len({len(line) for line in lines}) == 1
    assert str(History()) == "History: no epochs yet"
    assert "<th>val/loss</th>" in history._repr_html_()
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        assert [row["val/loss"] for row in csv.DictReader(file)] == ["", "1.5"]


def test_plot(history):
    loss, _, rate = history.plot()
    assert {line.get_label() for line in loss.lines} == {"train/loss", "val/loss"}
    assert list(rate.lines[0].get_ydata()) == [0.1] * 4
    assert list(rate.lines[0].get_xdata()) == [4, 8, 12, 16]
