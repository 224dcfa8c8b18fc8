"""The search as a user sees it, through `Trainer.find_lr`: it leaves no trace, and says what it found."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from searched import make_network, make_own
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer, schedules
from mxtorch.checkpointing.random_state import seed_everything


def everything(trainer):
    """All numbers that training left."""
    values = [tensor.clone() for tensor in trainer.model.state_dict().values()]
    for entry in trainer.optimizer.state.values():
        values += [value.clone() for value in entry.values() if isinstance(value, torch.Tensor)]
    return [*values, torch.get_rng_state(), torch.tensor(random.random()), torch.tensor(np.random.rand())]


def train(make, train_data, val_data, search):
    """Train an epoch, search, train on."""
    trainer = make(make_network())
    seed_everything(9)
    trainer.fit(train_data, epochs=1)
    if search is not None:
        search(trainer, train_data, val_data)
    trainer.fit(train_data, val_data, epochs=2)
    return everything(trainer)


def whole(trainer, train_data, val_data):
    assert trainer.find_lr(train_data, val_data, num_steps=150, schedule="one_cycle").trials


def without_validation_data(trainer, train_data, val_data):
    assert trainer.find_lr(train_data, num_steps=150).trials


def rule_of_thumb(trainer, train_data, val_data):
    assert not trainer.find_lr(train_data, num_steps=4).trials


def shown(trainer, train_data, val_data):
    """With progress, a few steps are timed first."""
    trainer.progress = True
    assert trainer.find_lr(train_data, num_steps=60).trials
    trainer.progress = False


def broken_off(error, after):
    """A search that ends after so many steps."""

    def search(trainer, train_data, val_data):
        steps = []

        def failing(*_):
            steps.append(1)
            if len(steps) == after:
                raise error

        handle = trainer.optimizer.register_step_pre_hook(failing)
        with pytest.raises(type(error)):
            trainer.find_lr(train_data, val_data, num_steps=150)
        handle.remove()

    return search


SEARCHES = {
    "whole": whole,
    "without validation data": without_validation_data,
    "rule of thumb": rule_of_thumb,
    "shown": shown,
    "error": broken_off(OSError("lost"), 50),
    "ctrl-c": broken_off(KeyboardInterrupt(), 5),
    "ctrl-c late": broken_off(KeyboardInterrupt(), 75),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_trials_leave_no_trace(make, train_data, val_data, search):
    first = train(make, train_data, val_data, None)
    second = train(make, train_data, val_data, search)
    assert len(first) == len(second)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"value {index} differs"


def test_an_error_while_judging_leaves_no_trace(train_data, val_data):
    class Failing(Trainer):
        calls = 0

        def evaluation_step(self, batch):
            Failing.calls += 1
            if Failing.calls == 20:
                raise OSError("lost")
            return super().evaluation_step(batch)

    trainer = make_own(Failing, make_network(), nn.CrossEntropyLoss())
    before = everything(trainer)[:-2]
    modes = [module.training for module in trainer.model.modules()]
    with pytest.raises(OSError, match="lost"):
        trainer.find_lr(train_data, val_data, num_steps=150)
    after = everything(trainer)[:-2]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [module.training for module in trainer.model.modules()] == modes
    assert trainer.step == 0


def test_no_file_is_written(make, network, train_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for method in ("trials", "sweep"):
        make(network).find_lr(train_data, num_steps=40, method=method)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("held_out", ["validation data", "training data"])
def test_its_number_of_steps_repeats_a_search_exactly(make, train_data, val_data, precision, held_out):
    trainer = make(make_network(), precision=precision)
    judge = val_data if held_out == "validation data" else None
    timed = trainer.find_lr(train_data, judge, schedule="one_cycle", epochs=1)
    again = trainer.find_lr(train_data, judge, schedule="one_cycle", epochs=1, num_steps=timed.num_steps)
    assert timed.num_steps == 300
    assert len(timed.trials) > 5
    assert again.trials == timed.trials, "bit for bit"
    assert again.reading == timed.reading


def test_whole_trainings_that_are_judged_by_held_out_samples_are_ok(make, train_data, val_data):
    trainer = make(make_network())
    found = trainer.find_lr(train_data, val_data, epochs=8, num_steps=1800)
    assert found.status == "ok", found
    assert found.training_steps == found.trials[-1].steps == 192
    assert 1e-3 < found.suggestion < 1
    start = trainer.evaluate(val_data)["val/loss"]
    trainer.fit(train_data, epochs=2, lr=found)
    assert trainer.evaluate(val_data)["val/loss"] < 0.7 * start


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("the length of the training was assumed", {"num_steps": 3000}),
        ("of the training", {"epochs": 100, "num_steps": 200}),
        ("only training losses", {"epochs": 1, "num_steps": 400, "watch": lambda: 1.0 / (1 + random.random())}),
        ("too few to try rates", {"epochs": 1, "num_steps": 4}),
    ],
)
def test_a_guess_says_why_and_fit_repeats_it(make, network, train_data, val_data, why, options):
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, **options)
    assert found.status == "guess"
    assert why in found.advice
    with pytest.warns(UserWarning, match="no more than a guess") as warned:
        trainer.fit(train_data, lr=found)
    assert found.advice in str(warned[0].message)
    assert warned[0].filename == __file__


def assert_no_rate(trainer, found, train_data, *statuses):
    """A search without a suggestion says why, and `fit` refuses it with the same advice."""
    assert found.status in statuses
    assert found.suggestion is found.interval is found.bounds is None
    assert found.advice in str(found)
    with pytest.raises(ValueError, match="no rate to suggest") as raised:
        trainer.fit(train_data, lr=found)
    assert found.advice in str(raised.value)
    assert trainer.step == 0


def test_labels_that_have_nothing_to_do_with_the_inputs_are_no_signal(make):
    torch.manual_seed(7)
    inputs, labels = torch.randn(512, 8), torch.randint(4, (512,))
    data, judge = (
        DataLoader(TensorDataset(inputs[part], labels[part]), 32, shuffle=True)
        for part in (slice(384), slice(384, 512))
    )
    network = nn.Sequential(nn.Linear(8, 4))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    trainer = make(network)
    assert_no_rate(trainer, trainer.find_lr(data, judge, epochs=2, num_steps=300), data, "no_signal")
    short = trainer.find_lr(data, judge, epochs=50, num_steps=100)
    assert short.status == "guess"
    assert "rule of thumb" in short.advice


@pytest.mark.parametrize(("method", "num_steps"), [("trials", 150), ("sweep", 100)])
def test_already_trained(make, network, method, num_steps):
    easy = DataLoader(TensorDataset(torch.eye(4).repeat(96, 2), torch.arange(384) % 4), 32, shuffle=True)
    make(network).fit(easy, epochs=30)
    trainer = make(network)
    found = trainer.find_lr(easy, easy, method=method, num_steps=num_steps)
    assert_no_rate(trainer, found, easy, "already_trained")


@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_not_finite(make, network, train_data, val_data, method):
    with torch.no_grad():
        network[0].weight[0, 0] = math.nan
    trainer = make(network)
    assert_no_rate(
        trainer, trainer.find_lr(train_data, val_data, method=method, num_steps=60), train_data, "not_finite"
    )


@pytest.mark.parametrize(
    ("status", "word", "options"),
    [
        ("no_signal", "raise end_lr", {"start_lr": 1e-12, "end_lr": 1e-9, "num_steps": 80}),
        ("range_too_short", "raise end_lr", {"start_lr": 1e-4, "end_lr": 2e-2}),
        ("range_too_short", "lower start_lr", {"start_lr": 20, "end_lr": 1e5}),
        ("too_few_steps", "raise num_steps", {"end_lr": 1e-2, "num_steps": 12}),
    ],
)
def test_a_range_test_without_a_rate(make, train_data, val_data, status, word, options):
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, method="sweep", **options)
    assert_no_rate(trainer, found, train_data, status)
    assert word in found.advice


def test_a_range_test_is_a_guess_and_says_so(make, network, train_data, val_data):
    found = make(network).find_lr(train_data, val_data, method="sweep")
    assert (found.method, found.status, len(found.trials)) == ("sweep", "guess", 0)
    assert "guess" in found.advice
    assert 1e-3 < found.suggestion < 1
    assert found.held_out


def test_a_range_test_of_a_part_of_the_training(make, network, train_data):
    found = make(network).find_lr(train_data, method="sweep", budget=0.5, training_steps=80, end_lr=1e-3)
    assert len(found.rates) == found.num_steps == 40


@pytest.mark.parametrize(("start", "end"), [(1e-4, 1e-2), (None, 1e-3), (0.1, None), (None, 1e-8), (50.0, None)])
def test_no_rate_outside_of_the_range(make, network, train_data, val_data, start, end):
    found = make(network).find_lr(train_data, val_data, start_lr=start, end_lr=end, num_steps=150)
    low, high = start or 0, end or math.inf
    for rate in (found.suggestion, *[trial.rate for trial in found.trials]):
        assert low / 1.011 <= rate <= high * 1.011


def late(wrong):
    """A schedule that is wrong in the second half of the training."""
    return lambda step: wrong if step >= 30 else 1.0


@pytest.mark.parametrize("method", ["trials", "sweep"])
@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda step: -1.0, ValueError, "gives -1.0 for step 0; it must be finite and not negative"),
        (lambda step: math.nan, ValueError, "gives nan for step 0"),
        (schedules.OneCycle, TypeError, "got the class OneCycle; give an instance"),
        (3.0, TypeError, "schedule: got 3.0; give a schedule"),
    ],
)
def test_a_schedule_that_fit_refuses_is_refused(make, network, train_data, schedule, error, message, method):
    trainer = make(network)
    before = everything(trainer)[:-2]
    for call in (
        lambda: trainer.find_lr(train_data, method=method, schedule=schedule, num_steps=60, epochs=3),
        lambda: trainer.fit(train_data, schedule=schedule),
    ):
        with pytest.raises(error, match=message):
            call()
    assert all(torch.equal(one, other) for one, other in zip(everything(trainer)[:-2], before, strict=True))


@pytest.mark.parametrize("wrong", [-1.0, math.inf])
@pytest.mark.parametrize("num_steps", [60, 2000])  # squeezed, and whole
def test_a_schedule_that_becomes_wrong_is_refused_and_leaves_no_trace(make, network, train_data, wrong, num_steps):
    trainer = make(network)
    before = everything(trainer)[:-2]
    with pytest.raises(ValueError, match=rf"gives {wrong} for step [3-5]\d; it must be finite and not negative"):
        trainer.find_lr(train_data, schedule=late(wrong), num_steps=num_steps, training_steps=60)
    assert all(torch.equal(one, other) for one, other in zip(everything(trainer)[:-2], before, strict=True))


def test_validation_data_without_a_set_are_refused(make, network, train_data, val_data):
    trainer = make(network)
    with pytest.raises(ValueError, match="val_data: got no set"):
        trainer.find_lr(train_data, {}, num_steps=60)
    with pytest.raises(ValueError, match="val_data\\['b'\\]: got a loader that yields no batches"):
        trainer.find_lr(train_data, {"a": val_data, "b": []}, num_steps=60)
