from __future__ import annotations

import gc
import math
import multiprocessing
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import StepOutput, Trainer, schedules
from mxtorch.callbacks import Checkpoint


def test_fit_equals_a_loop_written_by_hand(two_moons, make, weights):
    def build():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    by_hand = build()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(2)
    for _ in range(2):
        for inputs, labels in DataLoader(two_moons, 30, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(inputs), labels).backward()
            optimizer.step()
    net = build()
    trainer = make(net)
    torch.manual_seed(2)
    trainer.fit(DataLoader(two_moons, 30, shuffle=True), epochs=2)
    for mine, hand in zip(weights(net), weights(by_hand), strict=True):
        assert torch.equal(mine, hand)


def test_learns_and_reports(net, loader, capsys, make):
    accuracy = MulticlassAccuracy(num_classes=2, average="micro")
    trainer = make(net, metrics={"accuracy": accuracy}, train_metrics={"accuracy": accuracy.clone()}, progress=True)
    history = trainer.fit(loader, loader, epochs=8, lr=0.2, schedule="one_cycle")
    assert history["val/accuracy"][-1] > 0.9
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert len(history) == 8
    assert [record["step"] for record in history.records] == [8, 16, 24, 32, 40, 48, 50, 56, 64]
    assert {"gradient_norm", "learning_rate/group0", "samples_per_second"} <= history.records[0].keys()
    printed = capsys.readouterr()
    assert "epoch 8/8" in printed.out + printed.err
    assert "val/accuracy" in str(history)
    assert history.plot()[0].get_xlabel() == "optimizer steps"
    with pytest.raises(KeyError, match="val/accuracy"):
        history["accuracy"]


def test_training_metrics_are_those_of_all_samples(two_moons, make):
    net = nn.Linear(8, 2)
    accuracy = MulticlassAccuracy(num_classes=2, average="micro")
    trainer = make(net, lr=1e-12, train_metrics={"accuracy": accuracy})
    row = trainer.fit(DataLoader(two_moons, 3)).rows[0]
    inputs, labels = two_moons.tensors
    assert row["train/accuracy"] == pytest.approx(float((net(inputs).argmax(1) == labels).double().mean()), abs=1e-6)


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_accumulation_equals_a_large_batch(two_moons, accumulate, make, weights):
    def train(batch, count):
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        trainer = make(net, accumulate=count)
        trainer.fit(DataLoader(two_moons, batch), epochs=2)
        return net, trainer

    small, one = train(30, accumulate)  # 256 samples: the last window and its last batch are short
    large, other = train(30 * accumulate, 1)
    assert one.step == other.step
    for a, b in zip(weights(small), weights(large), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert one.history["train/loss"] == pytest.approx(other.history["train/loss"], rel=1e-4)


def test_gradients_are_clipped_to_the_norm(two_moons, make, weights):
    net = nn.Linear(8, 2)
    before = torch.cat([w.flatten() for w in weights(net)])
    trainer = make(net, lr=1.0, clip_grad_norm=0.01, log_every=1)
    trainer.fit(DataLoader(two_moons, 256))
    after = torch.cat([w.flatten() for w in weights(net)])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert trainer.history.records[0]["gradient_norm"] > 0.01


def test_gradients_are_clipped_value_by_value(two_moons, make, weights):
    net = nn.Linear(8, 2)
    before = torch.cat([w.flatten() for w in weights(net)])
    make(net, lr=1.0, clip_grad_value=0.01).fit(DataLoader(two_moons, 256))
    moved = (torch.cat([w.flatten() for w in weights(net)]) - before).abs()
    assert float(moved.max()) == pytest.approx(0.01, rel=1e-3)
    assert int((moved > 0.0099).sum()) > 2


def test_frozen_batch_norm_stays_frozen(net, loader):
    net[1].requires_grad_(False)
    mean = net[1].running_mean.clone()
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1),
        device="cpu",
        progress=False,
    )
    trainer.fit(loader)
    assert torch.equal(net[1].running_mean, mean)


def test_lbfgs(two_moons):
    net = nn.Linear(8, 2)
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), torch.optim.LBFGS(net.parameters(), lr=0.5), device="cpu", progress=False
    )
    history = trainer.fit(DataLoader(two_moons, 256), epochs=4)
    assert history["train/loss"][-1] < history["train/loss"][0]


@pytest.mark.parametrize("whole", [False, True])
def test_an_overridden_training_step(two_moons, whole):
    class Squared(Trainer):
        def training_step(self, batch):
            outputs = self.model(batch)
            loss = (outputs**2).mean()
            return StepOutput(loss, outputs, batch) if whole else loss

    net = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Squared(net, None, optimizer, device="cpu", progress=False)
    data = list(two_moons.tensors[0].split(32))
    assert trainer.find_lr(data, num_steps=40).trials
    assert trainer.fit(data, epochs=3)["train/loss"][-1] < trainer.history["train/loss"][0]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            inputs = torch.randn(8)
            yield inputs, int(inputs[0] > 0)


def test_outputs_are_let_go_before_the_backward_pass(two_moons):
    alive = []

    class Watched(Trainer):
        def training_step(self, batch):
            outputs = self.model(batch[0])
            self.outputs = weakref.ref(outputs)
            return StepOutput(outputs.sum(), outputs, batch[1])  # whose gradient needs no outputs

    net = nn.Linear(8, 2)
    net.weight.register_hook(lambda gradient: alive.append(trainer.outputs() is not None))
    trainer = Watched(net, None, torch.optim.SGD(net.parameters(), lr=1e-3), device="cpu", progress=False)
    trainer.fit(DataLoader(two_moons, 64))
    assert alive == [False] * 4


def test_data_without_a_length(make):
    trainer = make(nn.Linear(8, 2))
    loader = DataLoader(Endless(), 16)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        trainer.fit(loader, schedule="one_cycle")
    trainer.fit(loader, epochs=2, steps_per_epoch=7, schedule="one_cycle")
    assert trainer.step == 14
    assert trainer.optimizer.schedule == schedules.OneCycle(14)
    assert len(trainer.find_lr(loader, num_steps=40).trials) > 5
    with pytest.raises(ValueError, match="epochs: the data have no length; give steps_per_epoch"):
        trainer.find_lr(loader, epochs=2)
    assert trainer.find_lr(loader, epochs=2, steps_per_epoch=7, num_steps=40).training_steps == 14


def test_a_loss_gone_bad_is_named(net, two_moons, make):
    inputs, labels = two_moons.tensors
    poisoned = inputs.clone()
    poisoned[100] = math.nan
    with pytest.raises(
        FloatingPointError, match=r"step 4 \(batch 3 of the epoch\) is not finite: the loss is nan; the batch itself"
    ):
        make(net).fit(DataLoader(TensorDataset(poisoned, labels), 32))


ONE = torch.ones(4, 8)


LABELS = torch.tensor([0, 1, 0, 1])


BAD_STEPS = {
    "wrong width": (nn.CrossEntropyLoss(), (torch.ones(4, 9), LABELS), "could not take the first batch"),
    "no target": (nn.CrossEntropyLoss(), ONE, "could not take the first batch"),
    "unknown names": (nn.CrossEntropyLoss(), {"pixels": ONE, "labels": LABELS}, "'pixels'"),
    "labels too high": (nn.CrossEntropyLoss(), (ONE, LABELS + 1), "labels: got 1 to 2"),
    "negative labels": (nn.CrossEntropyLoss(), (ONE, LABELS - 1), "labels: got -1 to 0"),
    "not reduced": (nn.CrossEntropyLoss(reduction="none"), (ONE, LABELS), "reduce it to a scalar"),
    "detached": (lambda o, t: nn.functional.cross_entropy(o, t).detach(), (ONE, LABELS), "detached"),
    "no tensor": (lambda o, t: 1.0, (ONE, LABELS), "training_step: got 1.0"),
    "no loss": (None, (ONE, LABELS), "could not take the first batch|as the loss"),
}


@pytest.mark.parametrize("use", ["fit", "trials", "sweep"])
@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_first_batch_that_fails_leaves_no_trace(net, case, use):
    loss, batch, message = BAD_STEPS[case]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Trainer(net, loss, optimizer, device="cpu", progress=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    trained = {"lr": 0.5, "schedule": "one_cycle"} if use == "fit" else {"method": use, "num_steps": 40}
    use = trainer.fit if use == "fit" else trainer.find_lr
    with pytest.raises((ValueError, TypeError), match=message):
        use([batch], **trained)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert trainer.optimizer.learning_rate == 0.1
    assert trainer.optimizer.schedule is None
    assert trainer.step == 0
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cudda"}, "did you mean 'cuda'"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"precision": "fp32x"}, "did you mean 'fp32'"),
        ({"accumulate": 0}, "accumulate: got 0"),
        ({"clip_grad_norm": -1}, "clip_grad_norm"),
        ({"clip_grad_value": 0}, "clip_grad_value"),
        ({"log_every": 0}, "log_every"),
        ({"metrics": {"accuracy": 3}}, "metrics: got"),
        ({"callbacks": [print]}, "callbacks: got"),
        ({"log_dir": "/proc/nowhere/run"}, "log_dir"),
        ({"channels_last": "yes"}, "channels_last"),
    ],
)
def test_bad_options(net, options, message, make):
    with pytest.raises((ValueError, TypeError), match=message):
        make(net, **options)


def test_bad_arguments_of_fit_and_find_lr(net, loader, make):
    trainer = make(net)
    with pytest.raises(ValueError, match="epochs: got 0"):
        trainer.fit(loader, epochs=0)
    with pytest.raises(ValueError, match="did you mean 'one_cycle'"):
        trainer.fit(loader, schedule="one-cycel")
    with pytest.raises(ValueError, match="not below end_lr"):
        trainer.find_lr(loader, start_lr=1, end_lr=1)
    with pytest.raises(ValueError, match="num_steps"):
        trainer.find_lr(loader, num_steps=1)
    with pytest.raises(ValueError, match="did you mean"):
        trainer.find_lr(loader, schedule="constantt")
    with pytest.raises(ValueError, match="no batches"):
        trainer.evaluate([])
    assert trainer.step == 0


def test_a_dropped_trainer_is_freed_at_once(net, two_moons, make, tmp_path):
    """Left to Python's collector, a loader in a cycle makes torch wait 5 seconds for each persistent worker."""
    others = set(multiprocessing.active_children())
    gc.collect()
    gc.disable()
    try:
        trainer = make(net, metrics=MulticlassAccuracy(2), callbacks=[Checkpoint(tmp_path)])
        loader = DataLoader(two_moons, 32, num_workers=1, persistent_workers=True)
        trainer.find_lr(loader, method="sweep", num_steps=60)
        trainer.find_lr(loader, loader, training_steps=12, num_steps=36)
        trainer.fit(loader, loader, epochs=1)
        trainer.evaluate(loader)
        assert set(multiprocessing.active_children()) > others
        freed = [weakref.ref(trainer), weakref.ref(loader)]
        del trainer, loader
        assert [one() for one in freed] == [None, None]
        assert set(multiprocessing.active_children()) <= others
    finally:
        gc.enable()
