"""What the trainings of a search do with unusual batches, losses and networks, through `Trainer.find_lr`."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer
from mxtorch.engines import LocalEngine

METHODS = [{"method": "trials", "num_steps": 500}, {"method": "sweep", "num_steps": 60}]


def points(labels=None):
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() if labels is None else labels)


def make(network, loss, kind=Trainer, **options):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return kind(network, loss, optimizer, device="cpu", progress=False, **options)


def search(trainer, data, method):
    return trainer.find_lr(DataLoader(data, 16, shuffle=True), training_steps=60, end_lr=10.0, **method)


class EveryThirdWithoutLoss(Trainer):
    asked = 0

    def training_step(self, batch):
        EveryThirdWithoutLoss.asked += 1
        if EveryThirdWithoutLoss.asked % 3 == 0:
            return None
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])


class WithoutLoss(Trainer):
    def training_step(self, batch):
        return None


@pytest.mark.parametrize("method", METHODS, ids=["trials", "sweep"])
def test_batches_without_a_loss_are_passed_over(method):
    found = search(make(nn.Linear(8, 2), None, EveryThirdWithoutLoss), points(), method)
    assert found.status in ("ok", "guess", "range_too_short")
    assert all(math.isfinite(trial.loss) for trial in found.trials if trial.rate <= 1)


def test_no_batch_with_a_loss_is_an_error():
    with pytest.raises(ValueError, match="no loss"):
        search(make(nn.Linear(8, 2), None, WithoutLoss), points(), METHODS[0])


@pytest.mark.parametrize("method", METHODS, ids=["trials", "sweep"])
def test_held_out_batches_weigh_what_their_loss_is_a_mean_of(method):
    """Batches whose labels are all ignored have a loss that is NaN; others weigh their labels that are not."""
    labels = (points().tensors[0][:, 0] > 0).long()
    labels[::3] = -100
    held_out = torch.full((64,), -100)
    held_out[:16] = labels[1::3][:16]
    inputs = points().tensors[0]
    validation = DataLoader(TensorDataset(torch.cat([inputs[1::3][:16], inputs[:48]]), held_out), 16)
    trainer = make(nn.Linear(8, 2), nn.CrossEntropyLoss())
    found = trainer.find_lr(
        DataLoader(points(labels), 16, shuffle=True), validation, training_steps=60, end_lr=10.0, **method
    )
    assert found.suggestion is not None
    assert all(math.isfinite(trial.loss) for trial in found.trials if trial.rate <= 1)


class ViewsInEvaluation(nn.Module):
    """Can't take the channels-last format in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8 * 6 * 6, 2)

    def forward(self, inputs):
        maps = self.convolution(inputs)
        return self.head(maps.flatten(1) if self.training else maps.view(len(maps), -1))


@pytest.mark.parametrize("method", METHODS, ids=["trials", "sweep"])
def test_a_memory_format_that_only_evaluation_cannot_take_is_left(method):
    torch.manual_seed(0)
    inputs = torch.randn(128, 3, 8, 8)
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    trainer = make(ViewsInEvaluation(), nn.CrossEntropyLoss(), channels_last="auto")
    assert search(trainer, data, method).suggestion is not None


class ModesOfLoss(nn.Module):
    seen: ClassVar[set[tuple[bool, bool]]] = set()

    def forward(self, outputs, targets):
        ModesOfLoss.seen.add((self.training, torch.is_grad_enabled()))
        return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("method", METHODS, ids=["trials", "sweep"])
def test_a_loss_with_modes_judges_in_evaluation_mode(method):
    ModesOfLoss.seen.clear()
    trainer = make(nn.Linear(8, 2), ModesOfLoss())
    search(trainer, points(), method)
    assert ModesOfLoss.seen == {(True, True), (False, False)}
    assert trainer.loss.training


ASKED: list[bool] = []  # which no trainer holds, as a search puts that back


class Counting(LocalEngine):
    """Counts how often the processes would have to agree."""

    def agree(self, flag):
        ASKED.append(flag)
        return bool(flag)


class StepsAnotherOne(Trainer):
    """Steps the optimizer `"second"` in every third step, or in none."""

    every, batches = 3, 0

    def training_step(self, batch):
        output = super().training_step(batch)
        self.batches += 1
        if self.batches % self.every == 0:
            self.other_optimizers["second"].step()
        return output


def stepping_another_one(every):
    network = nn.Linear(8, 2)
    second = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = StepsAnotherOne(
        network,
        nn.CrossEntropyLoss(),
        optimizer,
        other_optimizers={"second": second},
        engine=Counting("cpu"),
        progress=False,
    )
    trainer.every = every
    return trainer


def test_processes_agree_whether_an_optimizer_steps_only_where_it_may_not():
    """In a training of one process alone they can't, so what is asked in a training depends on no earlier one."""
    data = DataLoader(points(), 16)
    ASKED.clear()
    trainer = stepping_another_one(3)
    found = trainer.find_lr(data, optimizer="second", training_steps=60, num_steps=500)
    assert max(trial.steps for trial in found.trials) == 60
    assert ASKED == [True]  # at the end
    trainer = stepping_another_one(10**6)
    with pytest.raises(ValueError, match="training_step took no step with it"):
        trainer.find_lr(data, optimizer="second", training_steps=60, num_steps=500)
