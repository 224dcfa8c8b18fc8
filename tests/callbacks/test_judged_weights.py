"""One set of weights is judged, kept, saved, loaded, exported."""

from __future__ import annotations

import itertools

import pytest
import schedulefree
import torch
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import Callback, ScheduledOptim, Trainer, exporting
from mxtorch.callbacks import EMA, SWA, BestWeights, Checkpoint, EarlyStopping


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def spoilt(step):
    """A rate that learns, then spoils: the best epoch is not the last one."""
    return 1.0 if step < 24 else 30.0


AVERAGING = {
    "none": lambda loader: [],
    "ema": lambda loader: [EMA(0.9)],
    "slow ema": lambda loader: [EMA(0.99)],
    "swa": lambda loader: [SWA(loader, start=0.3)],
    "swa from the start": lambda loader: [SWA(loader, start=0.0)],
    "both": lambda loader: [EMA(0.9), SWA(loader, start=0.5)],
}
FOLLOWERS = {
    "best": lambda folder: [BestWeights()],
    "checkpoint": lambda folder: [Checkpoint(folder)],
    "best and checkpoint": lambda folder: [BestWeights(), Checkpoint(folder)],
    "best, checkpoint in mid-epoch": lambda folder: [BestWeights(), Checkpoint(folder, every=5)],
}


def trainer_of(net, callbacks, **options):
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False, **options)


@pytest.fixture
def shuffled(two_moons):
    return DataLoader(two_moons, batch_size=32, shuffle=True)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("follower", FOLLOWERS)
@pytest.mark.parametrize("averaging", AVERAGING)
def test_what_is_judged_is_kept_saved_and_used(shuffled, tmp_path, averaging, follower, order):
    callbacks = [*AVERAGING[averaging](shuffled), *FOLLOWERS[follower](tmp_path)]
    trainer = trainer_of(network(), callbacks[::-1] if order else callbacks)
    history = trainer.fit(shuffled, shuffled, epochs=6, schedule=spoilt)
    losses = history["val/loss"]
    kept = min(losses) if "best" in follower else losses[-1]
    evaluated = trainer.evaluate(shuffled)["val/loss"]
    assert evaluated == pytest.approx(kept, rel=1e-4)
    outputs = trainer.predict(list(shuffled))
    with torch.no_grad():
        trainer.model.eval()
        assert len(outputs) == 256
        inputs = torch.stack([shuffled.dataset[i][0] for i in range(256)])
        expected = trainer.model(inputs)
    assert torch.equal(trainer.predict([inputs]), expected)
    path = trainer.export(tmp_path / "net.safetensors", example=inputs[:4])
    rows = exporting.load(path, model=network()).predict(inputs[:4])
    found = torch.tensor([list(row["probabilities"].values()) for row in rows])
    assert torch.allclose(found, expected[:4].softmax(1), atol=1e-5)
    if "checkpoint" in follower:
        for name, right in (("best", min(losses)), ("last", kept)):
            other = trainer_of(network(), [])
            other.model.load_state_dict(torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["model"])
            assert other.evaluate(shuffled)["val/loss"] == pytest.approx(right, rel=1e-4)
            loaded = trainer_of(network(), AVERAGING[averaging](shuffled))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *args, **options: None)
                loaded.optimizer.schedule = spoilt
                loaded.load(tmp_path / f"{name}.ckpt")
            assert loaded.evaluate(shuffled)["val/loss"] == pytest.approx(right, rel=1e-4)


class Kill(Callback):
    def __init__(self, step=None, validation=None):
        self.step, self.validation = step, validation

    def on_step(self, trainer):
        if trainer.step == self.step:
            raise MemoryError("killed")

    def on_evaluate_start(self, trainer):
        if trainer.run.epoch == self.validation:
            raise MemoryError("killed")


@pytest.mark.parametrize("killed", [{"step": 13}, {"step": 29}, {"step": 45}, {"validation": 2}, {"validation": 4}])
@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize("every", [3, "epoch"])
def test_a_resumed_run_ends_as_one_that_was_never_killed(shuffled, tmp_path, averaging, killed, every):
    def fit(folder, *others):
        torch.manual_seed(0)
        callbacks = [*AVERAGING[averaging](shuffled), BestWeights(), Checkpoint(folder, every=every), *others]
        trainer = trainer_of(network(), callbacks)
        trainer.fit(shuffled, shuffled, epochs=6, schedule=spoilt, resume="auto")
        return trainer

    whole = fit(tmp_path / "whole")
    with pytest.raises(MemoryError):
        fit(tmp_path / "parts", Kill(**killed))
    parts = fit(tmp_path / "parts")
    assert parts.history["val/loss"] == whole.history["val/loss"]
    for one, other in zip(parts.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    one, other = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["run"]["trained_weights"]
        for name in ("whole", "parts")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("averaging", ["ema", "swa from the start"])
def test_averages_leave_the_training_as_it_was(shuffled, averaging):
    def trained(callbacks):
        torch.manual_seed(0)
        seen = []

        class See(Callback):
            def on_epoch_complete(self, trainer, row):
                seen.append(trainer.model[0].weight.detach().clone())

        trainer_of(network(), [*callbacks, See()]).fit(shuffled, shuffled, epochs=3)
        return torch.stack(seen)

    assert torch.equal(trained([]), trained(AVERAGING[averaging](shuffled)))


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_a_weight_that_the_user_changes_afterwards_is_what_is_evaluated(shuffled, averaging):
    trainer = trainer_of(network(), [*AVERAGING[averaging](shuffled), BestWeights()])
    trainer.fit(shuffled, shuffled, epochs=4)
    for parameter in trainer.model.parameters():
        nn.init.zeros_(parameter)
    assert trainer.evaluate(shuffled)["val/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert not trainer.predict(shuffled).any()


def test_within_a_fit_everything_sees_the_weights_that_are_judged(shuffled, tmp_path):
    batch = [next(iter(shuffled))[0]]

    class Look(Callback):
        def on_epoch_complete(self, trainer, row):
            trained = trainer.model[0].weight.detach().clone()
            evaluated = trainer.evaluate(shuffled)["val/loss"]
            assert evaluated == pytest.approx(row["val/loss"], rel=1e-4)
            predicted = trainer.predict(batch)
            rows = trainer.export(tmp_path / "x.safetensors", example=batch[0])
            (row, *_) = exporting.load(rows, model=network()).predict(batch[0])
            assert list(row["probabilities"].values()) == pytest.approx(predicted[0].softmax(0).tolist(), abs=1e-5)
            with trainer.judged_weights() as aside:
                assert torch.equal(aside["0.weight"], trained)
                assert not torch.equal(trainer.model[0].weight, trained)
            assert torch.equal(trainer.model[0].weight, trained)

    trainer_of(network(), [EMA(0.9), Look()]).fit(shuffled, shuffled, epochs=2)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_is_broken_off_leaves_what_was_best(shuffled, error):
    class Fail(Callback):
        def on_epoch_start(self, trainer):
            if trainer.run.epoch == 5:
                raise error

    trainer = trainer_of(network(), [EMA(0.9), BestWeights(), Fail()])
    with pytest.raises(error):
        trainer.fit(shuffled, shuffled, epochs=6, schedule=spoilt)
    assert trainer.evaluate(shuffled)["val/loss"] == pytest.approx(min(trainer.history["val/loss"]), rel=1e-4)


def test_a_second_fit_begins_its_average_afresh_also_after_a_resume(shuffled, tmp_path):
    def script(folder, *others):
        torch.manual_seed(0)
        trainer = trainer_of(network(), [EMA(0.9), BestWeights(), Checkpoint(folder, every=3), *others])
        for _ in range(2):
            trainer.fit(shuffled, shuffled, epochs=2, resume="auto")
        return trainer.model[0].weight.detach().clone()

    whole = script(tmp_path / "whole")
    with pytest.raises(MemoryError):
        script(tmp_path / "parts", Kill(step=10))
    assert torch.equal(whole, script(tmp_path / "parts"))


# ---------------------------------------------------------------- SWA's data


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, pixels, mask=None):
        return self.net(pixels)


@pytest.mark.parametrize(
    ("net", "pack"),
    [
        (Named, lambda x, y: {"pixels": x, "labels": y}),
        (Named, lambda x, y: {"pixels": x, "mask": x, "label": y}),
        (Named, lambda x, y: (x, x, y)),
        (network, lambda x, y: [x, y]),
    ],
)
def test_swa_takes_the_batches_that_fit_takes(two_moons, net, pack):
    batches = [pack(*batch) for batch in DataLoader(two_moons, 32)]
    trainer = trainer_of(net(), [SWA(batches, start=0.0)])
    history = trainer.fit(batches, batches, epochs=2)
    assert trainer.evaluate(batches)["val/loss"] == pytest.approx(history["val/loss"][-1], rel=1e-5)


@pytest.mark.parametrize("batch", [{"wrong": torch.ones(2, 8)}, (torch.ones(2, 3), torch.ones(2)), 3.0, []])
def test_swa_says_before_the_training_that_it_can_not_take_a_batch(shuffled, batch):
    trainer = trainer_of(network(), [SWA([batch])])
    with pytest.raises(ValueError, match="train_data: SWA computes the statistics"):
        trainer.fit(shuffled, epochs=2)
    assert trainer.step == 0


# ---------------------------------------------------------------- losses that are modules


class NoisyLoss(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(self.noise(outputs), targets)


@pytest.mark.parametrize(
    "noise",
    [
        nn.Dropout(0.9),
        nn.BatchNorm1d(2),
        nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, affine=False)),
        nn.AlphaDropout(0.5),
        nn.RReLU(),
        nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.Dropout(0.5)).eval(),
    ],
)
@pytest.mark.filterwarnings("ignore:The optimizer leaves out")
def test_a_loss_that_is_a_module_is_evaluated_in_evaluation_mode(shuffled, noise):
    loss, net = NoisyLoss(noise), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = Trainer(net, loss, optimizer, device="cpu", progress=False)
    modes = [module.training for module in loss.modules()]
    data = list(shuffled)
    before = [buffer.clone() for buffer in loss.buffers()]
    assert trainer.evaluate(data) == trainer.evaluate(data)
    assert all(torch.equal(one, other) for one, other in zip(before, loss.buffers(), strict=True))
    assert [module.training for module in loss.modules()] == modes
    trainer.fit(data, data, epochs=1)
    assert [module.training for module in loss.modules()] == modes


# ---------------------------------------------------------------- the end of a run is said


def printed(capsys, callbacks, loader, schedule=spoilt, **options):
    net = network()
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), callbacks=callbacks, device="cpu"
    )
    trainer.fit(loader, loader, epochs=8, schedule=schedule, **options)
    return [line for line in capsys.readouterr().out.splitlines() if "epoch " in line and "The model has" in line]


def test_the_line_at_the_end_names_the_best_epoch_and_the_weights(capsys, shuffled):
    (line,) = printed(capsys, [EarlyStopping(patience=2)], shuffled)
    assert "EarlyStopping ended the run after epoch" in line
    assert "The model has the weights of epoch" in line
    stopping, best = EarlyStopping(patience=2), BestWeights()
    (line,) = printed(capsys, [stopping, best], shuffled)
    assert f"The model has the weights of epoch {best.best_epoch}, the best by val/loss." in line
    assert f"of epoch {stopping.best_epoch}" in line
    (line,) = printed(capsys, [EMA(0.9), EarlyStopping(patience=2, min_delta=10.0)], shuffled)
    assert "The model has the average of EMA." in line
    assert printed(capsys, [EMA(0.9)], shuffled) == []


@pytest.mark.parametrize(("patience", "epochs"), list(itertools.product((2, 4), (8, 12))))
def test_a_run_that_was_stopped_early_goes_on_with_more_patience(shuffled, tmp_path, capsys, patience, epochs):
    def fit(patience, epochs):
        torch.manual_seed(0)
        stopping = EarlyStopping(patience=patience, min_delta=10.0)
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        callbacks = [stopping, BestWeights(), Checkpoint(tmp_path)]
        trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu")
        trainer.fit(shuffled, shuffled, epochs=epochs, resume="auto")
        return trainer

    assert fit(2, 8).epoch == 3
    capsys.readouterr()
    assert fit(patience, epochs).epoch == 1 + patience
    assert f"EarlyStopping ended the run after epoch {1 + patience}" in capsys.readouterr().out


# ---------------------------------------------------------------- Schedule-Free, which is judged at another point

SCHEDULE_FREE = [
    schedulefree.SGDScheduleFree,
    schedulefree.AdamWScheduleFree,
    schedulefree.RAdamScheduleFree,
    schedulefree.AdamWScheduleFreeReference,
]


def schedule_free_trainer(kind, callbacks):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return Trainer(
        net,
        nn.CrossEntropyLoss(),
        kind(net.parameters(), lr=0.05),
        callbacks=callbacks,
        device="cpu",
        progress=False,
    )


class Spoil(Callback):
    """Makes later epochs worse."""

    def on_epoch_start(self, trainer):
        if trainer.run.epoch >= 3:
            trainer.optimizer.set_learning_rate(20.0)


@pytest.mark.parametrize("kind", SCHEDULE_FREE)
@pytest.mark.parametrize("best", [False, True])
def test_schedule_free_weights_are_judged_kept_and_saved(shuffled, tmp_path, kind, best):
    callbacks = [Spoil(), *([BestWeights()] if best else []), Checkpoint(tmp_path)]
    trainer = schedule_free_trainer(kind, callbacks)
    losses = trainer.fit(shuffled, shuffled, epochs=5)["val/loss"]
    kept = min(losses) if best else losses[-1]
    assert trainer.evaluate(shuffled)["val/loss"] == pytest.approx(kept, rel=1e-4)
    for name, right in (("best", min(losses)), ("last", kept)):
        other = schedule_free_trainer(kind, [])
        other.load(tmp_path / f"{name}.ckpt")
        assert other.evaluate(shuffled)["val/loss"] == pytest.approx(right, rel=1e-4)
        other.model.load_state_dict(torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["model"])
        assert other.evaluate(shuffled)["val/loss"] == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("kind", SCHEDULE_FREE)
@pytest.mark.parametrize("killed", [{"step": 13}, {"validation": 2}, {"step": 37}])
def test_schedule_free_is_resumed_bit_for_bit(shuffled, tmp_path, kind, killed):
    def fit(folder, *others):
        trainer = schedule_free_trainer(kind, [BestWeights(), Checkpoint(folder, every=3), *others])
        trainer.fit(shuffled, shuffled, epochs=6, resume="auto")
        return trainer

    whole = fit(tmp_path / "whole")
    with pytest.raises(MemoryError):
        fit(tmp_path / "parts", Kill(**killed))
    parts = fit(tmp_path / "parts")
    assert parts.history["val/loss"] == whole.history["val/loss"]
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
