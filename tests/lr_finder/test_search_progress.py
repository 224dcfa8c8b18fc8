"""What a search shows while it runs."""

from __future__ import annotations

import pytest


class Bar:
    made: list[Bar]

    def __init__(self, total, description):
        self.total, self.count, self.words, self.closed, self.disable = total, 0, [], False, False
        self.made.append(self)

    def update(self, count):
        self.count += count

    def set_postfix_str(self, words):
        self.words.append(words)

    def close(self):
        self.closed = True


def test_a_bar_in_a_terminal(make, network, train_data, val_data, monkeypatch, capsys):
    Bar.made = []
    monkeypatch.setattr("mxtorch.lr_finder.search.progress_bar", Bar)
    found = make(network, progress=True).find_lr(train_data, val_data, num_steps=150)
    (bar,) = Bar.made
    assert bar.count <= sum(trial.steps for trial in found.trials) <= bar.total <= 150
    assert len(bar.words) >= 3
    assert all("trainings of" in words for words in bar.words)
    assert bar.closed
    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1, "how long it takes; the bar says the rest"


@pytest.mark.parametrize("options", [{"num_steps": 150}, {"budget": 1.5, "training_steps": 100}, {}], ids=str)
@pytest.mark.usefixtures("quick")
def test_lines_in_a_log_file(make, network, train_data, val_data, capsys, options):
    found = make(network, progress=True).find_lr(train_data, val_data, **options)
    output, errors = capsys.readouterr()
    assert output == ""
    first, *others = errors.splitlines()
    assert first.startswith("find_lr: up to ")
    assert first.endswith(" s"), "the time is said before the search"
    assert len(others) >= len({trial.rung for trial in found.trials})
    for trial in found.trials:
        assert any(f"of {trial.steps} steps" in line for line in others)


def test_a_bar_is_closed_after_an_error(make, network, train_data, monkeypatch):
    Bar.made = []
    monkeypatch.setattr("mxtorch.lr_finder.search.progress_bar", Bar)

    def fail():
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        make(network, progress=True).find_lr(train_data, watch=fail, num_steps=60)
    assert all(bar.closed for bar in Bar.made)
