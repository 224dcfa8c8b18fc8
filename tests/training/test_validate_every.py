"""Validation within an epoch, over epochs, and at the end of a run."""

import math

import pytest
import torch
from limited_run import Watch, run, same, sets
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import BestWeights, EarlyStopping


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
