"""Runs that end within an epoch, validate on several sets or on parts of them, and change accumulation."""

import datetime
import itertools
import math

import pytest
import torch
from limited_run import Watch, run, same, sets
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, CheckpointError, Trainer, schedules
from mxtorch.callbacks import BestWeights, EarlyStopping
from mxtorch.training import limits

# ---------------------------------------------------------------- max_steps


def test_max_steps_ends_the_run_within_an_epoch(loader):
    watch = Watch()
    trainer = run(loader, watch=watch, max_steps=19)  # 8 steps an epoch
    assert trainer.step == 19
    assert [row["step"] for row in trainer.history.rows] == [8, 16, 19]
    assert trainer.run.epochs == 3, "as many as it needs"
    assert watch.rates == pytest.approx([0.1 * schedules.OneCycle(19)(step) for step in range(19)])
    assert trainer.optimizer.schedule == schedules.OneCycle(19)


def test_max_steps_beside_epochs_what_comes_first(loader):
    assert run(loader, max_steps=100, epochs=2).step == 16
    assert run(loader, max_steps=3, epochs=2).step == 3
    assert run(loader, max_steps=16).epoch == 2
    assert run(loader, max_steps=16, steps_per_epoch=5).history["step"] == [5, 10, 15, 16]


def test_max_steps_is_what_the_same_steps_would_be(loader):
    """The weights of a run that was cut are those that the longer run had then."""
    whole = Watch(at_step=11)
    one = run(loader, watch=whole, epochs=3, schedule=None)
    another = run(loader, max_steps=11, schedule=None)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, another.model.state_dict()[name]), name


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in itertools.count():
            inputs = torch.randn(8, generator=generator)
            yield inputs, int(inputs[0] > 0)


def test_an_endless_stream():
    trainer = run(DataLoader(Stream(), batch_size=16), max_steps=12, val_data=sets()[0], validate_every=5)
    assert trainer.step == 12
    assert len(trainer.history) == 1
    assert trainer.optimizer.schedule.total_steps == 12
    assert [record["step"] for record in trainer.history.records if "val/loss" in record] == [5, 10]


def test_a_stream_that_ends_is_begun_again():
    batches = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(5)]

    class Once:
        def __iter__(self):
            return iter(batches)

    assert run(Once(), max_steps=12).history["step"] == [5, 10, 12]


@pytest.mark.parametrize("at_step", [3, 10, 14])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_with_max_steps_goes_on_bit_for_bit(loader, tmp_path, at_step, accumulate):
    options = {"trainer_options": {"accumulate": accumulate}, "max_steps": 14, "val_data": sets()[0]}
    whole = run(loader, tmp_path / "whole", **options)
    run(loader, tmp_path / "parts", watch=Watch(at_step=at_step), **options)
    parts = run(loader, tmp_path / "parts", resume="auto", **options)
    same(parts, whole)
    again = run(loader, tmp_path / "parts", resume="auto", **options)
    same(again, whole)


def test_a_run_that_was_over_goes_on_with_more_steps(loader, tmp_path):
    """It goes on in the pass that was cut; its epochs are then others than those of one run."""
    options = {"schedule": None}
    whole = run(loader, max_steps=30, **options)
    run(loader, tmp_path, max_steps=11, **options)
    longer = run(loader, tmp_path, max_steps=30, resume="auto", **options)
    assert longer.step == 30
    assert longer.history["step"] == [8, 11, 16, 24, 30]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, longer.model.state_dict()[name]), name


# ---------------------------------------------------------------- max_time


def test_max_time(loader, monkeypatch, capsys, tmp_path):
    clock = itertools.count(1000.0, 0.001)
    now = [0.0]
    monkeypatch.setattr("mxtorch.training.run.time.perf_counter", lambda: next(clock) + now[0])

    class Slow(Callback):
        def on_step(self, trainer):
            now[0] += 10

    trainer = run(loader, tmp_path, callbacks=[Slow()], epochs=9, max_time=105, trainer_options={"progress": True})
    assert trainer.step == 11
    assert trainer.history["step"] == [8, 11]
    assert "max_time: the 105 s are over; the run has ended after 11 steps, in epoch 2/9" in capsys.readouterr().out
    again = run(loader, tmp_path, callbacks=[Slow()], epochs=9, max_time=105, resume="auto")
    assert again.step == 11, "the time before the resume counts"
    more = run(loader, tmp_path, callbacks=[Slow()], epochs=9, resume="auto",
               max_time=datetime.timedelta(seconds=145))  # fmt: skip
    assert more.step == 15


# ---------------------------------------------------------------- stop within an epoch


def test_stop_within_an_epoch(loader, tmp_path):
    class Stop(Callback):
        def on_step(self, trainer):
            if trainer.step == 11:
                trainer.stop(within_epoch=True)

    val = sets()[0]
    trainer = run(loader, tmp_path, callbacks=[Stop()], epochs=5, val_data=val)
    assert trainer.history["step"] == [8, 11]
    assert not math.isnan(trainer.history["val/loss"][1])
    again = run(loader, tmp_path, callbacks=[Stop()], epochs=5, val_data=val, resume="auto")
    assert again.history["step"] == [8, 11], "a run that was stopped stays so"


# ---------------------------------------------------------------- several sets, and parts of them


def test_several_sets_by_name(loader, tmp_path):
    clean, noisy = sets()
    options = {"epochs": 2, "val_data": {"clean": clean, "noisy": noisy}, "validate_every": 4}
    best, stopping = BestWeights("val/noisy/accuracy"), EarlyStopping(patience=9)
    metrics = {"metrics": {"accuracy": MulticlassAccuracy(2)}}
    trainer = run(loader, tmp_path, callbacks=[best, stopping], trainer_options=metrics, **options)
    names = {"val/clean/loss", "val/noisy/loss", "val/clean/accuracy", "val/noisy/accuracy"}
    assert names <= set(trainer.history.columns)
    assert names <= trainer.run.expected_figures
    assert best.best == max(
        [*trainer.history["val/noisy/accuracy"]]
        + [record["val/noisy/accuracy"] for record in trainer.history.records if "val/noisy/accuracy" in record]
    )
    assert stopping.best <= min(trainer.history["val/clean/loss"]), "val/loss is that of the first set"
    assert (tmp_path / "best.ckpt").exists()
    separately = {**trainer.evaluate(clean, prefix="val/clean"), **trainer.evaluate(noisy, prefix="val/noisy")}
    assert trainer.evaluate({"clean": clean, "noisy": noisy}) == separately


def test_several_sets_are_resumed(loader, tmp_path):
    options = {"epochs": 2, "val_data": dict(zip("ab", sets(), strict=True)), "validate_every": 3}
    whole = run(loader, tmp_path / "whole", **options)
    run(loader, tmp_path / "parts", watch=Watch(in_validation=4), **options)
    same(run(loader, tmp_path / "parts", resume="auto", **options), whole)
    run(loader, tmp_path / "fewer", watch=Watch(at_step=5), **options)
    with pytest.warns(UserWarning, match="validation is"):
        run(loader, tmp_path / "fewer", resume="auto", epochs=2, val_data=sets()[0], validate_every=3)


def test_a_scheduler_watches_one_of_several_sets(loader):
    def plateau(trainer_options):
        torch.manual_seed(0)
        net = nn.Linear(8, 2)
        trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu",
                          progress=False)  # fmt: skip
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer)
        trainer.fit(loader, dict(zip("ab", sets(), strict=True)), epochs=3, schedule=scheduler, **trainer_options)
        return scheduler.best

    assert plateau({}) == plateau({"schedule_monitor": "val/a/loss"}) != plateau({"schedule_monitor": "val/b/loss"})


def test_parts_of_validation(loader):
    val = sets()[0]
    watch = Watch()
    trainer = run(loader, watch=watch, max_steps=2, val_data=val, val_batches=1)
    first = trainer.evaluate([next(iter(val))])
    assert trainer.history["val/loss"] == [first["val/loss"]]
    assert trainer.step == 2


def test_a_search_takes_the_first_set(loader):
    clean, noisy = sets()
    one = run(loader, max_steps=1).find_lr(loader, clean, num_steps=60)
    several = run(loader, max_steps=1).find_lr(loader, {"clean": clean, "noisy": noisy}, num_steps=60)
    assert one.trials == several.trials


# ---------------------------------------------------------------- accumulation that changes


def test_accumulation_changes_over_epochs(loader):
    watch = Watch()
    trainer = run(loader, watch=watch, epochs=4, trainer_options={"accumulate": {1: 8, 2: 4, 4: 3}})
    assert trainer.history["step"] == [1, 3, 5, 8]
    assert trainer.optimizer.schedule == schedules.OneCycle(8)
    assert watch.rates == pytest.approx([0.1 * schedules.OneCycle(8)(step) for step in range(8)])


def test_a_search_is_for_as_many_steps_as_fit_takes(loader):
    trainer = run(loader, epochs=4, trainer_options={"accumulate": {1: 8, 2: 1}})
    assert trainer.find_lr(loader, epochs=4, num_steps=60).training_steps == trainer.step == 25


@pytest.mark.parametrize("at_step", [3, 4, 6])
def test_it_is_resumed(loader, tmp_path, at_step):
    options = {"epochs": 3, "trainer_options": {"accumulate": {1: 4, 2: 2}}}
    whole = run(loader, tmp_path / "whole", **options)
    run(loader, tmp_path / "parts", watch=Watch(at_step=at_step), **options)
    same(run(loader, tmp_path / "parts", resume="auto", **options), whole)
    with pytest.raises(CheckpointError, match="accumulate is"):
        run(loader, tmp_path / "parts", resume="auto", epochs=3, trainer_options={"accumulate": {1: 4, 3: 2}})


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps: got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps: got 1.5"),
        ({"max_time": -1}, ValueError, "max_time: got -1"),
        ({"max_time": "1h"}, TypeError, "max_time: got '1h'"),
        ({"max_time": float("nan")}, ValueError, "max_time: got nan"),
        ({"validate_every": 3}, ValueError, "validate_every: fit was given no val_data"),
        ({"val_batches": 3}, ValueError, "val_batches: fit was given no val_data"),
        ({"validate_every": 0, "val_data": True}, ValueError, "validate_every: got 0"),
        ({"validate_every": 1.5, "val_data": True}, ValueError, "validate_every: got 1.5"),
        ({"validate_every": "step", "val_data": True}, ValueError, "validate_every: got 'step'"),
        ({"validate_every": None, "val_data": True}, TypeError, "validate_every: got None"),
        ({"val_batches": 0, "val_data": True}, ValueError, "val_batches: got 0"),
        ({"val_data": {}}, ValueError, "val_data: got no set"),
        ({"val_data": {"a/b": []}}, ValueError, "without a slash"),
        ({"val_data": {3: []}}, TypeError, "the name of a set"),
        ({"val_data": {"a": 3}}, TypeError, r"val_data\['a'\]: got 3"),
        ({"val_data": iter([]), "validate_every": 3}, ValueError, "val_data: got list_iterator, which can be read"),
        ({"val_data": {"a": iter([])}, "validate_every": 0.5}, ValueError, r"val_data\['a'\]: got list_iterator"),
    ],
    ids=lambda value: str(value).partition(" object at ")[0],
)
def test_arguments_are_checked_before_anything_changes(loader, options, error, message):
    if options.get("val_data") is True:
        options = options | {"val_data": sets()[0]}
    net = nn.Linear(8, 2)
    trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu",
                      progress=False)  # fmt: skip
    before = net.weight.detach().clone()
    with pytest.raises(error, match=message):
        trainer.fit(loader, **options)
    assert torch.equal(net.weight, before)
    assert trainer.run is None


def test_a_part_of_an_epoch_without_a_length():
    with pytest.raises(ValueError, match="a part of an epoch whose length is not known"):
        run(DataLoader(Stream(), batch_size=4), max_steps=4, val_data=sets()[0], validate_every=0.5)


@pytest.mark.parametrize("accumulate", [{}, {2: 3}, {1: 0}, {1: 2, 0: 3}, {1: "a"}, {"a": 1}])
def test_accumulations_are_checked(accumulate):
    with pytest.raises((ValueError, TypeError), match="accumulate"):
        run([], trainer_options={"accumulate": accumulate})


def test_names_of_figures():
    prefixes = ["val/a", "val/b"]
    assert limits.figure_of("train/loss", prefixes) == "train/loss"
    assert limits.figure_of("val/loss", ["val"]) == limits.figure_of("val/loss", []) == "val/loss"
    assert limits.without_set("val/loss", prefixes) == "val/loss"
