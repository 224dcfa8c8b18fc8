"""How many steps a search may take, for how long a training, and around which rate."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from mxtorch.lr_finder.budget import checked_budget, passes, steps_of, training_length, usual_rate

BATCHES = [0] * 10
EACH = [(1, 1)]  # each batch is a step


class Endless:
    def __iter__(self):
        yield from iter(int, 1)


@pytest.mark.parametrize(
    ("given", "accumulate", "steps"),
    [
        ({"epochs": 3}, 1, 30),
        ({"epochs": 3}, 4, 9),
        ({"epochs": 3, "steps_per_epoch": 4}, 1, 12),
        ({"epochs": 3, "steps_per_epoch": 40}, 1, 30),
        ({"epochs": 3, "steps_per_epoch": 40}, 3, 12),
        ({"training_steps": 77}, 4, 77),
    ],
)
def test_the_length_is_that_of_fit(given, accumulate, steps):
    arguments = {"epochs": None, "steps_per_epoch": None, "training_steps": None} | given
    assert training_length(BATCHES, [(1, accumulate)], **arguments) == (steps, True)


def test_accumulation_that_changes_is_that_of_each_epoch():
    changes = [(1, 5), (2, 1)]
    assert training_length(BATCHES, changes, 5, None, None) == (42, True)
    assert training_length(BATCHES, changes, 5, 4, None) == (18, True)
    assert passes(BATCHES, changes, 42) == 5


def test_a_length_that_nothing_tells_is_assumed():
    steps, known = training_length(BATCHES, EACH, None, None, None)
    assert steps > 0
    assert not known


def test_the_length_of_data_without_one():
    assert training_length(Endless(), EACH, 3, 5, None) == (15, True)
    with pytest.raises(ValueError, match="epochs: the data have no length; give steps_per_epoch, as for fit, or"):
        training_length(Endless(), EACH, 3, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3, None, 30), "training_steps: got epochs, too"),
        ((0, None, None), "epochs: got 0"),
        ((1.5, None, None), "epochs: got 1.5"),
        ((3, 0, None), "steps_per_epoch: got 0"),
        ((None, None, 0), "training_steps: got 0"),
        ((None, None, "30"), "training_steps: got '30'"),
    ],
)
def test_lengths_that_are_none(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        training_length(BATCHES, EACH, *given)


def test_what_is_given_is_what_is_spent():
    assert steps_of(123, None, 1000, None) == 123
    assert steps_of(None, 0.2, 1000, None) == 200
    assert steps_of(None, 3.0, 1000, None) == 3000
    assert steps_of(None, 1e-9, 1000, None) == 1


def test_by_default_a_share_of_the_training_or_seconds_whichever_is_more():
    long = steps_of(None, None, 1_000_000, 0.5)
    assert 0 < long < 500_000, "a share of it"
    assert steps_of(None, None, 2_000_000, 0.5) == 2 * long
    quick = steps_of(None, None, 10, 0.001)
    assert quick > 10, "seconds, if the training takes less"
    assert steps_of(None, None, 10, 0.0005) == pytest.approx(2 * quick, rel=0.01)
    assert steps_of(None, None, 10, 0.0) > 0


@pytest.mark.parametrize(
    ("num_steps", "budget", "message"),
    [
        (100, 0.2, "budget: got num_steps, too"),
        (1, None, "num_steps: got 1"),
        (2.5, None, "num_steps: got 2.5"),
        (None, 0, "budget: got 0"),
        (None, float("inf"), "budget: got inf"),
        (None, "20%", "budget: got '20%'"),
    ],
)
def test_budgets_that_are_none(num_steps, budget, message):
    with pytest.raises((ValueError, TypeError), match=message):
        checked_budget(num_steps, budget)


def optimizer(kind, **settings):
    return kind([nn.Parameter(torch.ones(2, 2))], **settings)


def kinds():
    """torch's optimizers that can be made without further arguments."""
    found = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind)]
    return [kind for kind in found if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch_has_a_usual_rate(kind):
    made = optimizer(kind)
    rate = usual_rate(made, True)
    assert 1e-4 < rate <= 1.0
    assert usual_rate(made, False) > rate, "a peak is higher"


def test_usual_rates_are_those_of_practice():
    assert usual_rate(optimizer(torch.optim.AdamW), True) == 1e-3
    assert usual_rate(optimizer(torch.optim.SGD, lr=7.0), True) == 1e-2, "whatever was given"


def test_subclasses_and_unknown_optimizers():
    class Own(torch.optim.SGD):
        pass

    class Unknown(torch.optim.Optimizer):
        def __init__(self, params, lr=0.25):
            super().__init__(params, {"lr": lr})

    class WithoutDefault(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

    class WithoutRate(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1.0})

    assert usual_rate(optimizer(Own, lr=0.1), True) == usual_rate(optimizer(torch.optim.SGD), True)
    assert usual_rate(optimizer(Unknown, lr=5.0), True) == 0.25
    assert usual_rate(optimizer(WithoutDefault, lr=5.0), True) > 0
    assert usual_rate(optimizer(WithoutRate), True) > 0


@pytest.mark.parametrize(
    ("data", "accumulate", "expected"), [([0] * 10, 1, 6), ([0] * 10, 2, 12), (iter([0]), 1, None), ([], 1, None)]
)
def test_how_often_a_training_reads_its_data(data, accumulate, expected):
    assert passes(data, [(1, accumulate)], 60) == expected
