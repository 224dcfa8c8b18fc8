"""A ScheduledOptim where torch and Accelerate expect an optimizer: hooks, schedulers, scalers, closures."""

from __future__ import annotations

import copy

import pytest
import torch
from small_optimizers import give_gradients, make
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import ScheduledOptim, schedules


def test_hooks_fire_once():
    optimizer = make(0.1)
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    give_gradients(optimizer)
    optimizer.step()
    assert fired == ["pre", "post"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("StepLR", {"step_size": 2}),
        ("MultiStepLR", {"milestones": [2, 3]}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("CosineAnnealingLR", {"T_max": 5}),
        ("CosineAnnealingWarmRestarts", {"T_0": 2}),
        ("LinearLR", {}),
        ("PolynomialLR", {"total_iters": 5}),
        ("LambdaLR", {"lr_lambda": lambda step: 0.9**step}),
        ("OneCycleLR", {"max_lr": 0.5, "total_steps": 10}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5}),
        ("ConstantLR", {"total_iters": 3}),
        ("MultiplicativeLR", {"lr_lambda": lambda step: 0.9}),
    ],
)
def test_torch_schedulers_take_it(kind, settings):
    def rates(wrap):
        plain = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
        optimizer = ScheduledOptim(plain) if wrap else plain
        scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **settings)
        result = []
        for _ in range(6):
            give_gradients(optimizer)
            optimizer.step()
            scheduler.step()
            result.append(plain.param_groups[0]["lr"])
        return result

    assert rates(True) == rates(False)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own SequentialLR uses it
@pytest.mark.parametrize("kind", ["sequential", "chained", "swa"])
def test_torch_schedulers_of_schedulers_take_it(kind):
    optimizer = make(0.1)
    if kind == "swa":
        scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    else:
        parts = [lr_scheduler.ConstantLR(optimizer, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        scheduler = (
            lr_scheduler.SequentialLR(optimizer, parts, [2])
            if kind == "sequential"
            else lr_scheduler.ChainedScheduler(parts, optimizer)
        )
    for _ in range(4):
        give_gradients(optimizer)
        optimizer.step()
        scheduler.step()
    assert optimizer.learning_rate == scheduler.get_last_lr()[0] != 0.1
    assert optimizer.current_steps == 4
    assert copy.deepcopy(optimizer).current_steps == 4, "also with the step that a scheduler has patched"


def test_reduce_on_plateau_takes_it():
    optimizer = make(0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.learning_rate < 0.1


@pytest.mark.parametrize(
    ("kind", "settings"), [(torch.optim.SGD, {}), (torch.optim.Adam, {"fused": True})], ids=["plain", "fused"]
)
def test_a_step_that_the_scaler_skips_does_not_count(kind, settings):
    optimizer = make(0.1, kind=kind, schedule=schedules.Polynomial(10), **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    parameter = optimizer.param_groups[0]["params"][0]
    for factor, steps in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.current_steps == steps
    assert scaler.get_scale() == 2.0


def test_accelerate_prepares_it():
    accelerate = pytest.importorskip("accelerate")
    net = nn.Linear(4, 1)
    optimizer = ScheduledOptim(torch.optim.Adam(net.parameters(), lr=0.1), schedules.Polynomial(4))
    accelerator = accelerate.Accelerator(cpu=True)
    prepared_net, prepared = accelerator.prepare(net, optimizer)
    before = net.weight.clone()
    accelerator.backward(prepared_net(torch.randn(8, 4)).sum())
    prepared.step()
    assert not torch.equal(before, net.weight)
    assert optimizer.current_steps == 1
    prepared.eval()  # of optimizers that have it; this one has not
    twin = ScheduledOptim(torch.optim.Adam(nn.Linear(4, 1).parameters(), lr=0.3))
    twin.load_state_dict(prepared.state_dict())
    assert (twin.schedule, twin.current_steps) == (schedules.Polynomial(4), 1)


def test_lbfgs_calls_its_closure():
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = ScheduledOptim(torch.optim.LBFGS([parameter], lr=0.5))

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(5):
        optimizer.step(closure)
    assert first.item() == 13.0
    assert closure().item() < 1e-6


@pytest.mark.parametrize("of_the_inner", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    ],
)
@pytest.mark.parametrize("schedule", [schedules.Constant(), schedules.OneCycle(100), lambda step: 1.0])
def test_a_scheduler_beside_a_schedule_is_warned_of_once(build, schedule, of_the_inner):
    optimizer = make(0.1)
    optimizer.schedule = schedule
    build(optimizer.optimizer if of_the_inner else optimizer)
    with pytest.warns(UserWarning, match="the scheduler has no effect"):
        optimizer.step()
    optimizer.step()


def test_a_schedule_after_a_scheduler_is_nothing_to_warn_of():
    optimizer = make(0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    optimizer.step()
    scheduler.step()
    optimizer.schedule = schedules.OneCycle(100)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twin.step()
