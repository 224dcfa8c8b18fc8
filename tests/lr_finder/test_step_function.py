"""The search for loops of several kinds, each given as a function that takes a step."""

from __future__ import annotations

import pytest
import torch
from own_loops import LOSS, QUICK, SEEN, Loop, SmallTransformer, perceptron
from torch import nn

import mxtorch
from mxtorch import ScheduledOptim, schedules
from mxtorch.training.supervised import StepOutput


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def test_groups_keep_their_ratios():
    loop = Loop()
    layers = [{"params": loop.net[0].parameters(), "lr": 1e-3}, {"params": loop.net[4].parameters(), "lr": 1e-4}]
    loop.optimizer = torch.optim.SGD(layers)

    def step(batch):
        loss = loop.step(batch)
        SEEN.add(round(loop.optimizer.param_groups[0]["lr"] / loop.optimizer.param_groups[1]["lr"], 6))
        return loss

    loop.find(step)
    assert {10.0} == SEEN


def test_a_warm_up_that_begins_at_zero():
    """A scheduler of torch has set the rate to 0: the ratios are those that it began with."""
    loop = Loop(
        network=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(16, 2))
    )
    layers = [{"params": loop.net[0].parameters(), "lr": 1e-2}, {"params": loop.net[4].parameters(), "lr": 1e-3}]
    loop.optimizer = torch.optim.SGD(layers)
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda step: min(step / 10, 1.0))
    assert loop.optimizer.param_groups[0]["lr"] == 0
    found = loop.find()
    plain = mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, loop.val_data, loss=LOSS, **QUICK)
    assert found.suggestion == plain.suggestion
    assert found.suggestion is not None
    assert scheduler.get_last_lr() == [0, 0]
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0, 0]


def test_a_scheduler_that_is_stepped_after_the_optimizer():
    loop = Loop()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(loop.optimizer, 0.1, total_steps=50, cycle_momentum=False)

    def step(batch):
        loss = loop.step(batch)
        if scheduler.last_epoch < 49:
            scheduler.step()
        return loss

    found = loop.find(step, state=(loop.net, scheduler))
    assert scheduler.last_epoch == 0
    assert found.trials == Loop().find().trials


def test_a_scheduler_that_sets_the_rate_before_the_step_is_told():
    loop = Loop()

    def step(batch):
        loop.optimizer.param_groups[0]["lr"] = 0.01
        return loop.step(batch)

    with pytest.raises(ValueError, match=r"it set the rate to 0\.01 before"):
        loop.find(step)
    assert loop.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("given_as", ["wrapper", "inner"])
def test_the_schedule_of_a_wrapper(given_as):
    """It is set aside where the wrapper is given; where the wrapped one is, it would undo every rate."""
    loop = Loop()
    inner, loop.optimizer = loop.optimizer, ScheduledOptim(loop.optimizer, schedules.OneCycle(100))
    if given_as == "inner":
        with pytest.raises(ValueError, match="give the ScheduledOptim"):
            loop.find(optimizer=inner)
    else:
        assert loop.find().trials == Loop().find().trials
    assert isinstance(loop.optimizer.schedule, schedules.OneCycle)
    assert loop.optimizer.current_steps == 0


def test_accumulation():
    """Two batches to a step of the optimizer are the same as batches of twice the size."""
    loop, twice = Loop(network=SmallTransformer), Loop(network=SmallTransformer)
    twice.train_data = [
        tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*[iter(list(loop.train_data))] * 2, strict=True)
    ]
    loop.train_data = [
        part for batch in twice.train_data for part in zip(*(each.split(16) for each in batch), strict=True)
    ]
    for one in (loop, twice):
        one.net.encode.eval()  # no dropout

    def step(batches):
        SEEN.add(len(batches))
        loop.optimizer.zero_grad()
        losses = [loop.loss(batch) / len(batches) for batch in batches]
        for loss in losses:
            loss.backward()
        loop.optimizer.step()
        return sum(losses)

    found = loop.find(step, accumulate=2, val_data=None, evaluate=None)
    assert {2} == SEEN
    expected = twice.find(val_data=None, evaluate=None)
    assert [trial.rate for trial in found.trials] == [trial.rate for trial in expected.trials]
    losses = [trial.loss for trial in expected.trials]
    assert [trial.loss for trial in found.trials] == pytest.approx(losses, rel=1e-3)


def test_what_a_loop_does_before_its_first_step():
    loop = Loop()
    noise = [0.0]

    def begin():
        assert noise == [0.0]
        noise[0] = 0.5
        SEEN.add(loop.net.training)

    def step(batch):
        return loop.step([batch[0] * noise[0], batch[1]])

    assert loop.find(step, begin=begin).suggestion is not None
    assert {True} == SEEN
    assert noise == [0.0]


def test_a_frozen_teacher_stays_in_evaluation_mode():
    loop = Loop()
    teacher = perceptron().eval()
    loop.net.eval()  # as pretrained networks come: it is trained in training mode all the same

    def step(batch):
        SEEN.add((loop.net.training, teacher.training))
        return loop.step(batch)

    loop.find(step, state=(loop.net, teacher))
    assert {(True, False)} == SEEN
    assert not loop.net.training


def test_without_evaluate_training_losses_are_judged():
    found = Loop().find(evaluate=None, val_data=None)
    assert found.status == "guess"
    assert "evaluate was not given" in found.note


def test_what_evaluate_returns_may_weigh():
    """A batch whose targets are all ignored has a loss that is NaN, and weighs nothing."""
    loop = Loop()
    ignored = torch.full((40,), -100)
    loop.val_data = [next(iter(loop.val_data)), (torch.zeros(40, 8), ignored)]

    def evaluate(batch):
        outputs = loop.net(batch[0])
        return StepOutput(LOSS(outputs, batch[1]), outputs, batch[1], weight=float((batch[1] >= 0).sum()))

    found = loop.find(evaluate=evaluate, val_data=[*loop.val_data])
    assert found.suggestion is not None


@pytest.mark.parametrize("way", ["plain", "step"])
def test_a_network_that_has_learnt_everything_is_told(way):
    loop = Loop(network=lambda: nn.Sequential(nn.Linear(8, 2)))
    with torch.no_grad():
        loop.net[0].weight.copy_(torch.tensor([[-1.0] * 3 + [0.0] * 5, [1.0] * 3 + [0.0] * 5]) * 1e4)
        loop.net[0].bias.zero_()

    def evaluate(batch):
        outputs = loop.net(batch[0])
        return StepOutput(LOSS(outputs, batch[1]), outputs, batch[1])

    if way == "plain":
        found = mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, loop.val_data, loss=LOSS, **QUICK)
    else:
        found = loop.find(evaluate=evaluate, loss=LOSS)
    assert found.status == "already_trained"


class OfAnotherLibrary:
    """An optimizer that is none of torch: each step reads the rate from its groups."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.01}]

    def step(self):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
                parameter.grad = None


def test_an_optimizer_of_another_library():
    loop = Loop(optimizer=torch.optim.SGD, lr=0.01)
    other = OfAnotherLibrary(loop.net.parameters())

    def step(batch):
        loss = loop.loss(batch)
        loss.backward()
        other.step()
        return loss

    found = loop.find(step, optimizer=other, usual_lr=1e-2)
    expected = Loop(optimizer=torch.optim.SGD, lr=0.01).find()
    assert found.trials == expected.trials
    assert other.param_groups[0]["lr"] == 0.01
