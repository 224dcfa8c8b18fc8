from __future__ import annotations

import copy
import csv
import io
import pickle

import numpy as np
import pytest
import torch

from mxtorch import History
from mxtorch.training.history import MOST_ROWS_PRINTED


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


def test_a_long_table_is_printed_without_its_middle(history, tmp_path):
    history.rows = [{"epoch": float(epoch), "val/<score>": epoch / 7} for epoch in range(1, MOST_ROWS_PRINTED + 1)]
    assert len(str(history).splitlines()) == MOST_ROWS_PRINTED + 1
    history.rows.append({"epoch": MOST_ROWS_PRINTED + 1.0, "val/<score>": 0.5})
    lines = str(history).splitlines()
    assert [line.split()[0] for line in lines] == [
        "epoch",
        *map(str, range(1, 11)),
        "…",
        *map(str, range(MOST_ROWS_PRINTED - 8, MOST_ROWS_PRINTED + 2)),
    ]
    assert len({len(line) for line in lines}) == 1
    html = history._repr_html_()
    assert html.count("<tr>") == 22
    assert "<th>val/&lt;score&gt;</th>" in html
    history.to_csv(tmp_path / "history.csv")
    assert len((tmp_path / "history.csv").read_text().splitlines()) == MOST_ROWS_PRINTED + 2


# ---------------------------------------------------------------- records


def test_records_read_as_a_list_of_dictionaries(history):
    plain = [
        {"step": float(step), "train/loss": 2.0 - step / 16, "learning_rate/group0": 0.1} for step in (4, 8, 12, 16)
    ]
    records = history.records
    assert records == plain
    assert plain == records
    assert records != plain[:3]
    assert list(records) == plain
    assert list(reversed(records)) == plain[::-1]
    assert (records[0], records[-1], records[np.int64(1)]) == (plain[0], plain[-1], plain[1])
    assert records[1:3] == plain[1:3]
    assert records[::-2] == plain[::-2]
    assert plain[2] in records
    for index in (4, -5):
        with pytest.raises(IndexError):
            records[index]
    records.append({"step": 20, "train/loss": np.float32(0.5)})
    assert records[-1] == {"step": 20.0, "train/loss": 0.5}, "a figure that it lacks is not there"
    assert "5 records" in repr(records)
    assert not History().records


def test_records_of_changing_figures():
    plain = [{"a": float(index)} | ({"b": 1.0} if index % 3 else {}) for index in range(500)]
    plain += [{"c": 2.0, "b": float("inf")}, {}, {"a": 0.0, "c": -1.0, "b": 3.0}]
    history = History()
    for record in plain:
        history.records.append(record)
    assert history.records == plain
    np.testing.assert_array_equal(history.records.column("c")[-4:], [np.nan, 2.0, np.nan, -1.0])
    with pytest.raises(KeyError, match="'d'; there are a, b, c"):
        history.records.column("d")


@pytest.mark.parametrize("bad", ["0.5", None, [1.0]])
def test_a_record_that_holds_no_number(history, bad):
    before = list(history.records)
    for record in ({**before[0], "step": bad}, {"new": bad}):
        with pytest.raises(TypeError, match="give numbers"):
            history.records.append(record)
    assert history.records == before
    assert "new" not in history.state_dict()["records"]["names"]


# ---------------------------------------------------------------- state


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("missing", [False, True])
def test_state_goes_through_a_file_bit_for_bit(history, missing):
    history.records.append({"step": 20.0, "train/loss": 1 / 3, "learning_rate/group0": 5e-324})
    if missing:
        history.records.append({"step": 24.0})
    again = History()
    again.load_state_dict(through_a_file(history.state_dict()))
    assert (again.rows, again.records) == (history.rows, list(history.records))
    again.records.append({"step": 28.0, "gradient_norm": 1.0})
    assert again.records[-1] == {"step": 28.0, "gradient_norm": 1.0}
    assert again.records[:-1] == history.records
    empty = History()
    empty.load_state_dict(through_a_file(History().state_dict()))
    assert (len(empty), len(empty.records)) == (0, 0)


def test_state_is_not_changed_by_what_comes_later(history):
    for copied in (history.state_dict, lambda: copy.deepcopy(history), lambda: pickle.loads(pickle.dumps(history))):
        held = copied()
        before = list(history.records), [dict(row) for row in history.rows]
        for step in range(100):
            history.records.append({"step": float(step), "train/loss": 0.0, f"of {copied}": 1.0})
        history.rows.append({"epoch": 3.0})
        restored = History()
        restored.load_state_dict(held if isinstance(held, dict) else held.state_dict())
        assert (list(restored.records), restored.rows) == before


def test_rows_that_are_not_all_floats_are_kept_as_they_are(history):
    history.rows[-1]["val/best"] = True
    again = History()
    again.load_state_dict(through_a_file(history.state_dict()))
    assert again.rows == history.rows
    assert again.rows[-1]["val/best"] is True


def test_older_files_are_read(history):
    """Tables as lists of dictionaries, and as one tensor; an empty one had one dimension."""
    table = {
        "names": ["step", "train/loss", "gradient_norm"],
        "values": torch.tensor([[50.0, 0.7, 0.0], [100.0, 0.5, 2.0]], dtype=torch.float64),
        "present": torch.tensor([[True, True, False], [True, True, True]]),
    }
    records = [{"step": 50.0, "train/loss": 0.7}, {"step": 100.0, "train/loss": 0.5, "gradient_norm": 2.0}]
    empty = {"names": [], "values": torch.tensor([], dtype=torch.float64), "present": None}
    for saved, expected in ((table, records), (records, records), (empty, []), (dict(table, present=None), None)):
        again = History()
        again.load_state_dict({"rows": history.rows, "records": saved})
        assert again.rows == history.rows
        assert expected is None or again.records == expected
        again.load_state_dict({"rows": saved, "records": []})
        assert expected is None or again.rows == expected


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["step"]},
        {"names": ["step", "step"]},
        {"names": ["step", 3]},
        {"values": torch.ones(2, 2)},
        {"values": [[1.0, 2.0]]},
        {"present": torch.ones(2, 2)},
        {"present": torch.ones(1, 2, dtype=torch.bool)},
        {"values": torch.ones(0, 3, dtype=torch.float64)},
    ],
)
def test_a_state_that_is_malformed(history, change):
    table = {"names": ["step", "loss"], "values": torch.ones(2, 2, dtype=torch.float64), "present": None}
    before = history.state_dict()
    for name in ("rows", "records"):
        with pytest.raises(ValueError, match="malformed"):
            history.load_state_dict({"rows": [], "records": [], name: table | change})
    assert history.rows == [dict(row) for row in history.rows]
    assert torch.equal(history.state_dict()["records"]["values"], before["records"]["values"])


def test_a_long_log_costs_little(history):
    """Bounds of complexity, far above what is measured: a table that is printed, a state of many records."""
    import time

    history.records = ({"step": float(step), "train/loss": 0.5} for step in range(100_000))
    history.rows = [{"epoch": float(epoch), "train/loss": 0.5, "step": 1.0} for epoch in range(20_000)]
    for function in (history.__str__, history._repr_html_, history.records.state_dict):
        start = time.process_time()  # other processes do not count
        function()
        assert time.process_time() - start < 0.5
