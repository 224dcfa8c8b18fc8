"""What users give wrongly: argument, value, message; told by a clear error before any state changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mxtorch import ScheduledOptim, Trainer, schedules
from mxtorch.callbacks import Checkpoint

NAN, INF = math.nan, math.inf


class Words:
    """No number, no callable, no path."""

    def __repr__(self):
        return "Words()"


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


def data():
    return DataLoader(TensorDataset(torch.ones(8, 4), torch.tensor([0, 1] * 4)), 4)


def other_optimizer():
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)


# To the constructor of Trainer.
TRAINER = [
    ("model", Words(), r"model: got Words\(\)"),
    ("model", "resnet", "model: got 'resnet'"),
    ("model", nn.ReLU(), "without trainable parameters"),
    ("loss", "mse", "loss: got 'mse'; give a function or module"),
    ("loss", 3, "loss: got 3"),
    ("optimizer", "adam", "optimizer: got 'adam'"),
    ("optimizer", None, "optimizer: got None"),
    ("optimizer", other_optimizer(), "holds none of the model's trainable parameters"),
    ("metrics", "accuracy", "metrics: got 'accuracy'"),
    ("metrics", {"accuracy": 3}, "metrics: got"),
    ("metrics", {}, "metrics: got {}"),
    ("train_metrics", [1], "train_metrics: got"),
    ("callbacks", [print], "callbacks: got"),
    ("callbacks", [Checkpoint], "callbacks: got"),
    ("log_dir", "/proc/nowhere/run", "log_dir: '/proc/nowhere/run' can't be written"),
    ("device", "cudda", "did you mean 'cuda'"),
    ("device", "cuda:99", "CUDA devices"),
    ("device", 7.5, "device: got 7.5"),
    ("precision", "fp32x", "did you mean 'fp32'"),
    ("precision", "half", "precision: got 'half'"),
    ("precision", None, "precision: got None"),
    ("accumulate", 0, "accumulate: got 0; give an integer of at least 1"),
    ("accumulate", 2.0, "accumulate: got 2.0"),
    ("accumulate", True, "accumulate: got True"),
    ("accumulate", "2", "accumulate: got '2'"),
    ("clip_grad_norm", 0, "clip_grad_norm: got 0.0; give a finite positive number"),
    ("clip_grad_norm", -1, "clip_grad_norm: got -1"),
    ("clip_grad_norm", NAN, "clip_grad_norm: got nan"),
    ("clip_grad_norm", "1", "clip_grad_norm: got '1'"),
    ("channels_last", "yes", "channels_last: got 'yes'"),
    ("on_nonfinite", "skipp", "did you mean 'skip'"),
    ("on_nonfinite", None, "on_nonfinite: got None"),
    ("log_every", 0, "log_every: got 0"),
    ("log_every", 1.5, "log_every: got 1.5"),
]

# To fit.
FIT = [
    ("train_data", Words(), r"train_data: got Words\(\)"),
    ("train_data", None, "train_data: got None"),
    ("train_data", 5, "train_data: got 5"),
    ("train_data", [], "train_data: got a loader that yields no batches"),
    ("train_data", DataLoader(Empty(), 2), "train_data: got a loader that yields no batches"),
    ("train_data", TensorDataset(torch.ones(3, 4)), "wrap it in a torch.utils.data.DataLoader"),
    ("train_data", iter([1, 2]), "can be read only once"),
    ("train_data", [torch.ones(4, 9)], "could not take the first batch"),
    ("train_data", [(torch.ones(4, 9), torch.zeros(4).long())], "could not take the first batch"),
    ("train_data", [(torch.ones(4, 4), torch.full((4,), 7))], "labels: got 7 to 7"),
    ("train_data", [(torch.ones(4, 4), torch.full((4,), -1))], "labels: got -1 to -1"),
    ("train_data", [{"pixels": torch.ones(4, 4), "labels": torch.zeros(4).long()}], "'pixels'"),
    ("train_data", ["a text"], "could not take the first batch"),
    ("val_data", 5, "val_data: got 5"),
    ("val_data", [], "val_data: got a loader that yields no batches"),
    ("val_data", iter([1]), "val_data: got list_iterator, which can be read only once"),
    ("val_data", TensorDataset(torch.ones(3, 4)), "val_data: got a data set"),
    ("epochs", 0, "epochs: got 0"),
    ("epochs", -3, "epochs: got -3"),
    ("epochs", 1.0, "epochs: got 1.0"),
    ("epochs", "3", "epochs: got '3'"),
    ("lr", None, "lr: got None; find_lr may have found no rate"),
    ("lr", 0, "lr: got 0.0"),
    ("lr", -0.1, "lr: got -0.1"),
    ("lr", NAN, "lr: got nan"),
    ("lr", INF, "lr: got inf"),
    ("lr", "high", "lr: got 'high'"),
    ("lr", True, "lr: got True"),
    ("lr", torch.ones(2), r"lr: got tensor\(\[1., 1.\]\)"),
    ("schedule", "one-cycel", "did you mean 'one_cycle'"),
    ("schedule", 3, "schedule: got 3"),
    ("schedule", schedules.OneCycle, "schedule: got the class OneCycle"),
    ("schedule", lambda step: NAN, "gives nan for step 0"),
    ("schedule", lambda step: -1, "gives -1.0 for step 0"),
    ("schedule", schedules.WarmupCosine(warmup_steps=50), "warmup_steps: got 50"),
    ("schedule", torch.optim.lr_scheduler.StepLR(other_optimizer(), 2), "got a scheduler of another optimizer"),
    ("schedule_every", "step", "schedule_every: only for torch.optim.lr_scheduler"),
    ("steps_per_epoch", 0, "steps_per_epoch: got 0"),
    ("steps_per_epoch", 2.5, "steps_per_epoch: got 2.5"),
    ("resume", 3, "resume: got 3; give the path of a checkpoint, or 'auto'"),
    ("resume", True, "resume: got True"),
    ("resume", "auto", "no callback is a Checkpoint"),
]

# To find_lr.
FIND_LR = [
    ("start_lr", 0, "start_lr: got 0"),
    ("start_lr", NAN, "start_lr: got nan"),
    ("start_lr", 10, "start_lr: got 10.0, which is not below end_lr, 10"),
    ("end_lr", -1, "end_lr: got -1"),
    ("end_lr", "10", "end_lr: got '10'"),
    ("num_steps", 1, "num_steps: got 1"),
    ("num_steps", 50.0, "num_steps: got 50.0"),
    ("budget", 0.2, "budget: got num_steps, too; give one of the two"),
    ("epochs", 0, "epochs: got 0"),
    ("epochs", 2.5, "epochs: got 2.5"),
    ("training_steps", 0, "training_steps: got 0"),
    ("method", "sweeep", "method: got 'sweeep'; did you mean 'sweep'"),
    ("method", 3, "method: got 3"),
    ("watch", 3, "watch: got 3"),
    ("schedule", "constantt", "did you mean 'constant'"),
    ("train_data", iter([1]), "can be read only once"),
    ("train_data", [torch.ones(4, 9)], "could not take the first batch"),
]

# To Checkpoint.
CHECKPOINT = [
    ("folder", 3, "folder: got 3"),
    ("every", 0, "every: got 0"),
    ("every", -5, "every: got -5"),
    ("every", 1.5, "every: got 1.5"),
    ("every", "step", "every: got 'step'; give a number of steps, or 'epoch'"),
    ("every", None, "every: got None"),
    ("keep", 0, "keep: got 0"),
    ("keep", "all", "keep: got 'all'"),
    ("monitor", None, "monitor: got None"),
    ("monitor", "", "monitor: got ''"),
    ("mode", "mni", "did you mean 'min'"),
    ("mode", None, "mode: got None"),
]


def build(**given):
    torch.manual_seed(0)
    net = given.pop("model", nn.Linear(4, 2))
    if "optimizer" not in given:
        parameters = list(net.parameters()) if isinstance(net, nn.Module) else []
        given["optimizer"] = torch.optim.SGD(parameters or [nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    options = {"loss": nn.CrossEntropyLoss(), "device": "cpu", "progress": False} | given
    return Trainer(net, options.pop("loss"), options.pop("optimizer"), **options)


def state_of(trainer):
    return copy.deepcopy(
        [
            [parameter.tolist() for parameter in trainer.model.parameters()],
            trainer.optimizer.state_dict(),
            trainer.optimizer.schedule,
            trainer.model.training,
            (trainer.step, trainer.epoch, trainer.skipped_steps, trainer.run),
            trainer.history.rows,
            torch.get_rng_state().tolist(),
        ]
    )


def names(cases):
    return [f"{argument}={str(value)[:20]}" for argument, value, _ in cases]


def test_there_are_enough_of_them():
    assert len(TRAINER) + len(FIT) + len(FIND_LR) + len(CHECKPOINT) >= 80


@pytest.mark.parametrize(("argument", "value", "message"), TRAINER, ids=names(TRAINER))
def test_of_the_trainer(argument, value, message):
    random = torch.get_rng_state()
    parameters = [parameter.clone() for parameter in value.parameters()] if isinstance(value, nn.Module) else []
    torch.set_rng_state(random)
    with pytest.raises((ValueError, TypeError), match=message):
        build(**{argument: value})
    assert all(torch.equal(a, b) for a, b in zip(parameters, getattr(value, "parameters", list)(), strict=True))


@pytest.mark.parametrize(("argument", "value", "message"), FIT, ids=names(FIT))
def test_of_fit(argument, value, message):
    trainer = build()
    arguments = {"train_data": data(), "epochs": 2, "lr": 0.5, "schedule": "one_cycle"}
    if argument in ("schedule", "schedule_every", "train_data"):
        arguments |= {"lr": "keep", "schedule": None}
    if argument == "schedule" and isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        arguments |= {"schedule_every": "step"}
    arguments[argument] = value
    before = state_of(trainer)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit(arguments.pop("train_data"), **arguments)
    assert state_of(trainer) == before


@pytest.mark.parametrize(("argument", "value", "message"), FIND_LR, ids=names(FIND_LR))
def test_of_find_lr(argument, value, message):
    trainer = build()
    before = state_of(trainer)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.find_lr(**{"train_data": data(), "num_steps": 40, "end_lr": 10, argument: value})
    assert state_of(trainer) == before


@pytest.mark.parametrize(("argument", "value", "message"), CHECKPOINT, ids=names(CHECKPOINT))
def test_of_checkpoint(argument, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Checkpoint(**{"folder": "anywhere", argument: value})


def test_rates_of_the_optimizer():
    optimizer = ScheduledOptim(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    for value in (0, -1, NAN, INF, "1", None, True):
        with pytest.raises((ValueError, TypeError), match="lr: got"):
            optimizer.set_learning_rate(value)
    assert optimizer.learning_rate == 0.1
