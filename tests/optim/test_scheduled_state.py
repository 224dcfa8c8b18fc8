"""The state of a ScheduledOptim: copies, state_dict, and checkpoints of several processes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from small_optimizers import give_gradients, make
from torch import nn

from mxtorch import ScheduledOptim, schedules


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
