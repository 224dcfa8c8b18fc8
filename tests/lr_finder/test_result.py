"""What the user gets: words, numbers, tables, files and a picture."""

from __future__ import annotations

import csv
import json
import math
import warnings

import matplotlib.pyplot as plt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mxtorch import schedules
from mxtorch.lr_finder import LRFinderResult, Reading, Trial
from mxtorch.lr_finder.range_test import Sweep
from mxtorch.lr_finder.result import is_constant

OK = Reading("ok", "Two trainings were compared.", 0.03, (0.01, 0.1))
TRIALS = tuple(
    Trial(rate, steps, loss, 2.3, rung)
    for rate, steps, loss, rung in [
        (0.001, 5, 2.25, 0),
        (0.01, 5, 2.1, 0),
        (0.1, 5, 2.0, 0),
        (1.0, 5, math.inf, 0),
        (0.01, 20, 1.8, 1),
        (0.03, 20, 1.6, 1),
        (0.1, 20, 1.9, 1),
        (0.03, 80, 0.7, 2),
        (0.01, 80, 0.8, 2),
        (0.1, 80, math.inf, 2),
    ]
)


def of_trials(reading=OK, schedule=None, trials=TRIALS, **options):
    return LRFinderResult(reading, schedule or schedules.Constant(), trials=trials, num_steps=400, **options)


def of_sweep(losses=None, reading=None, stop_reason="diverged"):
    losses = [2.3 - 0.02 * n for n in range(30)] if losses is None else losses
    rates = [10 ** (-n / 5) for n in range(len(losses), 0, -1)]
    reading = reading or Reading("guess", "A guess.", 0.03, (0.01, 0.1), 0.3, tuple(losses))
    held_out = [(0.001, 2.0), (0.01, 1.7), (0.1, math.inf)] if losses else []
    return LRFinderResult(reading, schedules.OneCycle(100), "sweep", (), Sweep(rates, losses, stop_reason, held_out))


def test_the_words():
    found = of_trials(note="the batches of val_data can't be mixed").after(12.3)
    assert str(found) == (
        "Learning rate, constant: 3.00e-02 (likely 1.0e-02 to 1.0e-01), status ok. Two trainings were compared. Note: "
        "the batches of val_data can't be mixed. 10 trainings, 320 steps, 12.3 s."
    )
    assert repr(found) == str(found), "short, at a prompt too"
    none = of_trials(Reading("no_signal", "Look at the data."), trials=())
    assert "constant: none, status no_signal. Look at the data." in str(none)
    assert "30 steps of a range test, which ended because the loss diverged" in str(of_sweep())


def test_the_numbers():
    found = of_trials()
    assert found.suggestion == 0.03
    assert found.bounds == (0.0075, 0.03)
    assert found.rates == found.losses == found.held_out == found.smoothed == ()
    assert found.rules == {}
    none = of_trials(Reading("no_signal", "Look at the data."))
    assert none.suggestion is none.interval is none.bounds is None
    swept = of_sweep()
    assert len(swept.rates) == len(swept.losses) == len(swept.smoothed) == 30
    assert set(swept.rules) == {"steepest", "valley", "minimum"}


@pytest.mark.parametrize(
    ("schedule", "use"),
    [(schedules.OneCycle(10), "one_cycle"), (schedules.CosineAnnealing(10), "cosine_annealing"), (len, "schedule")],
)
def test_what_it_is_for(schedule, use):
    assert of_trials(schedule=schedule).use == use
    assert use.replace("_", "-") in str(of_trials(schedule=schedule))


def test_a_rule_of_thumb_is_called_one():
    guess = Reading("guess", "A rule of thumb.", 0.03, (0.01, 0.1))
    assert not of_trials(guess).is_rule_of_thumb
    assert of_trials(guess, trials=()).is_rule_of_thumb
    still = tuple(Trial(rate, 5, 2.3, 2.3, 0) for rate in (0.03, 0.3))
    assert of_trials(guess, trials=still).is_rule_of_thumb
    assert not of_trials(Reading("no_signal", ""), trials=still).is_rule_of_thumb
    assert not of_sweep().is_rule_of_thumb


@pytest.mark.parametrize("schedule", ["constant", "cosine_annealing", schedules.Exponential(10), lambda step: 0.5])
def test_the_rate_for_the_schedule_that_was_searched_is_the_suggestion(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of_trials().suggestion_for(schedule) == 0.03


def test_the_rate_for_another_use_is_a_guess_and_a_warning_says_so():
    with pytest.warns(
        UserWarning, match=r"searched with schedule='constant'.*a schedule with a peak: 3.0e-02"
    ) as warned:
        assert of_trials().suggestion_for("one_cycle") >= 0.03
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="searched with schedule='one_cycle'.*a constant rate"):
        assert of_trials(schedule=schedules.OneCycle(10)).suggestion_for("constant") < 0.03


def test_the_warning_names_the_line_that_calls_fit(make, net, loader):
    with pytest.warns(UserWarning, match="searched with schedule='constant'") as warned:
        make(net).fit(loader, lr=of_trials(), schedule="one_cycle")
    assert warned[0].filename == __file__


def test_without_a_suggestion_there_is_no_rate_for_any_schedule():
    with pytest.raises(ValueError, match=r"no rate to suggest \(no_signal\)\. Look at the data\."):
        of_trials(Reading("no_signal", "Look at the data.")).suggestion_for("constant")


def test_schedules_with_a_short_peak_are_no_constant_ones():
    peaked = ["one_cycle", "triangular", "triangular2", "exp_range"]
    assert not any(is_constant(name) for name in peaked)
    assert all(is_constant(name) for name in ("constant", "cosine_annealing", "exponential", "step"))
    assert is_constant(lambda step: 1.0)


# ---------------------------------------------------------------- files


def test_tables(tmp_path):
    found = of_trials()
    found.to_csv(tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == [trial.rate for trial in TRIALS]
    assert [float(row["loss"]) for row in rows] == [trial.loss for trial in TRIALS]
    assert [float(row["steps"]) for row in rows] == [trial.steps for trial in TRIALS]
    swept = of_sweep()
    swept.to_csv(tmp_path / "sweep.csv")
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == list(swept.losses)
    assert [float(row["learning_rate"]) for row in rows] == list(swept.rates)


def refuse(word):
    raise AssertionError(word)


def test_json_has_everything_and_no_numbers_that_it_does_not_know(tmp_path):
    found = of_trials(training_steps=80, note="a note").after(3.0)
    content = json.loads(found.to_json(tmp_path / "found.json"), parse_constant=refuse)
    assert content == json.loads((tmp_path / "found.json").read_text())
    assert content["suggestion"] == 0.03
    assert content["interval"] == [0.01, 0.1]
    assert (content["status"], content["advice"], content["note"]) == ("ok", OK.advice, "a note")
    assert (content["num_steps"], content["training_steps"], content["seconds"]) == (400, 80, 3.0)
    assert [trial["rate"] for trial in content["trials"]] == [trial.rate for trial in TRIALS]
    assert content["trials"][3]["loss"] is None
    swept = json.loads(of_sweep().to_json(), parse_constant=refuse)
    assert swept["held_out"][-1] == [0.1, None]
    assert len(swept["losses"]) == 30


# ---------------------------------------------------------------- the picture


def drawn(found):
    figure = Figure(figsize=(7, 4.2), layout="tight")
    FigureCanvasAgg(figure)
    axes = found.plot(figure.subplots())
    figure.canvas.draw()
    return figure, axes


@pytest.mark.parametrize("found", [of_trials(), of_sweep()], ids=["trials", "sweep"])
def test_nothing_is_covered_or_cut_off(found):
    figure, axes = drawn(found)
    renderer = figure.canvas.get_renderer()
    picture = figure.bbox
    legend = axes.get_legend().get_window_extent(renderer)
    assert not legend.overlaps(axes.get_window_extent(renderer)), "the legend covers no curve"
    parts = [legend, axes.xaxis.label.get_window_extent(renderer), axes.yaxis.label.get_window_extent(renderer)]
    parts += [title.get_window_extent(renderer) for title in (axes.title, axes._left_title) if title.get_text()]
    for part in parts:
        assert part.x0 >= picture.x0
        assert part.y0 >= picture.y0
        assert part.x1 <= picture.x1
        assert part.y1 <= picture.y1
    label = axes.xaxis.label.get_window_extent(renderer)
    assert not legend.overlaps(label)


def test_the_picture_of_trials_shows_each_of_them():
    _, axes = drawn(of_trials())
    assert axes.get_xscale() == "log"
    assert "constant: ok" in axes.get_title(loc="left")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    for label in ("after 5 steps", "after 20 steps", "after 80 steps", "suggestion 3.0e-02", "likely range"):
        assert label in labels
    bottom, top = axes.get_ylim()
    points = {(x, y) for line in axes.get_lines() for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    for trial in TRIALS:
        if math.isfinite(trial.loss):
            assert (trial.rate, trial.loss) in points
            assert bottom < trial.loss < top


def test_the_picture_of_a_sweep_shows_its_curves():
    _, axes = drawn(of_sweep())
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"training loss", "held-out loss", "suggestion 3.0e-02"} <= set(labels)
    assert "one-cycle: guess" in axes.get_title(loc="left")


def test_a_figure_of_its_own():
    assert of_trials().plot().figure is plt.gcf()
    assert "data:image/png;base64" in of_trials()._repr_html_()
    assert "&lt;" in of_trials(note="<b>")._repr_html_()


@pytest.mark.parametrize(
    ("losses", "stop_reason"),
    [
        ([], "overflow"),
        ([], "non_finite"),
        ([math.nan] * 30, "non_finite"),
        ([-5.0] * 30, "completed"),
        ([0.0] * 30, "diverged"),
        ([1e30, *[1.0] * 29], "completed"),
    ],
)
def test_any_sweep_can_be_looked_at(losses, stop_reason):
    found = of_sweep(losses, Reading("no_signal", "None."), stop_reason)
    assert found.status in str(found)
    assert "data:image/png" in found._repr_html_()
    assert json.loads(found.to_json(), parse_constant=refuse)["suggestion"] is None


@pytest.mark.parametrize(
    ("before", "loss"),
    [(2.0, math.inf), (math.inf, 1.0), (math.nan, math.inf), (0.0, 0.0), (-3.0, -5.0), (1e30, 1e30), (1.0, 1e30)],
)
@pytest.mark.parametrize("reading", [OK, Reading("not_finite", "None.")], ids=lambda reading: reading.status)
def test_any_trials_can_be_looked_at(before, loss, reading):
    found = of_trials(reading, trials=tuple(Trial(rate, 5, loss, before, 0) for rate in (0.01, 0.1)))
    assert found.status in str(found)
    assert "data:image/png" in found._repr_html_()
    json.loads(found.to_json(), parse_constant=refuse)
