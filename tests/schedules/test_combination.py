import pytest
import torch

from mxtorch import schedules
from mxtorch.schedules import Chained, Constant, CosineAnnealing, OneCycle, Sequential, Step, WarmupConstant

NESTED = Sequential([WarmupConstant(4), Chained([Step(3), CosineAnnealing()]), OneCycle()], [4, 20])


def test_lengths_are_those_of_the_parts():
    filled = NESTED.for_steps(30)
    assert filled.schedules[1].schedules[1] == CosineAnnealing(16)
    assert filled.schedules[2] == OneCycle(10)
    assert filled.total_steps == 30
    assert Sequential([Constant(), CosineAnnealing()]).for_steps(10).milestones == (5,)
    assert Chained([CosineAnnealing(), Constant()]).for_steps(10).total_steps is None


@pytest.mark.parametrize("total", [1, 2, 3, 21])
def test_runs_that_are_too_short_for_the_milestones(total):
    filled = NESTED.for_steps(total)
    assert all(0 <= filled(step) <= 1 for step in range(total))
    assert Sequential([Constant(), Constant(), Constant()]).for_steps(total)(total - 1) == 1


def test_a_file_holds_them(tmp_path):
    filled = NESTED.for_steps(30)
    torch.save(filled.to_dict(), tmp_path / "schedule.pt")
    read = schedules.from_dict(torch.load(tmp_path / "schedule.pt", weights_only=True))
    assert read == filled
    assert schedules.is_savable(filled)
    assert schedules.name_of(filled) == "sequential"
    assert hash(read) == hash(filled)


def test_what_a_file_can_not_hold():
    class Own(schedules.Schedule):
        def __call__(self, step):
            return 1.0

    assert not schedules.is_savable(Chained([Own(), Constant()]))
    deep = Constant().to_dict()
    for _ in range(1000):
        deep = {"name": "Chained", "schedules": [deep, deep]}
    with pytest.raises(ValueError, match="not deeply nested"):
        schedules.from_dict(deep)
    for given in (3, [3, 4], "ab"):
        with pytest.raises(ValueError, match="schedules"):
            schedules.from_dict({"name": "Chained", "schedules": given})


def test_momentum_is_that_of_the_part():
    filled = NESTED.for_steps(30)
    assert filled.momentum(3) is None
    assert filled.momentum(20) == OneCycle(10).momentum(0) == 0.95
    assert schedules.cycles_momentum(filled)
    assert not schedules.cycles_momentum(Chained([Constant(), OneCycle(9, cycle_momentum=False)]))
    assert Chained([Constant(), OneCycle(9)]).momentum(0) == 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequential([Constant()]), "at least two"),
        (lambda: Sequential(Constant()), "at least two"),
        (lambda: Chained(["constant", "step"]), "at least two"),
        (lambda: Sequential([Constant(), Step()], [0]), "rising integers"),
        (lambda: Sequential([Constant(), Step(), Step()], [4, 2]), "rising integers"),
        (lambda: Sequential([Constant(), Step()], 3), "rising integers"),
        (lambda: Sequential([Constant(), Step()], [3, 4]), "one fewer"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_milestones_that_were_left_out():
    with pytest.raises(ValueError, match="does not know its milestones"):
        Sequential([Constant(), Constant()])(0)
