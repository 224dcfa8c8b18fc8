"""The search without a trainer, of plain objects and of a function: the same rate, no trace, what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_loops import LOSS, QUICK, TASKS, Loop, convolutional, pictures, same
from torch import nn

import mxtorch
from mxtorch import ScheduledOptim, StepOutput, Trainer, schedules


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


def test_held_out_losses_may_be_numbers():
    found = []
    for convert in (lambda loss: loss, float, lambda loss: StepOutput(float(loss))):
        loop = Loop()
        found.append(loop.find(evaluate=lambda batch, loop=loop, convert=convert: convert(loop.loss(batch))))
    assert found[0].suggestion == pytest.approx(found[1].suggestion)
    assert found[1].trials == found[2].trials


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


def test_of_several_validation_sets_the_first_one_is_judged():
    found = []
    for name in (None, "clean"):
        loop = Loop()
        sets = loop.val_data if name is None else {name: loop.val_data, "others": loop.train_data}
        plain = mxtorch.find_lr(loop.net, loop.optimizer, loop.train_data, sets, loss=LOSS, **QUICK)
        loop = Loop()
        by_step = loop.find(val_data=sets)
        found += [plain.trials, by_step.trials]
    assert found[0] == found[2]
    assert found[1] == found[3]


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
