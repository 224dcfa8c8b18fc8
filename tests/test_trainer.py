from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, ScheduledOptim, StepOutput, Trainer, schedules
from mxtorch.batches import describe


def make(net, loss=None, lr=0.1, **options):
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9))
    options = {"device": "cpu", "progress": False} | options
    return Trainer(net, nn.CrossEntropyLoss() if loss is None else loss, optimizer, **options)


def weights(net):
    return [parameter.detach().clone() for parameter in net.parameters()]


class Recorder(Callback):
    """Writes down every hook that is called."""

    def __init__(self):
        self.events = []


def _recording(hook):
    return lambda self, *arguments: self.events.append(hook)


for _hook in [name for name in vars(Callback) if name.startswith("on_")]:
    setattr(Recorder, _hook, _recording(_hook))


# ---------------------------------------------------------------- training


def test_fit_equals_a_loop_written_by_hand(two_moons):
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


def test_learns_and_reports(net, loader, capsys):
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


def test_training_metrics_are_those_of_all_samples(two_moons):
    net = nn.Linear(8, 2)
    accuracy = MulticlassAccuracy(num_classes=2, average="micro")
    trainer = make(net, lr=1e-12, train_metrics={"accuracy": accuracy})
    row = trainer.fit(DataLoader(two_moons, 3)).rows[0]
    inputs, labels = two_moons.tensors
    assert row["train/accuracy"] == pytest.approx(float((net(inputs).argmax(1) == labels).double().mean()), abs=1e-6)


def test_evaluate_is_the_mean_over_samples_and_leaves_modes(net, two_moons):
    trainer = make(net)
    net.train()
    net[3].eval()
    values = trainer.evaluate(DataLoader(two_moons, 100))
    assert [module.training for module in net] == [True, True, True, False, True]
    net.eval()
    inputs, labels = two_moons.tensors
    assert values["val/loss"] == pytest.approx(nn.functional.cross_entropy(net(inputs), labels).item(), rel=1e-5)


def test_predict_is_in_order(net, two_moons):
    outputs = make(net).predict(DataLoader(two_moons, 100))
    net.eval()
    assert torch.allclose(outputs, net(two_moons.tensors[0]), atol=1e-6)
    assert not outputs.requires_grad


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_accumulation_equals_a_large_batch(two_moons, accumulate):
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


def test_gradients_are_clipped_to_the_norm(two_moons):
    net = nn.Linear(8, 2)
    before = torch.cat([w.flatten() for w in weights(net)])
    trainer = make(net, lr=1.0, clip_grad_norm=0.01, log_every=1)
    trainer.fit(DataLoader(two_moons, 256))
    after = torch.cat([w.flatten() for w in weights(net)])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert trainer.history.records[0]["gradient_norm"] > 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(net, loader, precision):
    history = make(net, precision=precision).fit(loader, epochs=4)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_channels_last_for_convolutions(two_moons):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    seen = []

    class Watching(Trainer):
        def training_step(self, batch):
            seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
            return super().training_step(batch)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Watching(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    trainer.fit([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))])
    assert seen == [True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert make(nn.Linear(8, 2)).engine.memory_format is None


def test_compile_keeps_names(loader, net):
    names = list(net.state_dict())
    make(net, compile={"backend": "eager"}).fit(loader)
    assert list(net.state_dict()) == names


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


# ---------------------------------------------------------------- batches


class Returning(nn.Module):
    """A model in Hugging Face's manner."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


@pytest.mark.parametrize("with_loss", [False, True])
def test_dictionary_batches(two_moons, with_loss):
    inputs, labels = two_moons.tensors
    data = [{"inputs": inputs[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 256, 64)]
    net = Returning()
    loss = nn.CrossEntropyLoss() if with_loss else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    accuracy = MulticlassAccuracy(num_classes=2)
    trainer = Trainer(net, loss, optimizer, metrics=accuracy, device="cpu", progress=False)
    history = trainer.fit(data, data, epochs=5)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert history["val/multiclassaccuracy"][-1] > 0.5
    assert trainer.predict(data).shape == (256, 2)
    assert trainer.find_lr(data, num_steps=25).rates


def test_several_inputs(two_moons):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, first, second):
            return self.layer(first + second)

    inputs, labels = two_moons.tensors
    trainer = make(Sum())
    assert trainer.fit([(inputs, inputs, labels)]).rows[0]["train/loss"] > 0


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
    assert trainer.find_lr(data, num_steps=30).losses
    assert trainer.fit(data, epochs=3)["train/loss"][-1] < trainer.history["train/loss"][0]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            inputs = torch.randn(8)
            yield inputs, int(inputs[0] > 0)


def test_data_without_a_length():
    trainer = make(nn.Linear(8, 2))
    loader = DataLoader(Endless(), 16)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        trainer.fit(loader, schedule="one_cycle")
    trainer.fit(loader, epochs=2, steps_per_epoch=7, schedule="one_cycle")
    assert trainer.step == 14
    assert trainer.optimizer.schedule == schedules.OneCycle(14)
    assert len(trainer.find_lr(loader, num_steps=30).rates) > 10


# ---------------------------------------------------------------- rates


def test_a_schedule_gets_the_length_of_the_run(net, loader):
    trainer = make(net)
    trainer.fit(loader, epochs=3, lr=0.3, schedule=schedules.OneCycle())
    assert trainer.optimizer.schedule == schedules.OneCycle(24)
    assert trainer.optimizer.base_learning_rate == 0.3
    trainer.fit(loader, epochs=1, schedule=schedules.Constant())
    assert trainer.optimizer.current_steps == 8
    assert trainer.epoch == 4


def test_torch_schedulers(net, loader):
    trainer = make(net, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, 0.5)
    with pytest.raises(ValueError, match="schedule_every"):
        trainer.fit(loader, schedule=scheduler)
    with pytest.raises(ValueError, match="lr: a torch scheduler"):
        trainer.fit(loader, lr=0.1, schedule=scheduler, schedule_every="epoch")
    trainer.fit(loader, epochs=2, schedule=scheduler, schedule_every="epoch")
    assert trainer.optimizer.learning_rate == pytest.approx(0.025)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, mode="max", patience=0)
    trainer.fit(loader, loader, epochs=4, schedule=plateau, schedule_every="epoch")
    assert trainer.optimizer.learning_rate < 0.025
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), lr=1.0), 1)
    with pytest.raises(ValueError, match="another optimizer"):
        trainer.fit(loader, schedule=other, schedule_every="step")


# ---------------------------------------------------------------- callbacks


def test_the_order_of_events(net, loader):
    recorder = Recorder()
    make(net, callbacks=[recorder]).fit(loader, loader, epochs=1)
    events = [event for event in recorder.events if event not in ("on_step", "on_log")]
    assert events == [
        "on_fit_start",
        "on_epoch_start",
        "on_evaluate_start",
        "on_evaluate_end",
        "on_epoch_complete",
        "on_epoch_end",
        "on_fit_end",
    ]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["on_epoch_start", "on_evaluate_start", "on_epoch_complete", "on_log"])
def test_every_start_has_its_end(net, loader, where, error):
    class Failing(Callback):
        pass

    def fail(self, *arguments):
        raise error

    setattr(Failing, where, fail)
    recorder = Recorder()
    trainer = make(net, callbacks=[recorder, Failing()])
    with pytest.raises(type(error)):
        trainer.fit(loader, loader, epochs=2)
    for phase in ("fit", "epoch", "evaluate"):
        starts = recorder.events.count(f"on_{phase}_start")
        assert starts == recorder.events.count(f"on_{phase}_end")
    assert recorder.events[-1] == "on_fit_end"


def test_a_callback_can_stop_the_run(net, loader):
    class Stop(Callback):
        def on_epoch_complete(self, trainer, row):
            if row["epoch"] == 2:
                trainer.stop()

    assert len(make(net, callbacks=[Stop()]).fit(loader, epochs=9)) == 2


# ---------------------------------------------------------------- files


def test_save_and_load_go_on_bit_for_bit(two_moons, tmp_path):
    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 2))
        return make(net, precision="fp16"), DataLoader(two_moons, 32, shuffle=True)

    trainer, loader = build()
    trainer.fit(loader, epochs=2, lr=0.1, schedule=schedules.OneCycle(40))
    trainer.save(tmp_path / "model.pt")
    trainer.fit(loader, epochs=1)
    again, loader = build()
    again.load(tmp_path / "model.pt")
    again.fit(loader, epochs=1)
    for a, b in zip(weights(again.model), weights(trainer.model), strict=True):
        assert torch.equal(a, b)
    assert again.step == trainer.step
    assert again.history["train/loss"] == trainer.history["train/loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_checkpoints_of_others_are_refused(net, tmp_path):
    make(nn.Linear(8, 3)).save(tmp_path / "other.pt")
    before = weights(net)
    with pytest.raises(ValueError, match="another model"):
        make(net).load(tmp_path / "other.pt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        make(net).load(tmp_path / "plain.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))


# ---------------------------------------------------------------- what is refused


def test_a_loss_gone_bad_is_named(net, two_moons):
    inputs, labels = two_moons.tensors
    poisoned = inputs.clone()
    poisoned[100] = math.nan
    with pytest.raises(FloatingPointError, match="step 4 is nan"):
        make(net).fit(DataLoader(TensorDataset(poisoned, labels), 32))


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "fast"])
def test_bad_rates(net, loader, lr):
    trainer = make(net)
    with pytest.raises((ValueError, TypeError), match="lr: got"):
        trainer.fit(loader, lr=lr)
    for name in ("start_lr", "end_lr"):
        with pytest.raises((ValueError, TypeError), match=f"{name}: got"):
            trainer.find_lr(loader, **{name: lr})


BAD_DATA = {
    "empty list": ([], "no batches"),
    "a generator": ((batch for batch in [1]), "only once"),
    "not iterable": (3, "give a DataLoader"),
    "a data set": (TensorDataset(torch.ones(3, 8)), "DataLoader"),
    "empty iterable": (iter, "give a DataLoader"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(net, case):
    data, message = BAD_DATA[case]
    trainer = make(net)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.find_lr(data)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit(data, epochs=2)


ONE = torch.ones(4, 8)
LABELS = torch.tensor([0, 1, 0, 1])
BAD_STEPS = {
    "wrong width": (nn.CrossEntropyLoss(), (torch.ones(4, 9), LABELS), "could not take the first batch"),
    "no target": (nn.CrossEntropyLoss(), ONE, "could not take the first batch"),
    "unknown names": (nn.CrossEntropyLoss(), {"pixels": ONE, "labels": LABELS}, "'pixels'"),
    "labels too high": (nn.CrossEntropyLoss(), (ONE, LABELS + 1), "labels: got 1 to 2"),
    "negative labels": (nn.CrossEntropyLoss(), (ONE, LABELS - 1), "labels: got -1 to 0"),
    "not reduced": (nn.CrossEntropyLoss(reduction="none"), (ONE, LABELS), "reduce it to one number"),
    "detached": (lambda o, t: nn.functional.cross_entropy(o, t).detach(), (ONE, LABELS), "detached"),
    "no tensor": (lambda o, t: 1.0, (ONE, LABELS), "training_step: got 1.0"),
    "no loss": (None, (ONE, LABELS), "could not take the first batch|as the loss"),
}


@pytest.mark.parametrize("use", ["fit", "find_lr"])
@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_first_batch_that_fails_leaves_no_trace(net, case, use):
    loss, batch, message = BAD_STEPS[case]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Trainer(net, loss, optimizer, device="cpu", progress=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit([batch], lr=0.5, schedule="one_cycle") if use == "fit" else trainer.find_lr([batch])
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
        ({"log_every": 0}, "log_every"),
        ({"metrics": {"accuracy": len}}, "metrics: got"),
        ({"callbacks": [print]}, "callbacks: got"),
        ({"log_dir": "/proc/nowhere/run"}, "log_dir"),
        ({"channels_last": "yes"}, "channels_last"),
    ],
)
def test_bad_options(net, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(net, **options)


def test_bad_models_and_optimizers(net):
    sgd = torch.optim.SGD
    with pytest.raises(ValueError, match="without trainable parameters"):
        make(net.requires_grad_(False))
    net.requires_grad_(True)
    with pytest.raises(ValueError, match="holds none of the model's"):
        Trainer(net, None, sgd(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=r"4\.weight, 4\.bias"):
        Trainer(net, None, sgd(net[:4].parameters(), lr=0.1), device="cpu")
    with pytest.raises(TypeError, match="model: got"):
        Trainer(len, None, sgd(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="optimizer: got"):
        Trainer(net, None, "sgd")
    with pytest.raises(ValueError, match="no shape yet"):
        make(nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(2)))


def test_bad_arguments_of_fit_and_find_lr(net, loader):
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


def test_batches_in_words():
    batch = ({"a": torch.ones(2, 3)}, [torch.ones(2, dtype=torch.int64), "x"])
    assert describe(batch) == "tuple of (dict of {'a': float32 tensor [2, 3]}, list of (int64 tensor [2], str))"
