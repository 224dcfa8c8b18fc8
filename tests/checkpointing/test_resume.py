"""The promise of fit(resume=...): an interrupted and resumed run equals an uninterrupted run, bit for bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from faulty_run import Around, InPlace, Lazy, Noisy, StatefulStream
from resumed_run import Augmented, Average, KilledError, assert_same, build, check, everything, plain
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing import file
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.random_state import seed_everything

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # by torchdata


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("kill", [1, 5, 6, 7, 11, 12, 17])
def test_a_plain_shuffling_loader(tmp_path, kill):
    check(tmp_path, plain(), kill)


@pytest.mark.parametrize("kill", [4, 6, 9])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_with_random_augmentation(tmp_path, kill, persistent):
    check(tmp_path, plain(num_workers=2, persistent_workers=persistent), kill, val=plain(num_workers=1))


def test_persistent_workers_in_the_validation_loader_too(tmp_path):
    data = plain(num_workers=1, persistent_workers=True)
    check(tmp_path, data, 14, val=data, again=15)


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}], ids=["no workers", "workers"])
def test_stateful_data_loader(tmp_path, settings):
    check(tmp_path, lambda: StatefulDataLoader(Augmented(), 16, shuffle=True, **settings), 8)


class Stream(IterableDataset):
    """An endless stream with a state_dict that holds its position."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while True:
            self.place += 1
            yield torch.full((8,), float(self.place)).sin() + 0.1 * torch.rand(8), self.place % 2

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


@pytest.mark.parametrize("kill", [3, 5, 7])
def test_a_stream_with_a_state(tmp_path, kill):
    fit = {"steps_per_epoch": 5, "lr": 0.05, "schedule": "one_cycle"}
    check(tmp_path, lambda: StatefulDataLoader(Stream(), 4), kill, fit=fit)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 4},
        {"precision": "fp16"},
        {"precision": "bf16", "accumulate": 2},
        {"clip_grad_norm": 0.1},
        {"on_nonfinite": "skip"},
        {"optimizer": torch.optim.Adam},
        {"optimizer": torch.optim.RMSprop},
    ],
    ids=str,
)
def test_settings_of_the_step(tmp_path, options):
    check(tmp_path, plain(), 4, **options)


def test_interrupted_within_a_window(tmp_path):
    """The run ends in the second batch of a window of four; the resumed run repeats the whole window."""

    class InTheWindow(Augmented):
        def __getitem__(self, index):
            if self.taken == 5 * 16 + 90 and self.dies:
                raise KilledError
            return super().__getitem__(index)

    def data(dies):
        loader = plain()()
        loader.dataset.__class__ = InTheWindow
        loader.dataset.dies = dies
        return loader

    whole = build(tmp_path / "whole", accumulate=4)
    seed_everything(5)
    whole.fit(data(False), epochs=3)
    expected = everything(whole)
    broken = build(tmp_path / "broken", accumulate=4)
    seed_everything(5)
    with pytest.raises(KilledError):
        broken.fit(data(True), epochs=3)
    resumed = build(tmp_path / "broken", accumulate=4)
    resumed.fit(data(False), epochs=3, resume="auto")
    assert_same(expected, everything(resumed))


def test_metrics_of_an_interrupted_epoch(tmp_path):
    """There are more batches than one metric update takes, and the states are sums, counts and matrices."""

    def metrics():
        return {
            "accuracy": MulticlassAccuracy(num_classes=2),
            "recall": MulticlassAccuracy(num_classes=2, average="macro"),
            "matrix": MulticlassConfusionMatrix(num_classes=2),
        }

    for kill in (40, 70):
        check(
            tmp_path / str(kill),
            lambda: DataLoader(Augmented(), 2, shuffle=True),  # one metric update takes 32 batches
            kill,
            val=plain(),
            fit={"lr": 0.05},
            train_metrics=metrics(),
            metrics=metrics(),
        )


def test_a_metric_in_float32_sums_in_the_same_order(tmp_path):
    class Regression(Trainer):
        def training_step(self, batch):
            output = super().training_step(batch)
            return output._replace(outputs=output.outputs[:, 0], targets=output.targets.float())

    def go(name, kill, resume):
        trainer = build(tmp_path / name, kill, train_metrics=MeanSquaredError())
        trainer.__class__ = Regression
        trainer.fit(DataLoader(Augmented(), 2, shuffle=True), epochs=1, resume=resume)
        return trainer.history.rows[0]["train/meansquarederror"]

    whole = go("whole", None, None)
    with pytest.raises(KilledError):
        go("broken", 40, None)
    assert go("broken", None, "auto") == whole


@pytest.mark.parametrize("kind", ["ExponentialLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"])
def test_torch_schedulers(tmp_path, kind):
    schedulers = torch.optim.lr_scheduler

    def make(trainer):
        if kind == "ExponentialLR":
            return schedulers.ExponentialLR(trainer.optimizer, 0.9)
        if kind == "OneCycleLR":
            return schedulers.OneCycleLR(trainer.optimizer, 0.1, total_steps=18)
        if kind == "ReduceLROnPlateau":
            return schedulers.ReduceLROnPlateau(trainer.optimizer, patience=0, threshold=0.5)
        parts = [schedulers.ConstantLR(trainer.optimizer, 0.5, 3), schedulers.ExponentialLR(trainer.optimizer, 0.9)]
        return schedulers.SequentialLR(trainer.optimizer, parts, [3])

    every = "epoch" if kind == "ReduceLROnPlateau" else "step"
    check(tmp_path, plain(), 8, val=plain(), fit={"schedule": make, "schedule_every": every})


def test_generators_and_counters_of_the_data_set(tmp_path):
    def data():
        loader = DataLoader(Augmented(), 16, shuffle=True, generator=torch.Generator().manual_seed(11))
        loader.dataset.uses_own = True
        return loader

    check(tmp_path, data, 8)


def test_from_a_checkpoint_several_steps_before_the_interruption(tmp_path):
    check(tmp_path, plain(), 11, every=4)


def test_killed_several_times(tmp_path):
    check(tmp_path, plain(), 4, again=9, val=plain())


def test_a_list_of_batches_and_an_iterator(tmp_path):
    batches = [
        (inputs[None].repeat(4, 1) + i, torch.tensor([0, 1, 0, 1])) for i, inputs in enumerate(Augmented().inputs)
    ]
    check(tmp_path / "list", lambda: batches, 40, fit={}, epochs=1)
    check(tmp_path / "iterator", lambda: iter(batches), 40, fit={}, epochs=1)


def test_data_in_an_unknown_order_are_reported(tmp_path):
    class Entropy(IterableDataset):
        def __iter__(self):
            own = np.random.Generator(np.random.PCG64())  # the operating system seeds it
            for _ in range(60):
                yield torch.from_numpy(own.standard_normal(8)).float(), int(own.integers(2))

    def data():
        return DataLoader(Entropy(), 10)

    check(tmp_path, data, 3, fit={"steps_per_epoch": 6}, expect_warning="can't go on exactly: batch 3")


def test_data_with_fewer_batches_than_before(tmp_path):
    with pytest.raises(KilledError):
        build(tmp_path, 8).fit(DataLoader(Stream(), 4), epochs=1, steps_per_epoch=20)
    trainer = build(tmp_path)
    short = [(torch.ones(4, 8), torch.tensor([0, 1, 0, 1]))] * 3
    with pytest.raises(CheckpointError, match=r"batches is 3 here, None there"):
        trainer.fit(short, epochs=1, steps_per_epoch=20, resume="auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": torch.optim.Adam}, "optimizer is 'Adam' here, 'SGD' there"),
        ({"precision": "bf16"}, "precision is 'bf16' here, 'fp32' there"),
        ({"accumulate": 2}, "accumulate is 2 here, 1 there"),
        ({"batch": 8}, "batches is 12 here, 6 there"),
        ({"count": 89}, "samples is 89 here, 90 there"),
        ({"schedule": "constant"}, "schedule is .Constant.* here, .OneCycle"),
        ({"epochs": 4}, r"total_steps=24.*total_steps=18"),
        ({"lr": 0.1}, "lr is 0.1 here, 0.05 there; lr='keep'"),
        ({"momentum": 0.8}, "momentum 0.8 here, 0.9 there, in group 1"),
        ({"width": 17}, "another model: it has the shapes"),
        ({"groups": 1}, "parameter groups is 1 here, 2 there"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:The optimizer leaves out trainable parameters:UserWarning")
def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path, change, message):
    with pytest.raises(KilledError):
        build(tmp_path, 8).fit(plain()(), epochs=3, lr=0.05, schedule="one_cycle")
    options = {key: value for key, value in change.items() if key in ("optimizer", "precision", "accumulate")}
    trainer = build(tmp_path, **options)
    if "width" in change:
        trainer.model[5] = nn.Linear(16, 3)
    if "momentum" in change:
        trainer.optimizer.param_groups[1]["momentum"] = change["momentum"]
    if "groups" in change:
        del trainer.optimizer.param_groups[1]
    data = DataLoader(Augmented(change.get("count", 90)), change.get("batch", 16), shuffle=True)
    fit = {"epochs": 3, "lr": 0.05, "schedule": "one_cycle"}
    fit |= {key: value for key, value in change.items() if key in fit}
    seed_everything(5)
    before = everything(trainer)
    seed_everything(5)
    with pytest.raises(CheckpointError, match=message):
        trainer.fit(data, resume="auto", **fit)
    assert_same(before, everything(trainer))
    assert trainer.optimizer.schedule is None


def test_a_change_of_a_minor_setting_is_reported(tmp_path):
    with pytest.raises(KilledError):
        build(tmp_path, 8).fit(plain()(), epochs=3)
    with pytest.warns(UserWarning, match="go") as told:
        build(tmp_path).fit(plain(num_workers=1)(), epochs=3, resume="auto")
    assert "not bit for bit" in str(told[0].message)
    assert "num_workers is 1, was 0" in str(told[0].message)
    assert "batch 2 of train_data is not the one that the run saw" in str(told[1].message)


def test_more_epochs_than_before(tmp_path):
    whole = build(tmp_path / "whole")
    whole.fit(plain()(), epochs=4, lr=0.05)
    expected = everything(whole)
    first = build(tmp_path / "two")
    first.fit(plain()(), epochs=2, lr=0.05)
    second = build(tmp_path / "two")
    second.fit(plain()(), epochs=4, lr=0.05, resume="auto")
    assert_same(expected, everything(second))


def test_a_complete_run_is_not_continued(tmp_path):
    first = build(tmp_path)
    first.fit(plain()(), epochs=2)
    second = build(tmp_path)
    history = second.fit(plain()(), epochs=2, resume="auto")
    assert_same(everything(first) | {"python": 0, "numpy": 0}, everything(second) | {"python": 0, "numpy": 0})
    assert len(history) == 2


@pytest.mark.parametrize("kill", [3, 12, 15, 20])
def test_a_script_of_two_runs(tmp_path, kill):
    """The same script is started again; a run that is complete is skipped."""

    def script(name, kill):
        trainer = build(tmp_path / name, kill)
        trainer.fit(plain()(), epochs=2, lr=0.05, resume="auto")
        trainer.fit(plain()(), epochs=2, lr=0.01, schedule="one_cycle", resume="auto")
        return everything(trainer)

    whole = script("whole", None)
    with pytest.raises(KilledError):
        script("broken", kill)
    assert_same(whole, script("broken", None))


@pytest.mark.parametrize("ordinal", ["1", None])
def test_a_run_without_a_number_is_damaged(tmp_path, ordinal):
    """It is not taken for one of an earlier call, after which the run would begin."""
    build(tmp_path).fit(plain()())
    path, content = Checkpoint(tmp_path).newest()
    content["run"]["ordinal"] = ordinal
    file.write(path, content)
    with pytest.raises(CheckpointError, match="position in the run is malformed"):
        build(tmp_path).fit(plain()(), resume="auto")


def test_a_path(tmp_path):
    whole = build(tmp_path / "whole")
    whole.fit(plain()(), epochs=2)
    expected = everything(whole)
    with pytest.raises(KilledError):
        build(tmp_path / "broken", 8).fit(plain()(), epochs=2)
    other = build(tmp_path / "other")
    other.fit(plain()(), epochs=2, resume=tmp_path / "broken" / "last.ckpt")
    assert_same(expected, everything(other))


def test_a_stopped_run_is_not_continued(tmp_path):
    class Stop(Callback):
        def on_epoch_complete(self, trainer, row):
            trainer.stop()

    build(tmp_path, callbacks=[Stop()]).fit(plain()(), epochs=5)
    again = build(tmp_path)
    assert len(again.fit(plain()(), epochs=5, resume="auto")) == 1


def test_requires_grad_is_restored(tmp_path):
    class Freeze(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 1:
                trainer.model[0].requires_grad_(False)

    check(tmp_path, plain(), 9, callbacks=[Freeze()])
    with pytest.raises(KilledError):
        build(tmp_path / "frozen", 9, callbacks=[Freeze()]).fit(plain()(), epochs=3)
    again = build(tmp_path / "frozen")
    again.fit(plain()(), epochs=3, resume="auto")
    assert not again.model[0].weight.requires_grad


def test_a_missing_callback_is_reported(tmp_path):
    with pytest.raises(KilledError):
        build(tmp_path, 8).fit(plain()(), epochs=3)
    trainer = build(tmp_path)
    trainer.callbacks.callbacks = [one for one in trainer.callbacks.callbacks if not isinstance(one, Average)]
    with pytest.warns(UserWarning, match="Average has a state in the checkpoint"):
        trainer.fit(plain()(), epochs=3, resume="auto")


def test_arguments(tmp_path, make, net, loader):
    with pytest.raises(ValueError, match="no callback is a Checkpoint"):
        make(net).fit(loader, resume="auto")
    with pytest.raises(TypeError, match="resume: got 3"):
        make(net).fit(loader, resume=3)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        make(net).fit(loader, resume=tmp_path / "absent.ckpt")
    trainer = make(net)
    trainer.save(tmp_path / "between.ckpt")
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        trainer.fit(loader, resume=tmp_path / "between.ckpt")


def test_an_ordinary_run_gives_no_warning(tmp_path, two_moons):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DataLoader(TensorDataset(*two_moons.tensors), 32, shuffle=True, num_workers=1)
        build(tmp_path).fit(data, epochs=1, resume="auto")


class KilledInValidation(Callback):
    def __init__(self, step):
        self.at = step

    def on_evaluate_start(self, trainer):
        if trainer.step == self.at:
            raise KilledError


class WithoutLength(StatefulStream):
    def __len__(self):
        raise TypeError("a stream has no length")


def test_a_stream_with_an_incomplete_window_interrupted_in_validation(tmp_path):
    """15 batches in windows of 4: the last window has 3 batches, so the stream has ended before the last step."""

    def go(name, *, dies=False, resume=None):
        trainer = build(tmp_path / name, accumulate=4, callbacks=[KilledInValidation(8)] if dies else [])
        seed_everything(5)
        trainer.fit(StatefulDataLoader(WithoutLength(), 16), plain()(), epochs=3, lr=0.05, resume=resume)
        return everything(trainer)

    whole = go("whole")
    with pytest.raises(KilledError):
        go("broken", dies=True)
    assert_same(whole, go("broken", resume="auto"))


@pytest.mark.parametrize("kill", [4, 6, 12])
def test_a_loader_around_a_loader_with_persistent_workers(tmp_path, kill):
    check(tmp_path, lambda: Around(plain(num_workers=1, persistent_workers=True)()), kill)


def test_a_sampler_that_shuffles_in_place(tmp_path):
    for kill in (5, 6, 8):
        check(tmp_path / str(kill), lambda: DataLoader(Noisy(), 40, sampler=InPlace()), kill)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sampler_that_draws_between_the_batches_is_reported(tmp_path, workers):
    check(
        tmp_path,
        lambda: DataLoader(Noisy(), 16, sampler=Lazy(), num_workers=workers),
        5,
        expect_warning=r"can't be told: train_data's sampler draws .* global generator \(torch\)",
    )
