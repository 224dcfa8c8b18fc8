import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import Callback, ScheduledOptim, Trainer, schedules
from mxtorch.callbacks import Checkpoint
from mxtorch.lr_finder.search import squeezed

# At the module, where find_lr does not look for what it has to put back.
SEEN = []


def make(kind=torch.optim.SGD, schedule=None, **options):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    groups = [{"params": [net.weight]}, {"params": [net.bias]}]
    for name, values in options.items():
        for group, value in zip(groups, values, strict=True):
            group[name] = value
    return net, ScheduledOptim(kind(groups, lr=0.1), schedule)


def momenta(optimizer):
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]


def steps(net, optimizer, count):
    seen = []
    for _ in range(count):
        net(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(momenta(optimizer))
    return seen


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
@pytest.mark.parametrize("cyclic", [False, True])
def test_a_training_is_that_of_torch(kind, cyclic):
    """The same weights, to the last steps of float arithmetic, as with torch's scheduler."""
    options = {} if kind in (torch.optim.AdamW, torch.optim.NAdam) else {"momentum": [0.9, 0.9]}
    net, optimizer = make(kind, **options)
    twin, plain = make(kind, **options)
    plain = plain.optimizer
    for group in plain.param_groups:
        group["lr"] = 0.01
    if cyclic:
        optimizer.set_learning_rate(0.01)
        optimizer.schedule = schedules.Triangular(step_size=4, low=0.25)
        scheduler = lr_scheduler.CyclicLR(plain, 0.0025, 0.01, step_size_up=4)
    else:
        optimizer.set_learning_rate(0.01)
        optimizer.schedule = schedules.OneCycle(20)
        scheduler = lr_scheduler.OneCycleLR(plain, 0.01, total_steps=20)
    for _ in range(19):
        steps(net, optimizer, 1)
        twin(torch.ones(4, 3)).square().sum().backward()
        plain.step()
        plain.zero_grad()
        scheduler.step()
        torch.testing.assert_close(net.weight, twin.weight, rtol=1e-6, atol=1e-9)


def test_ratios_between_groups_stay():
    net, optimizer = make(schedule=schedules.OneCycle(20), momentum=[0.8, 0.4])
    for first, second in steps(net, optimizer, 20):
        assert second == pytest.approx(first / 2)
    assert momenta(optimizer)[0] == pytest.approx(0.95)
    optimizer.schedule = None
    assert momenta(optimizer) == [0.8, 0.4], "their own ones are put back with the schedule"


def test_a_ratio_that_would_go_beyond_one():
    _, optimizer = make(momentum=[0.5, 0.6])
    with pytest.raises(ValueError, match=r"OneCycle cycles the momentum of 0\.5 up to 0\.95.* 0\.6 up to 1\.14"):
        optimizer.schedule = schedules.OneCycle(20)
    assert momenta(optimizer) == [0.5, 0.6]
    assert optimizer.schedule is None
    optimizer.schedule = schedules.OneCycle(20, cycle_momentum=False)
    with pytest.raises(ValueError, match="cycles the momentum"):
        optimizer.schedule = schedules.Sequential([schedules.Constant(), schedules.OneCycle()]).for_steps(20)


def test_momentum_that_is_left_alone():
    for kind in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad):
        net, optimizer = make(kind, schedule=schedules.OneCycle(20))
        before = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
        net(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        assert [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups] == before
    net, optimizer = make(schedule=schedules.OneCycle(20, cycle_momentum=False), momentum=[0.9, 0.9])
    assert steps(net, optimizer, 20) == [[0.9, 0.9]] * 20
    net, optimizer = make(schedule=schedules.OneCycle(20), momentum=[0.0, 0.9])
    assert [second for _, second in steps(net, optimizer, 6)] == pytest.approx(
        [schedules.OneCycle(20).momentum(step) for step in range(6)]
    )
    assert momenta(optimizer)[0] == 0.0, "who has none wants none"


def test_a_part_without_momentum_has_the_groups_own():
    parts = [schedules.Constant(), schedules.OneCycle(), schedules.Constant()]
    net, optimizer = make(schedule=schedules.Sequential(parts, [2, 5]).for_steps(8), momentum=[0.7, 0.7])
    seen = [first for first, _ in steps(net, optimizer, 8)]
    assert (seen[:2], seen[5:]) == ([0.7] * 2, [0.7] * 3)
    assert seen[2:5] == [schedules.OneCycle(3).momentum(step) for step in range(3)]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_state_dict_copies_and_pickles_go_on(kind):
    options = {"momentum": [0.8, 0.4]} if kind is torch.optim.SGD else {"betas": [(0.9, 0.99), (0.8, 0.99)]}
    net, optimizer = make(kind, schedules.OneCycle(20), **options)
    steps(net, optimizer, 7)
    other, loaded = make(kind, **options)
    other.load_state_dict(net.state_dict())
    loaded.load_state_dict(optimizer.state_dict())
    pair, twin_pair = copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))
    expected = steps(net, optimizer, 13)
    assert steps(other, loaded, 13) == steps(*pair, 13) == steps(*twin_pair, 13) == expected
    loaded.schedule = None
    assert momenta(loaded) == ([0.8, 0.4] if kind is torch.optim.SGD else [0.9, 0.8])


def test_what_a_plain_optimizer_saved_is_loaded_below_the_schedule():
    _, plain = make(momentum=[0.9, 0.9])
    _, optimizer = make(schedule=schedules.OneCycle(20), momentum=[0.7, 0.7])
    optimizer.load_state_dict(plain.optimizer.state_dict())
    assert momenta(optimizer) == [0.95, 0.95]
    optimizer.schedule = None
    assert momenta(optimizer) == [0.9, 0.9]


def test_descriptions_from_before_momentum_was_cycled():
    content = schedules.OneCycle(20).to_dict()
    assert schedules.from_dict(content).cycle_momentum
    old = {name: value for name, value in content.items() if "momentum" not in name}
    assert not schedules.from_dict(old).cycle_momentum
    assert schedules.from_dict({"name": "OneCycle", "total_steps": 3}).cycle_momentum


def test_a_new_group_takes_part():
    net, optimizer = make(schedule=schedules.OneCycle(20), momentum=[0.9, 0.9])
    steps(net, optimizer, 6)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentum": 0.45})
    assert momenta(optimizer)[2] == pytest.approx(momenta(optimizer)[0] / 2)


def test_a_momentum_that_is_a_tensor_is_filled():
    beta = torch.tensor(0.9)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = ScheduledOptim(torch.optim.Adam([parameter], lr=torch.tensor(0.1), betas=(beta, torch.tensor(0.99))))
    optimizer.schedule = schedules.OneCycle(20)
    assert optimizer.param_groups[0]["betas"][0] is beta
    assert float(beta) == pytest.approx(0.95)


def test_schedule_free_keeps_its_beta():
    schedulefree = pytest.importorskip("schedulefree")
    parameter = nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="Schedule-Free"):
        optimizer = ScheduledOptim(schedulefree.AdamWScheduleFree([parameter], lr=0.1), schedules.OneCycle(20))
    assert momenta(optimizer) == [0.9]


class Watch(Callback):
    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def on_step(self, trainer):
        self.seen.append(momenta(trainer.optimizer)[0])
        if trainer.step == self.stop_at:
            raise KeyboardInterrupt


def test_a_run_that_is_resumed_goes_on_with_its_momentum(loader, tmp_path):
    def run(folder, stop_at=None, resume=None):
        torch.manual_seed(0)
        net = nn.Linear(8, 2)
        watch = Watch(stop_at)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        callbacks = [watch, Checkpoint(folder, every=1)]
        trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit(loader, epochs=3, schedule="one_cycle", resume=resume)
        return net, watch.seen

    whole, expected = run(tmp_path / "whole")
    _, first = run(tmp_path / "parts", stop_at=11)
    parts, rest = run(tmp_path / "parts", resume="auto")
    assert first[:10] + rest == expected
    assert torch.equal(parts.weight, whole.weight)


def test_find_lr_tries_what_fit_does(loader):
    """Within a search, the momentum of each step is that of the schedule that was asked for, squeezed."""

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            SEEN.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
            return super().step(closure)

    SEEN.clear()
    torch.manual_seed(0)
    net = nn.Linear(8, 2)
    optimizer = Watched(net.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = trainer.find_lr(loader, schedule="one_cycle", epochs=5, num_steps=600)
    schedule = schedules.OneCycle(40)
    for trial in found.trials:
        squeezed_schedule = squeezed(schedule, 40, trial.steps)
        expected = [
            (trial.rate * squeezed_schedule(step), schedules.momentum_of(squeezed_schedule, step))
            for step in range(trial.steps)
        ]
        starts = [index for index in range(len(SEEN)) if SEEN[index : index + trial.steps] == expected]
        assert starts or trial.loss == float("inf")
    assert any(trial.steps == 40 for trial in found.trials), "the whole training, as fit does it"
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert "own_momentum" not in optimizer.param_groups[0]
    SEEN.clear()
    trainer.find_lr(loader, schedule=schedules.OneCycle(cycle_momentum=False), epochs=5, num_steps=100)
    assert {momentum for _, momentum in SEEN} == {0.9}
