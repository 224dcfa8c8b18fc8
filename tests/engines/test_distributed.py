"""Several gloo processes against one: the same training, the same figures."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Trainer
from mxtorch.callbacks import EMA, SWA, BestWeights, EarlyStopping
from mxtorch.data import Mixed
from mxtorch.engines import DistributedEngine, LocalEngine
from mxtorch.training.supervised import StepOutput


def samples(count: int, dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator, dtype=dtype)
    return TensorDataset(inputs, (inputs[:, 0] + inputs[:, 1] ** 2 > 0.5).long())


def network(*extra: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *extra, nn.ReLU(), nn.Linear(16, 2)).to(dtype)


def trainer_for(net: nn.Module, optimizer: str = "sgd", loss=None, kind: type[Trainer] = Trainer, **options) -> Trainer:
    made = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(net.parameters(), 1e-2),
    }[optimizer]()
    options = {"device": "cpu", "progress": False, "seed": 3} | options
    return kind(net, nn.CrossEntropyLoss() if loss is None else loss, made, **options)


def weights_of(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """The relative distance of two sets of weights."""
    norm = sum(float((one**2).sum()) for one in first) ** 0.5
    return sum(float(((one - other) ** 2).sum()) for one, other in zip(first, second, strict=True)) ** 0.5 / norm


FIGURES = ("train/loss", "train/accuracy", "step")
CASES = [
    *itertools.product((2,), (800,), ("sgd", "adamw"), (1, 3), (None, 0.05)),
    (3, 100, "sgd", 3, None),
    (3, 100, "adamw", 1, None),
]


def equality(rank: int, batch: int, cases: list, dtype: torch.dtype = torch.float64) -> list:
    """Train each case; the weights after it, the figures, and what is predicted."""
    found = []
    for _, count, optimizer, accumulate, clip in cases:
        net = network(dtype=dtype)
        accuracy = {"accuracy": MulticlassAccuracy(2, average="micro")}
        recall = {"recall": MulticlassAccuracy(2, average="none")}
        trainer = trainer_for(
            net,
            optimizer,
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=dtype)),
            accumulate=accumulate,
            clip_grad_norm=clip,
            metrics=accuracy | recall,
            train_metrics=copy.deepcopy(accuracy),
            log_every=5,
        )
        # 101 samples: the last batch is one that cannot be dealt to all.
        held_out = DataLoader(samples(101, dtype), batch)
        epochs = 2 * accumulate if count == 800 else 17 * accumulate
        history = trainer.fit(DataLoader(samples(count, dtype), batch, shuffle=True), epochs=epochs)
        figures = {name: history[name][-1] for name in FIGURES}
        found.append((weights_of(net), figures, trainer.predict(held_out), trainer.evaluate(held_out)))
    return found


@pytest.mark.parametrize(
    ("processes", "dtype", "most"), [(2, "float64", 1e-12), (3, "float64", 1e-12), (2, "float32", 1e-6)]
)
def test_processes_train_as_one_does_with_the_batch_of_all(processes, dtype, most):
    cases = [case for case in CASES if case[0] == processes and (dtype == "float64" or case[3] == 1)]
    alone = equality(0, 16 * processes, cases, getattr(torch, dtype))
    together = values(launch(processes, equality, 16, cases, getattr(torch, dtype)))
    for others in zip(*together, strict=True):
        for first, other in itertools.pairwise(others):
            assert distance(first[0], other[0]) == 0
            assert first[1] == other[1]
    for case, one, (weights, figures, predicted, evaluated) in zip(cases, alone, together[0], strict=True):
        assert distance(one[0], weights) <= most, case
        assert figures == pytest.approx(one[1], rel=max(most, 1e-6)), case
        assert evaluated == pytest.approx(one[3], rel=max(most, 1e-6)), case
        assert torch.allclose(predicted, one[2], rtol=1e-4, atol=1e-5)
        assert one[1]["step"] >= 50


class Passing(Trainer):
    """Passes over a batch that only some processes have, and weighs the others by hand."""

    def training_step(self, batch):
        inputs, targets = batch
        if float(inputs[0, 0]) > 0.9:
            return None
        return StepOutput(
            nn.functional.cross_entropy(self.model(inputs), targets), weight=torch.tensor(float(len(targets)))
        )

    evaluation_step = Trainer.evaluation_step


class Stream(IterableDataset):
    def __iter__(self):
        yield from samples(90)


class AroundTheModel(Trainer):
    """Calls the model's parts, and not the model."""

    def training_step(self, batch):
        return self.loss(self.model[2](self.model[1](self.model[0](batch[0]))), batch[1])


class Adversary(Trainer):
    """Steps another optimizer itself."""

    def training_step(self, batch):
        inputs, targets = batch
        other = self.other_optimizers["other"]
        other.zero_grad()
        self.loss(self.critic(inputs), targets).backward()
        other.step()
        return self.loss(self.model(inputs) + self.critic(inputs).detach(), targets)


def kinds_of_training(rank: int, batch: int) -> dict:
    """Trainings that go other ways through the engine."""
    found = {}

    def train(name: str, data, net: nn.Module, **options) -> None:
        trainer = trainer_for(net, **options)
        trainer.fit(data, epochs=2)
        found[name] = weights_of(net)

    loader = DataLoader(samples(90), batch, shuffle=True)
    train("stream", DataLoader(Stream(), batch), network())
    train("batches", list(DataLoader(samples(90), 15)), network())
    train(
        "batch sampler",
        DataLoader(samples(90), batch_sampler=BatchSampler(SequentialSampler(range(90)), batch, True)),
        network(),
    )
    train("around the model", loader, network(), kind=AroundTheModel)
    train("sum", loader, network(), loss=nn.CrossEntropyLoss(reduction="sum"), clip_grad_norm=0.1)
    trained_loss = nn.Module()
    trained_loss.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    trained_loss.forward = lambda outputs, targets: nn.functional.cross_entropy(outputs * trained_loss.scale, targets)
    net = network()
    trainer = Trainer(
        net,
        trained_loss,
        torch.optim.SGD([*net.parameters(), trained_loss.scale], 0.1),
        device="cpu",
        progress=False,
        seed=3,
    )
    trainer.fit(loader, epochs=2)
    found["loss with parameters"] = [*weights_of(net), trained_loss.scale.detach().clone()]
    net, critic = network(), network()
    trainer = Adversary(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), 0.1),
        other_optimizers={"other": torch.optim.SGD(critic.parameters(), 0.1)},
        device="cpu",
        progress=False,
        seed=3,
    )
    trainer.critic = critic
    trainer.fit(loader, epochs=2)
    found["another optimizer"] = [*weights_of(net), *weights_of(critic)]
    # Thawing makes the exchange anew.
    net = network()
    net[0].requires_grad_(False)
    trainer = trainer_for(net)
    trainer.fit(loader, epochs=1)
    net[0].requires_grad_(True)
    trainer.fit(loader, epochs=1)
    found["thawed"] = weights_of(net)
    return found


def test_other_ways_of_training_are_the_same_as_well():
    alone = kinds_of_training(0, 30)
    together = values(launch(2, kinds_of_training, 15))
    for name, weights in alone.items():
        if name == "batches":  # a batch of each process to a step
            assert distance(together[0][name], together[1][name]) == 0
            continue
        for other in together:
            assert distance(weights, other[name]) < 1e-12, name


class OutOfMemory(Trainer):
    """The memory of one process is full for batches of more than four."""

    def training_step(self, batch):
        if self.engine.rank == 1 and len(batch[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().training_step(batch)


def decisions(rank: int) -> dict:
    """What processes decide together."""
    found: dict = {}
    loader = DataLoader(samples(96), 16)
    net = network()
    trainer = trainer_for(net, kind=OutOfMemory)
    trainer.fit(loader, epochs=2, auto_accumulate=True)
    found["memory"] = weights_of(net), trainer.run.micro_batches
    net = network()
    trainer = trainer_for(net)
    trainer.fit(loader, epochs=2)
    found["enough memory"] = weights_of(net)
    inputs, targets = samples(96).tensors
    inputs = inputs.clone()
    inputs[50] = torch.nan  # of the share of process 1
    net = network(nn.BatchNorm1d(16))
    trainer = trainer_for(net, on_nonfinite="skip")
    trainer.fit(DataLoader(TensorDataset(inputs, targets), 16), epochs=2)
    found["skipped"] = trainer.skipped_steps, trainer.step, weights_of(net), net[1].running_mean.clone()
    net = network()
    trainer = trainer_for(net, kind=Passing)
    trainer.fit(DataLoader(samples(96), 16), epochs=3)
    found["passed over"] = weights_of(net), trainer.skipped_steps
    return found


class Root(nn.Module):
    """Its output is finite, and where its weight is 0 the gradient is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 4.0]))

    def forward(self, inputs):
        return (inputs * self.weight.sqrt()).sum(1, keepdim=True)


def clipped_values(rank: int) -> list[tuple]:
    """An infinite gradient of a weight that the first process has, with the values clipped; then finite ones."""
    found = []
    data = [(torch.ones(2, 2), torch.full((2, 1), 9.0))]
    for strategy, clip_grad_norm in itertools.product(("ddp", "fsdp2"), (None, 0.5)):
        for start in (0.0, 1.0):
            net = Root()
            net.weight.data[0] = start
            trainer = Trainer(
                net,
                nn.L1Loss(),
                torch.optim.SGD(net.parameters(), 0.1),
                engine=DistributedEngine("cpu", strategy=strategy, split_data=False),
                progress=False,
                on_nonfinite="skip",
                clip_grad_value=0.1,
                clip_grad_norm=clip_grad_norm,
                log_every=1,
            )
            trainer.fit(data, schedule="constant")
            weight = net.weight.detach()
            weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
            found.append((trainer.skipped_steps, weight.tolist()))
    return found


def test_an_infinite_gradient_is_found_on_all_processes_before_it_is_clipped():
    for found in values(launch(2, clipped_values)):
        for infinite, finite in zip(found[::2], found[1::2], strict=True):
            assert infinite == (1, [0.0, 4.0])
            assert finite[0] == 0
            assert finite[1] == pytest.approx([1.01, 4.01])


class PassesOverNegative(Trainer):
    def training_step(self, batch):
        return None if float(batch[0].min()) < 0 else super().training_step(batch)


def sums_with_nothing(rank: int | None, auto_accumulate: bool) -> tuple:
    """A loss that is a sum; the first batch of a window has none, and on one process no batch of a window has."""
    generator = torch.Generator().manual_seed(2)
    some = (torch.rand(4, 8, generator=generator), torch.arange(4) % 2)
    nothing = (-torch.ones(4, 8), torch.zeros(4, dtype=torch.long))
    data = [(nothing, some if rank == 0 else nothing)] * 3 + [(some, some)]
    if rank is None:  # one process that has the windows of both
        data = [(nothing, some, nothing, nothing)] * 3 + [(some,) * 4]
    data = [batch for window in data for batch in window]
    net = network(dtype=torch.float32)
    trainer = PassesOverNegative(
        net,
        nn.CrossEntropyLoss(reduction="sum"),
        torch.optim.SGD(net.parameters(), 0.01, momentum=0.9),
        engine=DistributedEngine("cpu", split_data=False),
        accumulate=4 if rank is None else 2,
        progress=False,
    )
    history = trainer.fit(data, lr=0.01, auto_accumulate=auto_accumulate)
    return [parameter.detach().clone() for parameter in net.parameters()], history["train/loss"]


@pytest.mark.parametrize("auto_accumulate", [False, True])
def test_a_sum_of_losses_where_a_process_has_none(auto_accumulate):
    alone = sums_with_nothing(None, False)
    together = values(launch(2, sums_with_nothing, auto_accumulate))
    for found in together:
        assert found[1] == pytest.approx(alone[1])
        assert all(torch.allclose(one, other) for one, other in zip(found[0], alone[0], strict=True))
    assert distance(together[0][0], together[1][0]) == 0


def bounds(rank: int, batch: int) -> dict:
    """Runs that end, and validate, within an epoch."""
    found: dict = {}
    held_out = {"one": DataLoader(samples(53), batch), "two": DataLoader(samples(24), batch)}
    for name, options in {
        "steps": {"max_steps": 7, "validate_every": 3},
        "batches": {"epochs": 2, "val_batches": 1},
        "patience": {"epochs": 3, "validate_every": 2},
    }.items():
        net = network()
        callbacks = [EarlyStopping(patience=1, min_delta=10.0)] if name == "patience" else []
        trainer = trainer_for(net, callbacks=callbacks, log_every=100)
        history = trainer.fit(DataLoader(samples(160), batch, shuffle=True), held_out, **options)
        rows = [{key: value for key, value in row.items() if key.startswith("val/")} for row in history.rows]
        found[name] = trainer.step, weights_of(net), rows
    net = network()
    trainer = trainer_for(net)
    seconds = 0.3 if rank == 0 else 100.0  # the clock of one of them
    trainer.fit(DataLoader(samples(160), batch), epochs=1)
    trainer.engine.check_same = lambda *arguments: None
    trainer.fit(DataLoader(samples(160), batch), epochs=10**4, max_time=seconds)
    found["time"] = trainer.step, weights_of(net)
    return found


def test_runs_end_within_an_epoch_at_the_same_step():
    alone = bounds(0, 32)
    first, second = values(launch(2, bounds, 16))
    for name in ("steps", "batches", "patience"):
        assert first[name][0] == second[name][0] == alone[name][0]
        assert distance(first[name][1], alone[name][1]) < 1e-12
        assert first[name][2] == second[name][2]
        for row, expected in zip(first[name][2], alone[name][2], strict=True):
            assert row == pytest.approx(expected)
    assert first["time"][0] == second["time"][0]
    assert distance(first["time"][1], second["time"][1]) == 0


def test_processes_decide_together():
    first, second = values(launch(2, decisions))
    assert first["memory"][1] == second["memory"][1] == 4
    assert distance(first["memory"][0], first["enough memory"]) < 1e-12
    assert distance(first["memory"][0], second["memory"][0]) == 0
    assert first["skipped"][:2] == second["skipped"][:2] == (2, 6)
    assert distance(first["skipped"][2], second["skipped"][2]) == 0
    assert torch.equal(first["skipped"][3], second["skipped"][3])
    assert bool(torch.isfinite(first["skipped"][3]).all())
    assert distance(first["passed over"][0], second["passed over"][0]) == 0
    assert first["passed over"][1] == second["passed over"][1]


def around(rank: int, folder: str) -> dict:
    """What is built on the loop."""
    found: dict = {}
    loader = DataLoader(samples(96, torch.float32), 12, shuffle=True)
    held_out = DataLoader(samples(53, torch.float32), 12)
    net = network(nn.BatchNorm1d(16), nn.Dropout(0.1), dtype=torch.float32)
    callbacks = [EMA(0.9), SWA(loader, start=0.5), BestWeights(), EarlyStopping(patience=1)]
    trainer = trainer_for(
        net, callbacks=callbacks, metrics=MulticlassAccuracy(2), log_dir=f"{folder}/log", clip_grad_norm=1.0
    )
    found["is the module"] = trainer.model is net, list(net.state_dict()), str(inspect.signature(net.forward))
    history = trainer.fit(loader, held_out, epochs=4)
    found["weights"] = list(net.state_dict().values())
    found["rows"] = [{name: row[name] for name in ("val/loss", "train/loss", "epoch")} for row in history.rows]
    result = trainer.interpret(held_out)
    found["interpretation"] = result.confusion, result.targets, result.probabilities
    export = trainer.export(f"{folder}/net.safetensors", held_out)
    trainer.save(f"{folder}/net.ckpt")
    found["files"] = export.exists()
    trainer.load(f"{folder}/net.ckpt")
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied[0].weight.zero_()
    inputs = samples(4, torch.float32).tensors[0]
    found["copy"] = (
        torch.equal(copied(inputs), net(inputs)),
        torch.equal(pickle.loads(pickle.dumps(net)).eval()(inputs), net.eval()(inputs)),
    )
    pictures = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % 3)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    mixed = trainer_for(small)
    mixed.fit(Mixed(DataLoader(pictures, 4, shuffle=True), num_classes=3), epochs=2)
    found["mixed"] = weights_of(small), mixed.step
    return found


def test_what_is_built_on_the_loop(tmp_path):
    first, second = values(launch(2, around, str(tmp_path)))
    assert first["is the module"][0]
    assert first["is the module"][1][0] == "0.weight"
    assert first["is the module"][2] == "(input)"
    for name in ("weights", "interpretation"):
        assert all(torch.equal(one, other) for one, other in zip(first[name], second[name], strict=True)), name
    assert first["rows"] == second["rows"]
    assert torch.equal(first["interpretation"][1], samples(53, torch.float32).tensors[1])
    assert first["copy"] == (False, True)
    assert first["mixed"][1] == 6
    assert distance(first["mixed"][0], second["mixed"][0]) == 0
    events = list((tmp_path / "log").rglob("events*"))
    assert len(events) == 1


def fine_tuned(rank: int, batch: int) -> tuple:
    """Kept features, then all layers: other parameters are trained than before."""
    net = network(nn.BatchNorm1d(16))
    trainer = trainer_for(net)
    loader = DataLoader(samples(96), batch, shuffle=True)
    tuned = trainer.fine_tune(loader, epochs=1, freeze_epochs=3, lr=(0.1, 0.01), head="3", cache=True)
    return weights_of(net), trainer.step, tuned.notes


def test_each_process_computes_its_share_of_kept_features():
    alone = fine_tuned(0, 24)
    first, second = values(launch(2, fine_tuned, 12))
    assert first[1] == second[1] == alone[1] == 16
    assert distance(first[0], second[0]) == 0
    assert distance(first[0], alone[0]) < 1e-10
    assert first[2][0].partition(" in memory")[0] == alone[2][0].partition(" in memory")[0]


def test_a_world_of_one_is_none():
    engine = DistributedEngine("cpu")
    net = network()
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        engine=engine,
        progress=False,
        seed=3,
    )
    trainer.fit(DataLoader(samples(96), 16, shuffle=True), epochs=2)
    alone = network()
    other = trainer_for(alone)
    other.fit(DataLoader(samples(96), 16, shuffle=True), epochs=2)
    assert isinstance(other.engine, LocalEngine)
    assert not isinstance(other.engine, DistributedEngine)
    assert distance(weights_of(net), weights_of(alone)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "dpd"}, "strategy: got 'dpd'.*did you mean 'ddp'"),
        ({"device": "cpu", "sync_batch_norm": True}, "sync_batch_norm: .*accelerators only"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises(ValueError, match=message):
        DistributedEngine(**options)
