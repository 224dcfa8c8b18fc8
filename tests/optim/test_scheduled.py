import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from mxtorch import ScheduledOptim, schedules


def make(*rates, kind=torch.optim.SGD, schedule=None, **settings):
    parameters = [nn.Parameter(torch.ones(3)) for _ in rates]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    return ScheduledOptim(kind(groups, **settings), schedule)


def give_gradients(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)


def test_is_an_optimizer_that_shares_groups_and_state():
    optimizer = make(0.1, momentum=0.9)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    give_gradients(optimizer)
    optimizer.step()
    assert optimizer.state is optimizer.optimizer.state
    assert len(optimizer.state) == 1


def test_set_learning_rate_keeps_the_ratios():
    optimizer = make(0.1, 0.01)
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rate == 0.5
    assert optimizer.learning_rates == pytest.approx([0.5, 0.05], rel=1e-12)
    optimizer.scale_learning_rate(2)
    assert optimizer.learning_rates == pytest.approx([1.0, 0.1], rel=1e-12)
    assert optimizer.base_learning_rate == optimizer.learning_rate


NO_RATES = [0, -1, float("nan"), float("inf"), 10**400, "0.1", b"1", None, True, [0.1], 1j]
NO_RATES += [np.array([0.1, 0.2]), np.bool_(True), torch.tensor(True), torch.ones(2), torch.ones(1)]


@pytest.mark.parametrize("rate", NO_RATES, ids=repr)
def test_rates_that_are_none(rate):
    optimizer = make(0.1, 0.01)
    with pytest.raises((ValueError, TypeError), match=r"lr: got .*finite positive number"):
        optimizer.set_learning_rate(rate)
    with pytest.raises((ValueError, TypeError), match=r"factor: got .*finite positive number"):
        optimizer.scale_learning_rate(rate)
    assert optimizer.learning_rates == [0.1, 0.01]


@pytest.mark.parametrize("rate", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 1])
def test_rates_of_other_kinds(rate):
    optimizer = make(0.1)
    optimizer.set_learning_rate(rate)
    assert optimizer.learning_rate == float(rate)


def test_wrapping_what_can_not_be_wrapped():
    with pytest.raises(TypeError, match="wrapped already"):
        ScheduledOptim(make(0.1))
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        ScheduledOptim(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="parameter group 1"):
        make(0.1, -0.1)

    class WithoutRate(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

    with pytest.raises(ValueError, match="group 0 has no 'lr'"):
        ScheduledOptim(WithoutRate([nn.Parameter(torch.ones(1))]))


def test_a_schedule_that_can_not_start_leaves_the_optimizer_alone():
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="OneCycle does not know its total_steps"):
        ScheduledOptim(plain, schedules.OneCycle())
    assert plain.param_groups[0]["lr"] == 0.1
    assert "base_lr" not in plain.param_groups[0]


@settings(max_examples=25, deadline=None)
@given(rates=st.lists(st.floats(1e-6, 10), min_size=1, max_size=3), data=st.data())
@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (schedules.Step(3, 0.5), lambda o, rates: lr_scheduler.StepLR(o, 3, 0.5)),
        (schedules.Polynomial(10, 2.0), lambda o, rates: lr_scheduler.PolynomialLR(o, 10, 2.0)),
        (schedules.CosineAnnealing(12), lambda o, rates: lr_scheduler.CosineAnnealingLR(o, 12)),
        (schedules.OneCycle(13), lambda o, rates: lr_scheduler.OneCycleLR(o, rates, total_steps=13)),
        (
            schedules.Triangular2(3, low=0.1),
            lambda o, rates: lr_scheduler.CyclicLR(
                o, [rate * 0.1 for rate in rates], rates, 3, mode="triangular2", cycle_momentum=False
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_groups_follow_torchs_schedulers(schedule, theirs, rates, data):
    ours = make(*rates, schedule=schedule, momentum=0.9)
    plain = make(*rates, momentum=0.9).optimizer
    scheduler = theirs(plain, rates)
    for _ in range(data.draw(st.integers(1, 12))):
        before = [group["lr"] for group in plain.param_groups]
        ours.step()
        plain.step()
        scheduler.step()
        assert ours.learning_rates == pytest.approx(before, rel=1e-6, abs=1e-15)
    assert ours.base_learning_rates == rates


def test_set_learning_rate_under_a_schedule_sets_the_base():
    optimizer = make(1.0, 0.1, schedule=schedules.Polynomial(4))
    optimizer.current_steps = 2
    assert optimizer.learning_rates == pytest.approx([0.5, 0.05])
    optimizer.set_learning_rate(4.0)
    assert optimizer.base_learning_rates == pytest.approx([4.0, 0.4])
    assert optimizer.learning_rates == pytest.approx([2.0, 0.2])
    optimizer.current_steps = 4
    assert optimizer.learning_rate == 0
    optimizer.scale_learning_rate(0.5)
    optimizer.schedule = None
    assert optimizer.learning_rates == optimizer.base_learning_rates == pytest.approx([2.0, 0.2])
    assert "base_lr" not in optimizer.param_groups[0]


def test_step_applies_the_rate_of_its_step_then_counts():
    optimizer = make(1.0, 0.1, schedule=schedules.Polynomial(4))
    rates = []
    for _ in range(4):
        before = [p.clone() for g in optimizer.param_groups for p in g["params"]]
        give_gradients(optimizer)
        optimizer.step()
        after = [p for g in optimizer.param_groups for p in g["params"]]
        rates.append([(b - a)[0].item() for b, a in zip(before, after, strict=True)])
    assert torch.tensor(rates) == pytest.approx(torch.tensor([[1, 0.1], [0.75, 0.075], [0.5, 0.05], [0.25, 0.025]]))
    assert optimizer.current_steps == 4
    assert optimizer.base_learning_rates == [1.0, 0.1]


def test_without_a_schedule_the_groups_belong_to_the_user():
    optimizer = make(1.0)
    optimizer.param_groups[0]["lr"] = 0.25
    give_gradients(optimizer)
    optimizer.step()
    assert optimizer.learning_rate == 0.25
    optimizer.schedule = lambda step: 0.5
    assert (optimizer.learning_rate, optimizer.base_learning_rate) == (0.125, 0.25)
    optimizer.schedule = None
    assert optimizer.learning_rate == 0.25


def test_a_schedule_may_not_give_nonsense():
    optimizer = make(1.0)
    with pytest.raises(TypeError, match="function of the step"):
        optimizer.schedule = 0.5
    with pytest.raises(ValueError, match="not negative"):
        optimizer.schedule = lambda step: -1.0
    assert optimizer.schedule is None
    for steps in (-1, 1.0, True, None, "1"):
        with pytest.raises(ValueError, match="current_steps"):
            optimizer.current_steps = steps
    optimizer.current_steps = np.int64(3)
    assert type(optimizer.current_steps) is int


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_a_bad_multiplier_in_mid_run_stops_before_the_step(value):
    optimizer = make(1.0, schedule=lambda step: 1.0 if step == 0 else value)
    give_gradients(optimizer)
    optimizer.step()
    before = optimizer.param_groups[0]["params"][0].clone()
    with pytest.raises(ValueError, match="for step 1"):
        optimizer.step()
    assert torch.equal(before, optimizer.param_groups[0]["params"][0])
    assert optimizer.current_steps == 1


def test_a_tensor_rate_is_filled_in_place():
    parameter = nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1)
    optimizer = ScheduledOptim(torch.optim.Adam([parameter], lr=rate), lambda step: 0.5)
    assert float(rate) == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # of torch's default, that very tensor
    assert optimizer.base_learning_rates == pytest.approx([0.1, 0.1])
    assert optimizer.learning_rates == pytest.approx([0.05, 0.05])


def test_a_step_does_not_read_a_tensor_rate(monkeypatch):
    """Reading it would wait for its device."""

    class Rate(torch.Tensor):
        def __float__(self):
            pytest.fail("the rate was read")

    parameter = nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1)
    optimizer = ScheduledOptim(torch.optim.Adam([parameter], lr=rate), schedules.Polynomial(4))
    optimizer.param_groups[0]["lr"] = rate.as_subclass(Rate)
    monkeypatch.setattr(optimizer.optimizer, "step", lambda: None)
    for _ in range(3):
        optimizer.step()
    assert rate.item() == pytest.approx(0.05)


def test_groups_state_and_defaults_can_be_replaced():
    optimizer = make(0.1)
    for name in ("param_groups", "state", "defaults"):
        twin = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, twin)
        assert getattr(optimizer.optimizer, name) is twin


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_are_whole(copied):
    optimizer = make(0.1, momentum=0.9, schedule=schedules.OneCycle(10))
    give_gradients(optimizer)
    optimizer.step()
    twin = copied(optimizer)
    for each in (optimizer, twin):
        give_gradients(each)
        each.step()
    assert torch.equal(twin.param_groups[0]["params"][0], optimizer.param_groups[0]["params"][0])
    assert (twin.schedule, twin.current_steps) == (optimizer.schedule, optimizer.current_steps)
    assert twin.param_groups is twin.optimizer.param_groups
    assert twin.param_groups is not optimizer.param_groups


def test_state_dict_round_trip(tmp_path):
    optimizer = make(0.1, 0.3, kind=torch.optim.AdamW, schedule=schedules.MultiStep((2, 4)))
    for _ in range(3):
        give_gradients(optimizer)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = make(9.0, 9.0, kind=torch.optim.AdamW)
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert twin.schedule == optimizer.schedule
    assert twin.current_steps == 3
    assert twin.base_learning_rates == optimizer.base_learning_rates
    assert twin.learning_rates == optimizer.learning_rates


def test_state_dicts_of_plain_optimizers_go_both_ways():
    plain = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.7)
    optimizer = make(0.1)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.learning_rate == 0.7
    optimizer.set_learning_rate(0.2)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 0.2


def test_a_function_is_not_saved_but_its_position_is():
    optimizer = make(1.0, schedule=lambda step: 1 / (step + 1))
    give_gradients(optimizer)
    optimizer.step()
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"set optimizer\.schedule"):
        make(1.0).load_state_dict(saved)
    twin = make(1.0, schedule=lambda step: 1 / (step + 1))
    twin.load_state_dict(saved)
    assert twin.current_steps == 1


def test_a_schedule_of_ones_own_is_treated_as_a_function():
    class Half(schedules.Schedule):
        def __call__(self, step):
            return 0.5

    optimizer = make(1.0, schedule=Half())
    optimizer.current_steps = 5
    twin = make(1.0, schedule=Half())
    twin.load_state_dict(optimizer.state_dict())
    assert twin.current_steps == 5
    assert isinstance(twin.schedule, Half)


def test_a_plain_state_dict_gives_the_base_rates_of_a_schedule():
    plain = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.8)
    optimizer = make(0.1, schedule=lambda step: 0.5)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.base_learning_rate, optimizer.learning_rate) == (0.8, 0.4)


def test_a_state_dict_that_does_not_fit_changes_nothing():
    saved = make(0.1, schedule=schedules.Polynomial(5)).state_dict()
    optimizer = make(0.9)
    unknown = {**saved, "schedule": {**saved["schedule"], "schedule": {"name": "Polynom"}}}
    with pytest.raises(ValueError, match="did you mean 'polynomial'"):
        optimizer.load_state_dict(unknown)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(make(0.1, 0.2, schedule=schedules.Polynomial(5)).state_dict())
    assert (optimizer.learning_rate, optimizer.schedule) == (0.9, None)


def test_other_attributes_are_those_of_the_wrapped():
    class ScheduleFree(torch.optim.SGD):
        mode = "train"

        def eval(self):
            self.mode = "eval"

    optimizer = make(0.1, kind=ScheduleFree)
    optimizer.eval()
    assert optimizer.optimizer.mode == optimizer.mode == "eval"
    with pytest.raises(AttributeError):
        _ = optimizer.never_heard_of
    assert not hasattr(ScheduledOptim.__new__(ScheduledOptim), "anything"), "as while it is being unpickled"
    assert "current_steps=0" in repr(optimizer)


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


def test_add_param_group_under_a_schedule():
    optimizer = make(1.0, schedule=lambda step: 0.5)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.2})
    assert optimizer.learning_rates == [0.5, 0.1]
    with pytest.raises(ValueError, match="new parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1})


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum and decay": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "tensor as the rate": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1)),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1),
    "groups": lambda parameters: torch.optim.Adam(
        [{"params": [p], "lr": 0.1 / (i + 1)} for i, p in enumerate(parameters)]
    ),
}


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(
    "schedule",
    [
        None,
        schedules.CosineAnnealing(10),
        schedules.WarmupCosine(10, warmup_steps=2, start_factor=0.0),
        lambda step: 0.5,
    ],
    ids=["none", "cosine", "warm-up from 0", "a function"],
)
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_distributed_checkpoint_takes_no_step_and_keeps_the_position(make_optimizer, schedule, flatten):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def made():
        model = torch.nn.Linear(3, 2)
        return model, ScheduledOptim(make_optimizer(list(model.parameters())), schedule)

    model, optimizer = made()
    before, rates = model.weight.detach().clone(), optimizer.learning_rates
    get_state_dict(model, optimizer, options=options)
    assert torch.equal(before, model.weight)
    assert optimizer.current_steps == 0
    assert optimizer.learning_rates == rates
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    optimizer.zero_grad()
    weights, state = get_state_dict(model, optimizer, options=options)
    other_model, other = made()
    weights, state = copy.deepcopy((weights, state))  # as a file would hold them
    set_state_dict(other_model, other, model_state_dict=weights, optim_state_dict=state, options=options)
    if not flatten or schedule is not None:  # without a schedule the flat form has no place for the count
        assert other.current_steps == 5
    for one, twin in ((model, optimizer), (other_model, other)):
        for parameter in one.parameters():
            parameter.grad = torch.ones_like(parameter)
        twin.step()
    assert other.learning_rates == optimizer.learning_rates
    assert torch.equal(model.weight, other_model.weight)
    assert torch.equal(model.bias, other_model.bias)


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


def test_a_rate_of_zero_keeps_what_ratios_are_known():
    optimizer = make(0.1, 0.0)
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == [0.2, 0.0]
    optimizer = make(0.1, 0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    assert optimizer.learning_rates == [0.0, 0.0]
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == pytest.approx([0.2, 0.02])
    optimizer = make(0.0, 0.0)
    optimizer.set_learning_rate(0.2)
    assert optimizer.learning_rates == [0.2, 0.2]
    with pytest.raises(ValueError, match="ratios between groups are unknown"):
        make(0.0, 0.1).set_learning_rate(0.2)
