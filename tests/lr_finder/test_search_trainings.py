"""What the short trainings of a search are: their rates, schedules and lengths, precisions and optimizers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from searched import make_network, make_own
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import Trainer, schedules


class Watching(Trainer):
    """Writes down the rates of each step."""

    def training_step(self, batch):
        self.seen.append(self.optimizer.learning_rates)
        return super().training_step(batch)

    def evaluation_step(self, batch):
        return super().evaluation_step(batch)


def watched(network, groups=None, **options):
    optimizer = torch.optim.SGD(groups or network.parameters(), lr=0.1, momentum=0.9)
    trainer = Watching(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, **options)
    trainer.seen = Unrestored()
    return trainer


SEEN = []


class Unrestored:
    """A list of this module, which find_lr does not put back."""

    def __init__(self):
        SEEN.clear()

    @property
    def items(self):
        return SEEN

    def append(self, item):
        self.items.append(item)


def by_trial(found, seen):
    """The rates of each training, without those of trainings that were given up."""
    steps = [trial.steps for trial in found.trials]
    assert len(seen) == sum(steps)
    return [[seen.pop(0) for _ in range(count)] for count in steps]


def halving(step):
    return 0.5 ** (step / 100)


@pytest.mark.parametrize(
    "schedule",
    ["constant", "one_cycle", schedules.OneCycle(), schedules.WarmupCosine(warmup_steps=20), halving],
    ids=lambda schedule: getattr(schedule, "__name__", str(schedule)),
)
def test_every_training_runs_the_schedule_squeezed(network, train_data, val_data, schedule):
    trainer = watched(network)
    found = trainer.find_lr(
        train_data, val_data, schedule=schedule, training_steps=200, num_steps=300, start_lr=1e-4, end_lr=0.3
    )
    whole = schedule if callable(schedule) and not isinstance(schedule, schedules.Schedule) else schedules.get(schedule)
    whole = whole.for_steps(200) if isinstance(whole, schedules.Schedule) else whole
    for trial, rates in zip(found.trials, by_trial(found, trainer.seen.items), strict=True):
        multipliers = [rate / trial.rate for (rate,) in rates]
        assert multipliers[0] == pytest.approx(whole(0))
        if trial.steps > 1:
            assert multipliers[-1] == pytest.approx(whole(199))
        if trial.steps > 5:
            places = np.linspace(0, 199, trial.steps).round().astype(int)
            assert multipliers == pytest.approx([whole(int(place)) for place in places], rel=1e-6)


def test_a_training_of_whole_length_is_the_training_itself(make, train_data, val_data):
    found = make(make_network()).find_lr(train_data, val_data, schedule="one_cycle", epochs=1, num_steps=500)
    trial = found.trials[-1]
    assert trial.steps == 24
    trainer = make(make_network())
    trainer.fit(train_data, epochs=1, lr=trial.rate, schedule="one_cycle")
    assert trainer.evaluate(val_data)["val/loss"] == pytest.approx(trial.loss, rel=1e-5)


def test_ratios_between_groups_are_kept(network, train_data, val_data):
    groups = [{"params": network[0].parameters(), "lr": 0.1}, {"params": network[1:].parameters(), "lr": 0.01}]
    trainer = watched(network, groups)
    found = trainer.find_lr(train_data, val_data, num_steps=100, end_lr=0.1)
    for trial, rates in zip(found.trials, by_trial(found, trainer.seen.items), strict=True):
        assert rates == [[pytest.approx(trial.rate), pytest.approx(trial.rate / 10)]] * trial.steps
    trainer.seen.items.clear()
    swept = trainer.find_lr(train_data, method="sweep", num_steps=20)
    assert [first for first, _ in trainer.seen.items] == pytest.approx(swept.rates)
    assert [second / first for first, second in trainer.seen.items] == pytest.approx([0.1] * 20)


@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_one_optimizer_step_a_window_with_accumulation(network, train_data, val_data, method):
    trainer = watched(network, accumulate=4)
    found = trainer.find_lr(train_data, val_data, method=method, num_steps=40, end_lr=0.01)
    steps = [trial.rate for trial in found.trials for _ in range(trial.steps)] if method == "trials" else found.rates
    assert len(steps) > 20
    assert [rate for (rate,) in trainer.seen.items] == pytest.approx([rate for rate in steps for _ in range(4)])


def test_the_length_of_the_training_with_accumulation(make, network, train_data):
    found = make(network, accumulate=5).find_lr(train_data, epochs=3, num_steps=60)
    assert found.training_steps == 15


@pytest.mark.parametrize("num_steps", [60, 150, 700])
@pytest.mark.parametrize("with_val_data", [True, False])
def test_what_it_costs(network, blobs, num_steps, with_val_data):
    """No more steps than were given, and judging costs less than training."""
    passed, trained = [], []
    network.register_forward_hook(lambda *_: passed.append(1) if not torch.is_grad_enabled() else None)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: trained.append(1))
    trainer = Trainer(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    data = DataLoader(blobs, 16, shuffle=True)
    found = trainer.find_lr(data, DataLoader(blobs, 16) if with_val_data else None, num_steps=num_steps)
    assert len(trained) <= sum(trial.steps for trial in found.trials) <= num_steps
    assert len(passed) <= num_steps, "a pass costs a third of a step"


def test_rates_that_diverge_are_given_up(make, train_data, val_data):
    """Without normalisation the highest rates end in numbers that are not finite."""
    network = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    found = make(network, nn.MSELoss()).find_lr(
        [(x, nn.functional.one_hot(y, 4).float()) for x, y in train_data], training_steps=100, num_steps=600
    )
    assert any(trial.loss == math.inf for trial in found.trials)
    assert all(not math.isnan(trial.loss) for trial in found.trials)
    best = min(found.trials, key=lambda trial: trial.loss)
    assert found.suggestion <= best.rate * 3.2


def test_half_precision(make, network, train_data, val_data):
    for precision in ("fp16", "bf16"):
        found = make(network, precision=precision).find_lr(train_data, val_data, epochs=1, num_steps=150)
        assert found.trials[-1].loss < found.trials[-1].loss_before


def test_a_step_that_fp16_skips_in_a_range_test_is_tried_again(make, network, train_data):
    trainer = make(network, precision="fp16")
    trainer.engine.load_state_dict({**trainer.engine.state_dict(), "scale": 2.0**40})
    found = trainer.find_lr(train_data, method="sweep", start_lr=1e-5, end_lr=1e-3, num_steps=30)
    assert len(found.rates) == 30
    assert trainer.engine.state_dict()["scale"] == 2.0**40


def test_a_loss_that_is_not_finite_ends_a_range_test(network, train_data):
    losses = iter([*[1.0] * 25, float("nan")])

    class Breaking(Trainer):
        def training_step(self, batch):
            return super().training_step(batch).loss * next(losses)

        def evaluation_step(self, batch):
            return super().evaluation_step(batch)

    trainer = make_own(Breaking, network, nn.CrossEntropyLoss())
    found = trainer.find_lr(train_data, method="sweep", end_lr=1e-3, num_steps=60)
    assert found.stop_reason == "non_finite"
    assert len(found.losses) == len(found.rates) == 25


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.LBFGS])
def test_other_optimizers(train_data, val_data, kind):
    network = make_network()
    trainer = Trainer(network, nn.CrossEntropyLoss(), kind(network.parameters(), lr=0.7), device="cpu", progress=False)
    found = trainer.find_lr(train_data, val_data, epochs=1, num_steps=60)
    assert found.trials[-1].loss < found.trials[-1].loss_before


def test_the_optimizers_own_rate_does_not_matter(make, train_data, val_data):
    first, second = (
        make(make_network(), lr=lr).find_lr(train_data, val_data, epochs=1, num_steps=100) for lr in (1e-6, 3.0)
    )
    assert [trial.loss for trial in first.trials] == pytest.approx([trial.loss for trial in second.trials], rel=1e-5)


def test_watch_is_what_is_judged(make, network, train_data, val_data):
    values = iter(range(10_000, 0, -1))
    found = make(network).find_lr(train_data, val_data, watch=lambda: float(next(values)), num_steps=60)
    assert all(trial.loss < trial.loss_before for trial in found.trials)
    assert [trial.loss for trial in found.trials] == sorted([trial.loss for trial in found.trials], reverse=True)
    assert found.trials[0].loss > 9_900
