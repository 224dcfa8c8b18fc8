from __future__ import annotations

import functools

import pytest
import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PlateauLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
    TanhLRScheduler,
)
from torch.utils.data import DataLoader

from mxtorch import Callback, CheckpointError, Trainer, schedules
from mxtorch.callbacks import Checkpoint


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
    with pytest.raises(ValueError, match="lr: StepLR keeps"):
        trainer.fit(loader, lr=0.1, schedule=scheduler, schedule_every="epoch")
    trainer.fit(loader, epochs=2, schedule=scheduler, schedule_every="epoch")
    assert trainer.optimizer.learning_rate == pytest.approx(0.025)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, patience=0, threshold=1e9)
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


@pytest.mark.parametrize("lr", ["fast", "kep", object()])
def test_what_is_no_rate_is_answered_with_all_that_may_be_given(net, loader, lr, make):
    with pytest.raises(TypeError, match="give a finite positive number, what find_lr returned, or 'keep'"):
        make(net).fit(loader, lr=lr)
    with pytest.raises(TypeError, match="parameter groups"):
        make(net).fit(loader, lr=[0.1, 0.2])


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


# ---------------------------------------------------------------- schedulers of torch and timm, resumed

CLASSES = torch.optim.lr_scheduler


def cyclic(optimizer, **options):
    return CLASSES.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=3, **options)


def sequential(optimizer, gamma=0.5, milestone=2):
    parts = [CLASSES.LinearLR(optimizer, 0.1), CLASSES.ExponentialLR(optimizer, gamma)]
    return CLASSES.SequentialLR(optimizer, parts, [milestone])


def warm_up(steps):
    return lambda step: min(1.0, (1 + step) / steps)


def falling(step, rate=0.5):
    return rate**step


class Falling:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate**step


CHANGED_SETTINGS = {
    "enclosed": (lambda o: CLASSES.LambdaLR(o, warm_up(4)), lambda o: CLASSES.LambdaLR(o, warm_up(8))),
    "partial": (
        lambda o: CLASSES.LambdaLR(o, functools.partial(falling, rate=0.5)),
        lambda o: CLASSES.LambdaLR(o, functools.partial(falling, rate=0.6)),
    ),
    "callable": (lambda o: CLASSES.LambdaLR(o, Falling(0.5)), lambda o: CLASSES.LambdaLR(o, Falling(0.6))),
    "multiplied": (
        lambda o: CLASSES.MultiplicativeLR(o, functools.partial(falling, rate=0.9)),
        lambda o: CLASSES.MultiplicativeLR(o, functools.partial(falling, rate=0.8)),
    ),
    "step": (lambda o: CLASSES.StepLR(o, 2, 0.5), lambda o: CLASSES.StepLR(o, 2, 0.4)),
    "step size": (lambda o: CLASSES.StepLR(o, 2, 0.5), lambda o: CLASSES.StepLR(o, 3, 0.5)),
    "multi-step": (lambda o: CLASSES.MultiStepLR(o, [1, 3]), lambda o: CLASSES.MultiStepLR(o, [1, 2])),
    "exponential": (lambda o: CLASSES.ExponentialLR(o, 0.9), lambda o: CLASSES.ExponentialLR(o, 0.8)),
    "cosine": (lambda o: CLASSES.CosineAnnealingLR(o, 4), lambda o: CLASSES.CosineAnnealingLR(o, 8)),
    "cosine's end": (lambda o: CLASSES.CosineAnnealingLR(o, 8), lambda o: CLASSES.CosineAnnealingLR(o, 8, 0.01)),
    "restarts": (
        lambda o: CLASSES.CosineAnnealingWarmRestarts(o, 2),
        lambda o: CLASSES.CosineAnnealingWarmRestarts(o, 3),
    ),
    "one cycle": (
        lambda o: CLASSES.OneCycleLR(o, 0.5, total_steps=8),
        lambda o: CLASSES.OneCycleLR(o, 0.5, total_steps=9),
    ),
    "peak": (lambda o: CLASSES.OneCycleLR(o, 0.5, total_steps=8), lambda o: CLASSES.OneCycleLR(o, 0.6, total_steps=8)),
    "cyclic": (cyclic, lambda o: cyclic(o, mode="triangular2")),
    "sequence": (sequential, lambda o: sequential(o, gamma=0.6)),
    "milestone": (sequential, lambda o: sequential(o, milestone=3)),
    "plateau": (
        lambda o: CLASSES.ReduceLROnPlateau(o, patience=3),
        lambda o: CLASSES.ReduceLROnPlateau(o, patience=4),
    ),
    "class": (lambda o: CLASSES.StepLR(o, 1, 0.5), lambda o: CLASSES.ExponentialLR(o, 0.5)),
    "timm": (lambda o: CosineLRScheduler(o, 4), lambda o: CosineLRScheduler(o, 8)),
    "timm's warm-up": (
        lambda o: CosineLRScheduler(o, 4, warmup_t=1),
        lambda o: CosineLRScheduler(o, 4, warmup_t=2),
    ),
}


def run(make, loader, folder, build, epochs, **options):
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 2)
    trainer = make(net, callbacks=[Checkpoint(folder)])
    scheduler = build(trainer.optimizer)
    every = {} if isinstance(scheduler, CosineLRScheduler) else {"schedule_every": "epoch"}
    trainer.fit(loader, epochs=epochs, resume="auto", **({"schedule": scheduler} | every | options))
    return trainer


@pytest.mark.parametrize("kind", CHANGED_SETTINGS)
def test_a_scheduler_with_other_settings_is_refused(make, loader, tmp_path, kind):
    first, second = CHANGED_SETTINGS[kind]
    run(make, loader, tmp_path, first, 2)
    with pytest.raises(CheckpointError, match="schedule is"):
        run(make, loader, tmp_path, second, 4)
    assert run(make, loader, tmp_path, first, 4).epoch == 4


@pytest.mark.parametrize("kind", CHANGED_SETTINGS)
def test_a_scheduler_goes_on_as_if_never_interrupted(make, two_moons, tmp_path, kind):
    build = CHANGED_SETTINGS[kind][0]
    data = DataLoader(two_moons, 32)
    run(make, data, tmp_path / "parts", build, 2)
    parts, whole = run(make, data, tmp_path / "parts", build, 4), run(make, data, tmp_path / "whole", build, 4)
    assert parts.history["learning_rate"] == whole.history["learning_rate"]
    assert torch.equal(parts.model.weight, whole.model.weight)


@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": None, "schedule_every": None},
        {"schedule_every": "step"},
        {"schedule": "one_cycle", "schedule_every": None},
    ],
)
def test_a_scheduler_that_is_used_otherwise_is_refused(make, loader, tmp_path, changed):
    build = CHANGED_SETTINGS["step"][0]
    run(make, loader, tmp_path, build, 2)
    with pytest.raises(CheckpointError, match="schedule"):
        run(make, loader, tmp_path, build, 4, **changed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (warm_up(4), warm_up(8)),
        (functools.partial(falling, rate=0.5), functools.partial(falling, rate=0.6)),
        (Falling(0.5), Falling(0.6)),
        (falling, warm_up(4)),
    ],
)
def test_a_function_with_other_numbers_is_refused(make, loader, tmp_path, first, second):
    def fit(schedule, epochs):
        trainer = make(torch.nn.Linear(8, 2), callbacks=[Checkpoint(tmp_path)])
        return trainer.fit(loader, epochs=epochs, schedule=schedule, resume="auto")

    fit(first, 1)
    with pytest.raises(CheckpointError, match="schedule is"):
        fit(second, 2)
    assert len(fit(first, 2)) == 2


@pytest.mark.parametrize("second", [None, lambda o: CLASSES.StepLR(o, 2), "one_cycle"])
@pytest.mark.parametrize("adam", [False, True])
def test_two_fits_of_which_the_first_cycles_momentum(loader, tmp_path, second, adam):
    def script(folder, kill):
        class Kill(Callback):
            def on_step(self, trainer):
                if kill and trainer.step == 20:
                    raise KeyboardInterrupt

        torch.manual_seed(0)
        net = torch.nn.Linear(8, 2)
        kind = torch.optim.AdamW if adam else torch.optim.SGD
        optimizer = kind(net.parameters(), lr=0.01, **({} if adam else {"momentum": 0.9}))
        checkpoint = Checkpoint(folder, every=3, keep=2)
        trainer = Trainer(
            net, torch.nn.CrossEntropyLoss(), optimizer, callbacks=[checkpoint, Kill()], device="cpu", progress=False
        )
        trainer.fit(loader, epochs=2, schedule=cyclic(trainer.optimizer), schedule_every="step", resume="auto")
        schedule = second(trainer.optimizer) if callable(second) else second
        every = "step" if callable(second) else None
        trainer.fit(loader, epochs=2, schedule=schedule, schedule_every=every, resume="auto")
        return trainer

    whole = script(tmp_path / "whole", False)
    with pytest.raises(KeyboardInterrupt):
        script(tmp_path / "parts", True)
    parts = script(tmp_path / "parts", False)
    assert torch.equal(parts.model.weight, whole.model.weight)
    assert parts.optimizer.learning_rates == whole.optimizer.learning_rates


# ---------------------------------------------------------------- beyond the end


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.OneCycle(16),
        schedules.CosineAnnealing(16),
        schedules.WarmupCosine(16, 2),
        schedules.Polynomial(16),
        "one_cycle",
        "cosine_annealing",
    ],
)
def test_going_on_after_the_end_is_warned_of(make, loader, schedule):
    trainer = make(torch.nn.Linear(8, 2))
    trainer.fit(loader, epochs=2, schedule=schedule)
    with pytest.warns(UserWarning, match=r"ends at step 16, and this run goes on to step 24, at a rate of"):
        trainer.fit(loader, epochs=1)


def test_going_on_after_the_end_is_warned_of_when_a_run_is_resumed(make, loader, tmp_path):
    def resumed(epochs):
        trainer = make(torch.nn.Linear(8, 2), callbacks=[Checkpoint(tmp_path)])
        return trainer.fit(loader, epochs=epochs, schedule=schedules.OneCycle(16), resume="auto")

    resumed(2)
    resumed(2)
    with pytest.warns(UserWarning, match="ends at step 16, and this run goes on to step 32"):
        resumed(4)


@pytest.mark.parametrize(
    "schedule", [schedules.Constant(), schedules.CosineAnnealing(16, end_factor=0.1), schedules.Step(8)]
)
def test_a_schedule_that_ends_at_a_useful_rate_may_be_outlived(make, loader, schedule):
    trainer = make(torch.nn.Linear(8, 2))
    trainer.fit(loader, epochs=2, schedule=schedule)
    trainer.fit(loader, epochs=1)


def test_torch_schedulers_beyond_their_end(make, loader):
    trainer = make(torch.nn.Linear(8, 2))
    short = CLASSES.OneCycleLR(trainer.optimizer, 0.1, total_steps=12)
    with pytest.raises(ValueError, match="OneCycleLR ends at step 12, and this run goes on to step 16, where it fails"):
        trainer.fit(loader, epochs=2, schedule=short, schedule_every="step")
    assert trainer.step == 0
    trainer = make(torch.nn.Linear(8, 2))
    cosine = CLASSES.CosineAnnealingLR(trainer.optimizer, 2)
    with pytest.warns(
        UserWarning, match="ends at epoch 2, and this run goes on to epoch 4, at a rate that rises again"
    ):
        trainer.fit(loader, epochs=4, schedule=cosine, schedule_every="epoch")


# ---------------------------------------------------------------- timm


@pytest.mark.parametrize("in_epochs", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        lambda o, t: CosineLRScheduler(o, 4, lr_min=1e-3, warmup_t=1, warmup_lr_init=0.0, t_in_epochs=t),
        lambda o, t: StepLRScheduler(o, 2, 0.5, t_in_epochs=t),
        lambda o, t: PolyLRScheduler(o, 6, t_in_epochs=t),
        lambda o, t: TanhLRScheduler(o, 6, t_in_epochs=t),
        lambda o, t: MultiStepLRScheduler(o, [1, 3], 0.5, t_in_epochs=t),
    ],
)
def test_timm_schedulers_give_the_rates_of_timm(make, two_moons, in_epochs, build):
    data = DataLoader(two_moons, 128)
    seen, theirs = [], []

    class See(Callback):
        def on_step(self, trainer):
            seen.append(trainer.optimizer.learning_rate)

    trainer = make(torch.nn.Linear(8, 2), callbacks=[See()])
    trainer.fit(data, epochs=4, schedule=build(trainer.optimizer, in_epochs))
    optimizer = torch.optim.SGD(torch.nn.Linear(8, 2).parameters(), lr=0.1, momentum=0.9)
    scheduler = build(optimizer, in_epochs)
    for epoch in range(4):
        for step in range(2):
            scheduler.step_update(2 * epoch + step + 1)
            theirs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    assert seen == theirs


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_timms_plateau_is_fed_and_resumed(make, two_moons, tmp_path):
    data = DataLoader(two_moons, 64)

    def fitted(folder, epochs, **options):
        torch.manual_seed(0)
        trainer = make(torch.nn.Linear(8, 2), callbacks=[Checkpoint(folder)])
        plateau = PlateauLRScheduler(trainer.optimizer, patience_t=1, mode="min", threshold=10.0)
        return trainer.fit(data, data, epochs=epochs, schedule=plateau, resume="auto", **options)

    fitted(tmp_path / "parts", 3)
    parts, whole = fitted(tmp_path / "parts", 8), fitted(tmp_path / "whole", 8)
    assert parts["learning_rate"] == whole["learning_rate"]
    assert whole["learning_rate"][-1] < 0.05


@pytest.mark.parametrize(
    ("options", "message"), [({"schedule_every": "step"}, "count each epoch"), ({"lr": 0.1}, "lr: Cosine")]
)
def test_timm_schedulers_refuse_what_they_know(make, loader, options, message):
    trainer = make(torch.nn.Linear(8, 2))
    with pytest.raises(ValueError, match=message):
        trainer.fit(loader, schedule=CosineLRScheduler(trainer.optimizer, 4), **options)


def scaled_groups():
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    groups = [
        {"params": net[0].parameters(), "lr_scale": 0.5},
        {"params": net[1].parameters(), "lr_scale": 1.0},
    ]
    return net, torch.optim.SGD(groups, lr=0.1)


def test_lr_scale_is_honoured_or_refused(loader):
    def trainer_of(net, optimizer):
        return Trainer(net, torch.nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)

    for use in (
        lambda t: t.fit(loader),
        lambda t: t.fit(loader, schedule="one_cycle"),
        lambda t: t.fit(loader, lr=0.01),
        lambda t: t.fit(loader, schedule=CLASSES.StepLR(t.optimizer, 1), schedule_every="epoch"),
        lambda t: t.find_lr(loader),
    ):
        with pytest.raises(ValueError, match="lr_scale"):
            use(trainer_of(*scaled_groups()))
    trainer = trainer_of(*scaled_groups())
    trainer.fit(loader, schedule=CosineLRScheduler(trainer.optimizer, 4))
    assert trainer.optimizer.learning_rates[0] == pytest.approx(0.5 * trainer.optimizer.learning_rates[1])
    net, optimizer = scaled_groups()
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale")
    trainer = trainer_of(net, optimizer)
    trainer.fit(loader, schedule="one_cycle")
    assert trainer.optimizer.base_learning_rates == [0.05, 0.1]


# ---------------------------------------------------------------- what is given wrongly, and rates of 0


def test_a_plateau_by_steps_is_refused(make, loader):
    trainer = make(torch.nn.Linear(8, 2))
    plateau = CLASSES.ReduceLROnPlateau(trainer.optimizer)
    with pytest.raises(ValueError, match="watches a figure of the epoch: give 'epoch'"):
        trainer.fit(loader, schedule=plateau, schedule_every="step")
    trainer.fit(loader, schedule=plateau)


def test_a_figure_to_watch_needs_a_scheduler_that_watches(make, loader):
    trainer = make(torch.nn.Linear(8, 2))
    for schedule in (None, "one_cycle"):
        with pytest.raises(ValueError, match="no scheduler that watches a figure"):
            trainer.fit(loader, schedule=schedule, schedule_monitor="train/loss")


@pytest.mark.parametrize("warm_up", [lambda k: min(1.0, k / 4), lambda k: k % 2, lambda k: 0.0 if k < 2 else 1.0])
def test_a_warm_up_from_zero(loader, warm_up):
    net = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = CLASSES.LambdaLR(optimizer, warm_up)
    trainer = Trainer(net, torch.nn.CrossEntropyLoss(), optimizer, progress=False, device="cpu")
    trainer.fit(loader, schedule=scheduler, schedule_every="step")
    assert trainer.optimizer.learning_rate == pytest.approx(0.1 * warm_up(8))


def test_a_group_with_a_rate_of_zero_stays_where_it_is(loader):
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    groups = [{"params": net[1].parameters()}, {"params": net[0].parameters(), "lr": 0.0}]
    trainer = Trainer(net, torch.nn.CrossEntropyLoss(), torch.optim.SGD(groups, lr=0.1), progress=False, device="cpu")
    before = net[0].weight.clone()
    trainer.fit(loader, lr=0.3, schedule="one_cycle")
    assert torch.equal(net[0].weight, before)
    assert trainer.optimizer.base_learning_rates == [0.3, 0.0]
