"""The search without a trainer: of plain objects, and of a function that takes a step."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mxtorch
from mxtorch import ScheduledOptim, Trainer, schedules
from mxtorch.lr_finder import find
from mxtorch.training.supervised import StepOutput

LOSS = nn.CrossEntropyLoss()
QUICK = {"training_steps": 60, "num_steps": 240, "progress": False}


def points(count=320):
    torch.manual_seed(0)
    inputs = torch.randn(count, 8)
    return TensorDataset(inputs, (inputs[:, :3].sum(1) > 0).long())


def pictures(count=160):
    torch.manual_seed(0)
    inputs = torch.randn(count, 3, 8, 8)
    return TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())


class SmallTransformer(nn.Module):
    """Eight tokens of one number each."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.encode = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, inputs):
        return self.head(self.encode(self.embed(inputs[..., None])).mean(1))


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


TASKS = {"transformer": (SmallTransformer, points), "cnn": (convolutional, pictures)}


SEEN: set = set()  # what a step wrote down; what it closes over would be put back


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


class Loop:
    """A loop of one's own, over a network, an optimizer and two loaders, always made alike."""

    def __init__(self, network=perceptron, data=points, optimizer=torch.optim.AdamW, **settings):
        samples = data()
        torch.manual_seed(1)
        self.net = network()
        self.optimizer = optimizer(self.net.parameters(), **{"lr": 1e-3} | settings)
        self.train_data = DataLoader(samples, 16, shuffle=True)
        self.val_data = DataLoader(samples, 40)
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    def loss(self, batch):
        inputs, targets = batch
        return LOSS(self.net(inputs), targets)

    def step(self, batch):
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss

    def find(self, step=None, **options):
        options = {"state": self.net, "evaluate": self.loss, "val_data": self.val_data} | QUICK | options
        return find(step or self.step, options.pop("optimizer", self.optimizer), self.train_data, **options)

    def train(self, epochs=2):
        self.net.train()
        for _ in range(epochs):
            for batch in self.train_data:
                self.step(batch)
        numbers = [torch.rand(1), torch.tensor(random.random()), torch.tensor(np.random.rand())]
        return [*(value.clone() for value in self.net.state_dict().values()), *numbers]


def same(values, others):
    return len(values) == len(others) and all(map(torch.equal, values, others))


# ---------------------------------------------------------------- the same rate, and no trace


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("task", TASKS)
def test_a_trainer_plain_objects_and_a_step_give_the_same(task, schedule):
    """To the last bit: the Trainer's memory format for convolutions is switched off, since it rounds otherwise."""
    options = {"training_steps": 60, "num_steps": 200, "schedule": schedule}
    loop = Loop(*TASKS[task])
    trainer = Trainer(loop.net, LOSS, loop.optimizer, device="cpu", progress=False, channels_last=False)
    expected = trainer.find_lr(loop.train_data, loop.val_data, **options)
    loop = Loop(*TASKS[task])
    plain = mxtorch.find_lr(
        loop.net, loop.optimizer, loop.train_data, loop.val_data, loss=LOSS, progress=False, **options
    )
    by_step = Loop(*TASKS[task]).find(**options)
    assert len(expected.trials) >= 6
    assert plain.trials == by_step.trials == expected.trials
    assert plain.reading == by_step.reading == expected.reading


def test_a_range_test_gives_the_same():
    options = {"method": "sweep", "num_steps": 60, "progress": False}
    loop = Loop()
    plain = mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, loop.val_data, loss=LOSS, **options)
    by_step = Loop().find(**options)
    assert len(plain.losses) >= 20
    assert plain.sweep == by_step.sweep


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    optimizer=st.sampled_from([torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]),
    method=st.sampled_from(["trials", "sweep"]),
    judged=st.booleans(),
    begun=st.booleans(),
    plain=st.booleans(),
    wrapped=st.booleans(),
)
def test_training_goes_on_as_without_a_search(optimizer, method, judged, begun, plain, wrapped):
    trainings = []
    for searches in (False, True):
        loop = Loop(optimizer=optimizer)
        if wrapped:
            loop.optimizer = ScheduledOptim(loop.optimizer, schedules.OneCycle(40))
        if begun:
            loop.train(1)
        options = {"method": method, "num_steps": 40, "training_steps": 20, "progress": False}
        if searches and plain:
            mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, loss=LOSS, **options)
        elif searches:
            loop.find(evaluate=loop.loss if judged else None, **options)
        trainings.append(loop.train())
    assert same(*trainings)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_changed_after_an_error(error):
    loop = Loop()
    calls = []

    def step(batch):
        calls.append(1)
        loss = loop.step(batch)
        if len(calls) == 30:
            raise error("enough")
        return loss

    with pytest.raises(error, match="enough"):
        loop.find(step)
    assert same(loop.train(), Loop().train())
    assert not loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_post_hooks


def test_what_a_step_closes_over_is_put_back():
    """A moving average, a counter and a generator are found in the variables of the function."""
    loop = Loop()
    average, count, chance = copy.deepcopy(loop.net), 0, np.random.default_rng(0)

    def step(batch):
        nonlocal count
        count += 1
        loss = loop.step([batch[0] + torch.from_numpy(chance.normal(size=batch[0].shape)).float(), batch[1]])
        with torch.no_grad():
            for mean, value in zip(average.parameters(), loop.net.parameters(), strict=True):
                mean.lerp_(value, 0.1)
        return loss

    before = copy.deepcopy(average.state_dict())
    loop.find(step)
    assert count == 0
    assert same(list(before.values()), list(average.state_dict().values()))
    assert chance.normal() == np.random.default_rng(0).normal()


def test_gradients_that_were_there_stay():
    """A loop may clear them after its step, or to zero."""
    loop = Loop()

    def step(batch):
        loss = loop.loss(batch)
        loss.backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=False)
        return loss

    loop.loss(next(iter(loop.train_data))).backward()
    held = [parameter.grad for parameter in loop.net.parameters()]
    before = [gradient.clone() for gradient in held]
    loop.find(step)
    assert all(parameter.grad is gradient for parameter, gradient in zip(loop.net.parameters(), held, strict=True))
    assert same(held, before)


# ---------------------------------------------------------------- loops of several kinds


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


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state": None}, TypeError, "state: got None; give the model"),
        ({"state": ()}, TypeError, "state"),
        ({"state": nn.Linear(2, 2)}, ValueError, "the optimizer holds no parameter"),
        ({"optimizer": object()}, TypeError, "optimizer"),
        ({"evaluate": 3}, TypeError, "evaluate: got 3"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"usual_lr": -1.0}, ValueError, "usual_lr"),
        ({"epoch": 3}, TypeError, "epoch: there is no such option; did you mean 'epochs'"),
        ({"val_data": []}, ValueError, "val_data"),
        ({"step": 5}, TypeError, "step: got 5"),
        ({"schedule": "one_cicle"}, ValueError, "one_cycle"),
        ({"begin": 5}, TypeError, "begin: got 5"),
    ],
)
def test_wrong_arguments(options, error, message):
    loop = Loop()
    step = options.pop("step", None)
    with pytest.raises(error, match=message):
        loop.find(step, **options)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [("a loss", TypeError, "step: it returned str"), (torch.zeros(3), ValueError, r"shape \[3\]")],
)
def test_what_is_no_loss(returned, error, message):
    loop = Loop()

    def step(batch):
        loop.step(batch)
        return returned

    with pytest.raises(error, match=message):
        loop.find(step)


def test_a_step_that_never_steps_the_optimizer():
    loop = Loop()
    with pytest.raises(ValueError, match="step took no step"):
        loop.find(loop.loss)


def test_a_step_without_a_loss():
    loop = Loop()
    with pytest.raises(ValueError, match="step: it gave no loss"):
        loop.find(lambda batch: None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": nn.MSELoss}, TypeError, "give an instance"),
        ({"precision": "fp8"}, ValueError, "precision"),
        ({"clip_grad_norm": 0}, ValueError, "clip_grad_norm"),
        ({"epochs": 0}, ValueError, "epochs"),
    ],
)
def test_wrong_arguments_of_plain_objects(options, error, message):
    loop = Loop()
    with pytest.raises(error, match=message):
        mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, **{"loss": LOSS, "progress": False} | options)


def test_the_device_and_the_memory_format_stay():
    loop = Loop(convolutional, pictures)
    strides = [parameter.stride() for parameter in loop.net.parameters()]
    mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, loss=LOSS, **QUICK)
    assert [parameter.stride() for parameter in loop.net.parameters()] == strides


def test_clipping_and_precision_are_those_of_the_trainer():
    options = {"clip_grad_norm": 0.1, "precision": "bf16", "accumulate": 2}
    loop = Loop()
    trainer = Trainer(loop.net, LOSS, loop.optimizer, device="cpu", progress=False, **options)
    expected = trainer.find_lr(loop.train_data, loop.val_data, training_steps=60, num_steps=100)
    loop = Loop()
    found = mxtorch.find_lr(
        loop.net, loop.optimizer, loop.train_data, loop.val_data, loss=LOSS, **options, **QUICK | {"num_steps": 100}
    )
    assert found.trials == expected.trials
