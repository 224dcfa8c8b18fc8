"""The search as a user sees it: through `Trainer.find_lr`."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from mxtorch import Trainer, schedules
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.lr_finder import budget
from mxtorch.lr_finder.runner import SearchRunner
from mxtorch.training.supervised import StepOutput


@pytest.fixture
def blobs():
    """Four classes of points around centres of their own, some of them mislabelled."""
    torch.manual_seed(4)
    labels = torch.randint(4, (512,))
    inputs = torch.randn(512, 8) + 1.5 * torch.randn(4, 8)[labels]
    labels = torch.where(torch.rand(512) < 0.1, labels.roll(1), labels)
    return TensorDataset(inputs, labels)


@pytest.fixture
def train_data(blobs):
    return DataLoader(Subset(blobs, range(384)), 16, shuffle=True)


@pytest.fixture
def val_data(blobs):
    return DataLoader(Subset(blobs, range(384, 512)), 32)


@pytest.fixture
def network():
    return make_network()


def make_network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4))


def make_own(kind, network, loss=None, **options):
    """A trainer of a class of one's own."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return kind(network, loss, optimizer, device="cpu", progress=False, **options)


@pytest.fixture
def quick(monkeypatch):
    """Lets a search without a budget take 300 steps, as if each took ten milliseconds."""
    numbers = dataclasses.replace(budget.NUMBERS, seconds=3.0)
    monkeypatch.setattr(budget, "NUMBERS", numbers)
    measured = SearchRunner.seconds_per_step

    def seconds_per_step(runner, rate):
        assert measured(runner, rate) > 0
        return 0.01

    monkeypatch.setattr(SearchRunner, "seconds_per_step", seconds_per_step)


# ---------------------------------------------------------------- no trace, and the same again


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


# ---------------------------------------------------------------- what it says


def test_whole_trainings_that_are_judged_by_held_out_samples_are_ok(make, train_data, val_data):
    trainer = make(make_network())
    found = trainer.find_lr(train_data, val_data, epochs=2, num_steps=600)
    assert found.status == "ok", found
    assert found.training_steps == found.trials[-1].steps == 48
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


# ---------------------------------------------------------------- what is trained


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


# ---------------------------------------------------------------- what it is judged by


class Own(Trainer):
    """A training step of one's own, and no evaluation step."""

    def training_step(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.model(inputs), labels)


def test_a_training_step_of_ones_own_alone_is_judged_by_itself(make, train_data, val_data):
    own = make_own(Own, make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert own.note == ""
    assert "training losses" not in own.advice
    usual = make(make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert own.trials == usual.trials, "it computes what the usual steps compute"


def test_a_training_step_that_needs_gradients_is_judged_by_training_losses(train_data, val_data):
    class Penalised(Own):
        def training_step(self, batch):
            loss = super().training_step(batch)
            first = self.model[0].weight
            return loss + torch.autograd.grad(loss, first, create_graph=True)[0].square().sum()

    found = make_own(Penalised, make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert "training_step can't be run without gradients (RuntimeError" in found.note
    assert found.note in str(found)
    assert found.status == "guess"
    assert "only training losses" in found.advice
    assert found.suggestion is not None


def test_a_step_that_runs_out_of_memory_is_no_step_that_needs_gradients(train_data, val_data):
    class Full(Own):
        def training_step(self, batch):
            if not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(batch)

    with pytest.raises(torch.OutOfMemoryError, match="batch of 32 samples"):
        make_own(Full, make_network()).find_lr(train_data, val_data, num_steps=100)


def test_an_evaluation_step_for_metrics_alone(network, train_data, val_data):
    class ForMetrics(Trainer):
        def evaluation_step(self, batch):
            return StepOutput(None, self.model(batch[0]), batch[1])

    found = make_own(ForMetrics, network, nn.CrossEntropyLoss()).find_lr(train_data, val_data, num_steps=100)
    assert "evaluation_step gives no loss" in found.note
    assert "only training losses" in found.advice


def test_an_evaluation_step_whose_outputs_do_not_suit_the_loss(network, train_data, val_data):
    class Deciding(Trainer):
        def evaluation_step(self, batch):
            outputs = self.model(batch[0])
            return StepOutput(self.loss(outputs, batch[1]), outputs.argmax(1), batch[1])

    found = make_own(Deciding, network, nn.CrossEntropyLoss()).find_lr(train_data, val_data, epochs=2, num_steps=600)
    assert found.status == "ok"


def sorted_batches(blobs):
    order = blobs.tensors[1].argsort()
    return list(zip(*[tensor[order].split(16) for tensor in blobs.tensors], strict=True))


class Stream(IterableDataset):
    """Samples in their order, without a length."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter([self.samples[index] for index in range(len(self.samples))])


def test_validation_data_of_any_kind_that_are_sorted_by_class(make, blobs, train_data):
    """Batches of one class, through batch normalisation by their own statistics, would say nothing."""
    order = blobs.tensors[1].argsort()
    by_class = Subset(blobs, order.tolist())
    kinds = [
        DataLoader(by_class, 16),
        DataLoader(Stream(by_class), 16),
        sorted_batches(blobs),
        DataLoader(by_class, batch_sampler=[range(start, start + 16) for start in range(0, 512, 16)]),
    ]
    for judge in kinds:
        found = make(make_network()).find_lr(train_data, judge, epochs=2, num_steps=600)
        assert found.status == "ok"
        assert found.trials[-1].loss < 0.6 * found.trials[-1].loss_before
        assert 1e-3 < found.suggestion < 1


def test_dictionaries(make, blobs):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make_network()

        def forward(self, pixels):
            return self.layers(pixels)

    batches = [{"pixels": inputs, "labels": labels} for inputs, labels in DataLoader(blobs, 16)]
    found = make(Named()).find_lr(batches, batches, epochs=2, num_steps=150)
    assert found.note == ""
    assert found.trials[-1].loss < found.trials[-1].loss_before


def test_batches_that_cant_be_mixed(make, network, blobs, train_data):
    judge = [(inputs, labels, ["name"] * len(labels)) for inputs, labels in DataLoader(blobs, 16)]

    class FirstTwo(Trainer):
        def evaluation_step(self, batch):
            return super().evaluation_step(batch[:2])

    normalised = make_own(FirstTwo, network, nn.CrossEntropyLoss())
    assert "training data are held out" in normalised.find_lr(train_data, judge, num_steps=60).note
    plain = make_own(FirstTwo, nn.Linear(8, 4), nn.CrossEntropyLoss())
    assert "whole ones from all over are judged" in plain.find_lr(train_data, judge, num_steps=60).note


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_batch_normalisation_and_a_validation_set_of_an_odd_size(make, network, blobs, train_data, method, count):
    few = DataLoader(Subset(blobs, range(count)), 32)
    judges = [few, [next(iter(few)), next(iter(DataLoader(blobs, 1)))]]
    for judge in judges:
        found = make(network).find_lr(train_data, judge, method=method, num_steps=60)
        assert found.note == ""
        assert found.held_out or "only training losses" not in found.advice


@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_loaders_too_short_to_hold_out_from(make, network, blobs, method):
    found = make(network).find_lr(DataLoader(blobs, 512), method=method, num_steps=60)
    assert "give val_data" in found.note
    assert found.held_out == ()
    assert found.status == "guess"


def test_a_short_training_is_judged_by_statistics_of_the_batches_and_a_whole_one_by_those_it_kept(make, blobs):
    """The loss before training is that of the validation samples, without dropout, with batch statistics."""
    network, judge = make_network(), [blobs.tensors]
    inputs, labels = blobs.tensors
    with torch.no_grad():
        hidden = network[0](inputs)
        normal = nn.functional.batch_norm(hidden, None, None, network[1].weight, network[1].bias, training=True)
        loss = nn.functional.cross_entropy(network[4](normal.relu()), labels)
    found = make(network).find_lr(DataLoader(blobs, 16), judge, epochs=1, num_steps=60)
    assert found.trials[0].loss_before == pytest.approx(float(loss), rel=1e-5)


# ---------------------------------------------------------------- other settings


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


# ---------------------------------------------------------------- progress


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
