from __future__ import annotations

import pytest
import torch

from mxtorch import schedules


def test_a_schedule_gets_the_length_of_the_run(net, loader, make):
    trainer = make(net)
    trainer.fit(loader, epochs=3, lr=0.3, schedule=schedules.OneCycle())
    assert trainer.optimizer.schedule == schedules.OneCycle(24)
    assert trainer.optimizer.base_learning_rate == 0.3
    trainer.fit(loader, epochs=1, schedule=schedules.Constant())
    assert trainer.optimizer.current_steps == 8
    assert trainer.epoch == 4


def test_torch_schedulers(net, loader, make):
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


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "fast"])
def test_bad_rates(net, loader, lr, make):
    trainer = make(net)
    with pytest.raises((ValueError, TypeError), match="lr: got"):
        trainer.fit(loader, lr=lr)
    for name in ("start_lr", "end_lr"):
        with pytest.raises((ValueError, TypeError), match=f"{name}: got"):
            trainer.find_lr(loader, **{name: lr})


def test_a_rate_that_was_not_found_is_no_rate(make, net, loader):
    trainer = make(net)
    with pytest.raises(ValueError, match="lr: got None"):
        trainer.fit(loader, lr=None)
    trainer.fit(loader, lr="keep")
    assert trainer.optimizer.learning_rate == 0.1


class Found:
    """What a search found for a constant rate."""

    def __init__(self, status="ok"):
        self.status, self.advice = status, "It rests on little."
        self.asked_for = []

    def suggestion_for(self, schedule):
        self.asked_for.append(schedule)
        return 0.03


def test_what_was_found_is_taken_for_the_schedule_in_force(make, net, loader):
    trainer, found = make(net), Found()
    one_cycle = schedules.OneCycle(1000)
    for schedule in (None, "one_cycle", one_cycle):
        trainer.fit(loader, lr=found, schedule=schedule)
        assert trainer.optimizer.base_learning_rate == 0.03
    trainer.optimizer.schedule = one_cycle
    trainer.fit(loader, lr=found)
    names = [one if isinstance(one, str) else schedules.name_of(one) for one in found.asked_for]
    assert names == ["constant", "one_cycle", "one_cycle", "one_cycle"]


def test_a_guess_is_trained_with_and_a_warning_says_so(make, net, loader):
    trainer = make(net)
    with pytest.warns(UserWarning, match=r"3\.0e-02 that is no more than a guess\. It rests on little") as warned:
        trainer.fit(loader, lr=Found("guess"))
    assert trainer.optimizer.base_learning_rate == 0.03
    assert warned[0].filename == __file__


def test_a_schedule_can_be_a_function_but_no_class(make, net, loader):
    trainer = make(net)
    trainer.fit(loader, schedule=lambda step: 0.5)
    assert trainer.optimizer.learning_rate == 0.05
    with pytest.raises(TypeError, match="give an instance, OneCycle"):
        trainer.fit(loader, schedule=schedules.OneCycle)
