"""Runs that end within an epoch, validate within it, on several sets or on parts of them, and change accumulation."""

import contextlib
import datetime
import itertools
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, CheckpointError, Trainer, schedules
from mxtorch.callbacks import BestWeights, Checkpoint, EarlyStopping
from mxtorch.training import limits


class Watch(Callback):
    """Notes what happens, and breaks off at a step or in a validation."""

    def __init__(self, at_step=None, in_validation=None):
        self.at_step, self.in_validation = at_step, in_validation
        self.validated, self.rates, self.passes, self.rows = [], [], 0, 0

    def on_step(self, trainer):
        self.rates.append(trainer.optimizer.learning_rate)
        if trainer.step == self.at_step:
            raise KeyboardInterrupt

    def on_evaluate_start(self, trainer):
        self.passes += 1
        if self.passes == self.in_validation:
            os.kill(os.getpid(), signal.SIGINT)

    def on_validated(self, trainer, figures):
        self.validated.append((trainer.step, figures))

    def on_epoch_complete(self, trainer, row):
        self.rows += 1


def sets(count=2):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 40, 8, generator=generator)
    return [DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10) for x in inputs]


def run(loader, folder=None, *, watch=None, callbacks=(), trainer_options=None, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    callbacks = [*callbacks, watch or Watch(), *([] if folder is None else [Checkpoint(folder, every=1, keep=99)])]
    options = {"schedule": "one_cycle"} | options
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu",
        **{"progress": False} | (trainer_options or {}),
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(loader, **options)
    return trainer


def same(one, another):
    assert one.step == another.step
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, another.model.state_dict()[name]), name
    assert one.optimizer.learning_rates == another.optimizer.learning_rates
    timed = ("seconds", "samples_per_second")
    for rows, others in ((one.history.rows, another.history.rows), (one.history.records, another.history.records)):
        assert [{k: v for k, v in row.items() if k not in timed} for row in rows] == [
            {k: v for k, v in row.items() if k not in timed} for row in others
        ]


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


# ---------------------------------------------------------------- validation within an epoch


def test_validation_every_few_steps(loader):
    watch = Watch()
    trainer = run(loader, watch=watch, epochs=2, val_data=sets()[0], validate_every=3)
    assert [step for step, _ in watch.validated] == [3, 6, 11, 14]
    assert [record["step"] for record in trainer.history.records if "val/loss" in record] == [3, 6, 11, 14]
    assert watch.passes == 6
    assert set(watch.validated[0][1]) == {"val/loss"}
    assert len(trainer.history["val/loss"]) == 2
    trainer.history.plot()


def test_validation_by_a_part_of_the_epoch(loader):
    watch = Watch()
    run(loader, watch=watch, epochs=1, val_data=sets()[0], validate_every=0.25)
    assert [step for step, _ in watch.validated] == [2, 4, 6]
    watch = Watch()
    run(loader, watch=watch, epochs=1, val_data=sets()[0], validate_every=8)
    assert watch.validated == []
    assert watch.passes == 1


@pytest.mark.parametrize(
    ("every", "options", "within", "ends"),
    [
        (12, {"epochs": 5}, [12, 36], [3, 5]),  # 24 falls on the end of the third epoch
        (9, {"epochs": 3}, [9, 18], [3]),
        (100, {"epochs": 3}, [], [3]),
        (10, {"max_steps": 21}, [10, 20], [3]),
        (16, {"epochs": 4}, [], [2, 4]),
        (7, {"epochs": 4, "steps_per_epoch": 3}, [7], [4]),
        (6, {"epochs": 4, "trainer_options": {"accumulate": {1: 2, 3: 1}}}, [6, 12, 18], [4]),  # 4, 4, 8, 8 steps
    ],
    ids=str,
)
def test_validation_over_epochs(loader, tmp_path, every, options, within, ends):
    """Steps are counted over epochs, and the run's end is validated."""
    watch, stopping, best = Watch(), EarlyStopping(patience=99), BestWeights()
    trainer = run(loader, tmp_path, watch=watch, callbacks=[stopping, best], val_data=sets()[0], validate_every=every,
                  **options)  # fmt: skip
    assert [step for step, _ in watch.validated] == within
    assert [record["step"] for record in trainer.history.records if "val/loss" in record] == within
    assert [row["epoch"] for row in trainer.history.rows if "val/loss" in row] == ends
    assert watch.passes == len(within) + len(ends)
    losses = [figures["val/loss"] for _, figures in watch.validated]
    losses += [loss for loss in trainer.history["val/loss"] if not math.isnan(loss)]
    assert stopping.best == best.best == min(losses)
    print(trainer.history)
    trainer.history.plot()


@pytest.mark.parametrize(
    "broken_off",
    [{"at_step": step} for step in (3, 8, 11, 12, 17, 24, 25)] + [{"in_validation": number} for number in (1, 2, 3)],
    ids=str,
)
def test_a_resumed_run_keeps_its_place_between_validations(two_moons, tmp_path, broken_off):
    loader = DataLoader(two_moons, batch_size=32, shuffle=True)
    val = DataLoader(sets()[0].dataset, batch_size=10, shuffle=True)
    options = {"epochs": 4, "val_data": val, "validate_every": 12}
    whole = run(loader, tmp_path / "whole", **options)
    run(loader, tmp_path / "parts", watch=Watch(**broken_off), **options)
    parts = run(loader, tmp_path / "parts", resume="auto", **options)
    same(parts, whole)
    assert [record["step"] for record in parts.history.records if "val/loss" in record] == [12]
    assert [row["step"] for row in parts.history.rows if "val/loss" in row] == [24, 32]


class Unmeasured(IterableDataset):
    """The samples of a loader's data set, without a length."""

    def __init__(self, loader):
        self.samples = loader.dataset

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("every", [3, 8, 9, 12, 16, 100])
@pytest.mark.parametrize("max_steps", [None, 27])
def test_data_without_a_length_are_validated_as_those_with_one(loader, every, max_steps):
    def runs(data):
        watch = Watch()
        options = {"max_steps": max_steps, "epochs": 4, "val_data": sets()[0], "validate_every": every}
        trainer = run(data, watch=watch, callbacks=[EarlyStopping(patience=99)], schedule=None, **options)
        ends = [row["step"] for row in trainer.history.rows if "val/loss" in row]
        return {step for step, _ in watch.validated} | set(ends), trainer.history["step"]

    batches = list(loader)
    assert runs(DataLoader(Unmeasured(loader), batch_size=loader.batch_size)) == runs(batches)


@pytest.mark.parametrize("at_step", [3, 8, 12, 17])
def test_a_resumed_run_of_unknown_length_keeps_counting_over_epochs(loader, tmp_path, at_step):
    data = DataLoader(Unmeasured(loader), batch_size=loader.batch_size)
    options = {"epochs": 4, "val_data": sets()[0], "validate_every": 12, "schedule": None}
    whole = run(data, tmp_path / "whole", **options)
    run(data, tmp_path / "parts", watch=Watch(at_step=at_step), **options)
    same(run(data, tmp_path / "parts", resume="auto", **options), whole)
    assert [record["step"] for record in whole.history.records if "val/loss" in record] == [12, 24]
    assert [row["step"] for row in whole.history.rows if "val/loss" in row] == [32]


class StopAfter(Callback):
    """Stops the run between two epochs."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_complete(self, trainer, row):
        if trainer.epoch == self.epoch:
            trainer.stop()


def test_the_end_of_a_run_that_is_stopped_between_epochs_is_validated(loader, tmp_path, capsys):
    watch, best, val = Watch(), BestWeights(), sets()[0]
    options = {"val_data": val, "validate_every": 50, "epochs": 9, "trainer_options": {"progress": True}}
    trainer = run(loader, tmp_path, watch=watch, callbacks=[StopAfter(2), best], **options)
    figures = trainer.evaluate(val)
    assert watch.validated == [(16, figures)]
    assert [row.get("val/loss") for row in trainer.history.rows] == [None, figures["val/loss"]]
    assert (best.best, best.best_epoch) == (figures["val/loss"], 2)
    assert (tmp_path / "best.ckpt").resolve().name == "step-00000016.ckpt"
    assert f"at the end of the run  val/loss {figures['val/loss']:.4g}" in capsys.readouterr().out
    again = run(loader, tmp_path, callbacks=[best], resume="auto", **options)
    assert again.history.rows[-1]["val/loss"] == figures["val/loss"]


def test_a_run_that_is_broken_off_in_the_validation_of_its_end_makes_up_for_it(loader, tmp_path):
    options = {"val_data": sets()[0], "validate_every": 50, "epochs": 9, "trainer_options": {"progress": True}}
    whole = run(loader, tmp_path / "whole", callbacks=[StopAfter(2), BestWeights()], **options)
    watch = Watch(in_validation=1)
    run(loader, tmp_path / "parts", watch=watch, callbacks=[StopAfter(2), BestWeights()], **options)
    assert watch.validated == []
    best = BestWeights()
    same(run(loader, tmp_path / "parts", callbacks=[StopAfter(2), best], resume="auto", **options), whole)
    assert best.best_epoch == 2


def test_a_run_that_time_ends_between_epochs_is_validated(loader, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mxtorch.training.run.time.perf_counter", lambda: now[0])

    class Clock(Callback):
        def on_epoch_complete(self, trainer, row):
            now[0] += 10.0

    trainer = run(loader, callbacks=[Clock()], val_data=sets()[0], validate_every=50, epochs=9, max_time=15)
    assert trainer.history["step"] == [8, 16]
    assert "val/loss" in trainer.history.rows[-1]


def test_early_stopping_over_epochs(loader):
    stopping = EarlyStopping(patience=1, min_delta=100.0)
    trainer = run(loader, callbacks=[stopping], epochs=9, val_data=sets()[0], validate_every=12)
    assert trainer.step == 24
    assert trainer.history["step"] == [8, 16, 24]


def test_a_schedule_that_watches_each_epoch_is_refused_with_validation_over_epochs(loader):
    def fit(**options):
        net = nn.Linear(8, 2)
        trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu",
                          progress=False)  # fmt: skip
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer)
        trainer.fit(loader, sets()[0], epochs=3, schedule=scheduler, **options)
        return trainer

    with pytest.raises(ValueError, match="validate_every: got 9, and an epoch has 8 steps"):
        fit(validate_every=9)
    assert fit(validate_every=9, schedule_monitor="train/loss").step == 24
    assert fit(validate_every=8).step == 24
    loader = DataLoader(Unmeasured(loader), batch_size=loader.batch_size)
    assert len(fit(validate_every=9).history["val/loss"]) == 3, "without a length each epoch is validated for it"


def test_it_does_not_change_the_training(loader):
    one = run(loader, epochs=2, val_data=list(sets()[0]))
    another = run(loader, epochs=2, val_data=list(sets()[0]), validate_every=2)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, another.model.state_dict()[name]), name
    assert one.history["val/loss"] == another.history["val/loss"]


@pytest.mark.parametrize(
    "broken_off", [{"at_step": 3}, {"at_step": 4}, {"at_step": 11}, {"in_validation": 1}, {"in_validation": 4}], ids=str
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_validates_what_is_due_and_nothing_twice(two_moons, tmp_path, broken_off, workers):
    if workers and "at_step" in broken_off and broken_off["at_step"] != 3:
        pytest.skip("once is enough")
    loader = DataLoader(two_moons, batch_size=32, shuffle=True, num_workers=workers, persistent_workers=bool(workers))
    val = DataLoader(sets()[0].dataset, batch_size=10, shuffle=True, num_workers=workers,
                     persistent_workers=bool(workers))  # fmt: skip
    options = {"epochs": 2, "val_data": val, "validate_every": 3, "val_batches": 3}
    whole = run(loader, tmp_path / "whole", **options)
    run(loader, tmp_path / "parts", watch=Watch(**broken_off), **options)
    parts = run(loader, tmp_path / "parts", resume="auto", **options)
    same(parts, whole)


def test_early_stopping_best_weights_and_checkpoint_look_at_each_validation(loader, tmp_path, capsys):
    class Spoil(Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                with torch.no_grad():
                    trainer.model[-1].weight.mul_(100)

    stopping, best = EarlyStopping(patience=2), BestWeights()
    trainer = run(
        loader, tmp_path, callbacks=[Spoil(), stopping, best], epochs=4, val_data=sets()[0], validate_every=2,
        lr=1e-3, schedule="constant", trainer_options={"progress": True},
    )  # fmt: skip
    assert trainer.step == 6
    assert trainer.history["step"] == [6]
    assert stopping.best_step == best.best_step == 2
    out = capsys.readouterr().out
    assert "EarlyStopping ended the run after epoch 1: val/loss has not improved for" in out
    assert "of epoch 1 (step 2)" in out
    assert "The model has the weights of epoch 1 (step 2), the best by val/loss" in out
    assert (tmp_path / "best.ckpt").resolve().name == "step-00000002.ckpt"
    figures = trainer.evaluate(sets()[0])
    assert figures["val/loss"] == pytest.approx(best.best)


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
