"""The search as a user sees it: through `Trainer.find_lr`."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from mxtorch import Trainer
from mxtorch.checkpointing.random_state import seed_everything
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
    found = trainer.find_lr(train_data, val_data, num_steps=300)
    assert len(found.heats) == 7


def without_validation_data(trainer, train_data, val_data):
    assert len(trainer.find_lr(train_data, num_steps=300).heats) == 7


def broken_off(error, after):
    """A search that ends after so many steps, in the heats or before."""

    def search(trainer, train_data, val_data):
        steps = []

        def failing(*_):
            steps.append(1)
            if len(steps) == after:
                raise error

        handle = trainer.optimizer.register_step_pre_hook(failing)
        with pytest.raises(type(error)):
            trainer.find_lr(train_data, val_data, num_steps=300)
        handle.remove()

    return search


@pytest.mark.parametrize(
    "search",
    [
        whole,
        without_validation_data,
        broken_off(OSError("lost"), 150),
        broken_off(KeyboardInterrupt(), 150),
        broken_off(KeyboardInterrupt(), 290),
    ],
    ids=["whole", "without validation data", "error", "ctrl-c", "ctrl-c late"],
)
def test_heats_leave_no_trace(make, train_data, val_data, search):
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
            if Failing.calls == 60:
                raise OSError("lost")
            return super().evaluation_step(batch)

    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = Failing(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    before = everything(trainer)[:-2]
    modes = [module.training for module in network.modules()]
    with pytest.raises(OSError, match="lost"):
        trainer.find_lr(train_data, val_data, num_steps=300)
    after = everything(trainer)[:-2]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [module.training for module in network.modules()] == modes
    assert trainer.step == 0


def assert_no_rate(trainer, found, train_data, *statuses):
    """A search without a suggestion says why, and `fit` refuses it with the same advice."""
    assert found.status in statuses
    assert found.suggestion is found.interval is found.bounds is None
    assert found.advice in str(found)
    with pytest.raises(ValueError, match="no rate to suggest") as raised:
        trainer.fit(train_data, lr=found)
    assert found.advice in str(raised.value)
    assert trainer.step == 0


@pytest.mark.parametrize("num_steps", [100, 300])
@pytest.mark.parametrize("held_out", ["validation data", "training data"])
def test_ok(make, network, train_data, val_data, num_steps, held_out):
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data if held_out == "validation data" else None, num_steps=num_steps)
    assert found.status == "ok"
    assert 1e-3 < found.suggestion < 1
    start = trainer.evaluate(val_data)["val/loss"]
    trainer.fit(train_data, epochs=6, lr=found)
    assert trainer.evaluate(val_data)["val/loss"] < 0.6 * start


def test_edge_only(make, train_data, val_data):
    """Labels that have nothing to do with the inputs: no rate helps, high ones do harm."""
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
    found = trainer.find_lr(data, judge)
    assert found.status == "edge_only"
    assert found.suggestion < found.reading.edge
    assert "guess" in found.advice
    trainer.fit(data, lr=found)


def test_no_signal(make, network, train_data, val_data):
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, start_lr=1e-12, end_lr=1e-9, num_steps=80)
    assert_no_rate(trainer, found, train_data, "no_signal")
    assert "raise end_lr" in found.advice


def test_noise(network, train_data):
    """Losses from a step of one's own that jump about, without held-out data."""
    jumps = np.random.default_rng(3)

    class Jumping(Trainer):
        def training_step(self, batch):
            return super().training_step(batch).loss * 0 + 2 + float(jumps.standard_normal())

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = Jumping(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = trainer.find_lr(train_data)
    assert_no_rate(trainer, found, train_data, "noise")


@pytest.mark.parametrize("num_steps", [100, 300])
def test_already_trained(make, network, train_data, val_data, num_steps):
    easy = DataLoader(TensorDataset(torch.eye(4).repeat(96, 2), torch.arange(384) % 4), 32, shuffle=True)
    make(network).fit(easy, epochs=30)
    trainer = make(network)
    found = trainer.find_lr(easy, easy, num_steps=num_steps)
    assert_no_rate(trainer, found, easy, "already_trained")


def test_a_range_that_ends_too_soon(make, network, train_data, val_data):
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, start_lr=1e-4, end_lr=2e-2)
    assert_no_rate(trainer, found, train_data, "range_too_short")
    assert "raise end_lr" in found.advice


def test_a_range_that_starts_too_late(make, train_data, val_data):
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, start_lr=20, end_lr=1e5)
    assert_no_rate(trainer, found, train_data, "range_too_short", "not_finite")
    assert found.status == "range_too_short"
    assert "lower start_lr" in found.advice


def test_too_few_steps(make, network, train_data, val_data):
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, end_lr=1e-2, num_steps=12)
    assert_no_rate(trainer, found, train_data, "too_few_steps")


@pytest.mark.parametrize("num_steps", [100, 300])
def test_not_finite(make, network, train_data, val_data, num_steps):
    with torch.no_grad():
        network[0].weight[0, 0] = math.nan
    trainer = make(network)
    found = trainer.find_lr(train_data, val_data, num_steps=num_steps)
    assert_no_rate(trainer, found, train_data, "not_finite")
    assert found.heats == ()


def test_a_step_of_ones_own_alone_needs_no_held_out_data(network, train_data, val_data):
    class Own(Trainer):
        def training_step(self, batch):
            inputs, labels = batch
            return nn.functional.cross_entropy(self.model(inputs), labels)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = Own(network, None, optimizer, device="cpu", progress=False)
    found = trainer.find_lr(train_data, val_data, num_steps=300)
    assert found.status == "ok"
    assert found.held_out == found.heats == ()


def counting(network, loss=None, **options):
    """A trainer that counts its steps, and the class's evaluation step."""

    class Counting(Trainer):
        trained = judged = 0

        def training_step(self, batch):
            self.trained += 1
            return super().training_step(batch)

        def evaluation_step(self, batch):
            self.judged += 1
            return super().evaluation_step(batch)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return Counting(network, loss or nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, **options)


@pytest.mark.parametrize(("num_steps", "most"), [(100, 60), (500, 100)])
@pytest.mark.parametrize("batch_size", [16, 64])
@pytest.mark.parametrize("with_val_data", [True, False])
def test_what_it_costs(network, blobs, val_data, num_steps, most, batch_size, with_val_data):
    passed = []
    network.register_forward_hook(
        lambda module, inputs, output: passed.append(1) if not torch.is_grad_enabled() else None
    )
    trained = []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: trained.append(1))
    trainer = Trainer(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = trainer.find_lr(
        DataLoader(blobs, batch_size, shuffle=True),
        DataLoader(blobs, batch_size) if with_val_data else None,
        num_steps=num_steps,
    )
    assert len(trained) == len(found.rates) + sum(heat.steps for heat in found.heats) <= num_steps
    assert 8 < len(passed) <= most


def test_an_evaluation_step_for_metrics_alone(network, train_data, val_data):
    class Own(Trainer):
        def evaluation_step(self, batch):
            return StepOutput(None, self.model(batch[0]), batch[1])

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = Own(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = trainer.find_lr(train_data, val_data, num_steps=300)
    assert found.status == "ok"
    assert found.held_out == found.heats == ()


def test_an_evaluation_step_whose_outputs_do_not_suit_the_loss(network, train_data, val_data):
    class Own(Trainer):
        def evaluation_step(self, batch):
            outputs = self.model(batch[0])
            return StepOutput(self.loss(outputs, batch[1]), outputs.argmax(1), batch[1])

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = Own(network, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    assert trainer.find_lr(train_data, val_data).status == "ok"


@pytest.mark.parametrize("count", [1, 33])
def test_batch_normalisation_and_a_validation_set_of_an_odd_size(make, network, blobs, train_data, count):
    few = DataLoader(Subset(blobs, range(count)), 32)
    found = make(network).find_lr(train_data, few, num_steps=300)
    assert found.held_out
    assert make(network).find_lr(train_data, [next(iter(few)), next(iter(DataLoader(blobs, 1)))]).held_out


def test_loaders_too_short_to_hold_out_from(make, network, blobs):
    found = make(network).find_lr(DataLoader(blobs, 512), num_steps=300)
    assert found.held_out == found.heats == ()
    assert found.status == "ok"


def test_samples_are_judged_as_in_training(network, train_data, val_data):
    """The held-out loss at the start is that of the validation samples, without dropout, with batch statistics."""
    trainer = counting(network)
    found = trainer.find_lr(train_data, DataLoader(val_data.dataset, 64))
    chosen = range(0, 128, 2)  # two batches are held out; the sweep looks at the first
    inputs, labels = default_collate([val_data.dataset[int(place)] for place in chosen])
    with torch.no_grad():
        hidden = network[0](inputs)
        normal = nn.functional.batch_norm(hidden, None, None, network[1].weight, network[1].bias, training=True)
        loss = nn.functional.cross_entropy(network[4](normal.relu()), labels)
    assert found.held_out[0][1] == pytest.approx(float(loss), rel=1e-5)


def test_progress_is_shown(make, network, train_data, val_data, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, description):
            self.total, self.count, self.words, self.closed = total, 0, [], False
            bars.append(self)

        def update(self, count):
            self.count += count

        def set_postfix_str(self, words):
            self.words.append(words)

        def close(self):
            self.closed = True

    monkeypatch.setattr("mxtorch.lr_finder.search.progress_bar", Bar)
    found = make(network, progress=True).find_lr(train_data, val_data, num_steps=300)
    (bar,) = bars
    assert bar.total == 300
    assert bar.count == len(found.rates) + sum(heat.steps for heat in found.heats)
    assert bar.words[0].startswith("5 rates")
    assert len(bar.words) == 3
    assert bar.closed


def test_longer_trainings_are_given_lower_rates(make, train_data, val_data):
    short, long = (
        make(make_network()).find_lr(train_data, val_data, num_steps=300, training_steps=steps)
        for steps in (300, 30000)
    )
    assert long.suggestion < short.suggestion
