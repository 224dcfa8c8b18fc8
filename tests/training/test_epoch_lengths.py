"""The steps of each epoch, known beforehand: those that a run takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mxtorch import Trainer, schedules
from mxtorch.training.epoch_lengths import EpochLengths


def trained(batches, accumulate, **options):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    data = [(torch.ones(1, 2), torch.ones(1, 1))] * batches
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    trainer = Trainer(net, nn.MSELoss(), optimizer, accumulate=accumulate, device="cpu", progress=False)
    trainer.fit(data, **options)
    return trainer


counts = st.integers(1, 7)


@given(
    batches=st.integers(1, 15),
    accumulate=st.dictionaries(st.integers(2, 6), counts, max_size=3),
    first=counts,
    most_steps=st.none() | st.integers(1, 8),
    epochs=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_the_run(batches, accumulate, first, most_steps, epochs):
    accumulate = {1: first} | accumulate
    trainer = trained(batches, accumulate, epochs=epochs, steps_per_epoch=most_steps, schedule="one_cycle")
    taken = trainer.history["step"]
    lengths = EpochLengths(range(batches), sorted(accumulate.items()), most_steps)
    assert [lengths.total(epoch + 1) for epoch in range(epochs)] == taken
    steps = [lengths(epoch) for epoch in range(epochs)]
    assert lengths.shortest(epochs) == min(steps)
    assert [lengths.epochs_of(step) for step in (1, taken[-1])] == [1, epochs]
    assert trainer.optimizer.schedule.total_steps == taken[-1]
    assert trainer.run.steps_per_epoch == steps[-1]


@given(batches=st.integers(1, 30), first=counts, then=counts, max_steps=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_schedule_is_made_for_max_steps(batches, first, then, max_steps):
    trainer = trained(batches, {1: first, 2: then}, max_steps=max_steps, schedule="one_cycle")
    assert trainer.step == max_steps
    assert trainer.optimizer.schedule == schedules.OneCycle(max_steps)
    assert trainer.epoch == trainer.run.epochs


def test_max_steps_with_accumulation_that_rises():
    assert trained(10, {1: 1, 2: 5}, max_steps=25, schedule="one_cycle").optimizer.schedule == schedules.OneCycle(25)


def test_steps_per_epoch_with_accumulation_that_rises():
    """The second epoch takes what is left of the first pass, then the second pass."""
    trainer = trained(20, {1: 2, 2: 8}, epochs=2, steps_per_epoch=5, schedule="one_cycle")
    assert trainer.history["step"] == [5, 10]
    assert trainer.optimizer.schedule == schedules.OneCycle(10)


def test_what_is_not_known():
    endless = EpochLengths(iter(()), [(1, 1)])
    assert endless(0) is endless.total(3) is endless.shortest(3) is None
    assert endless.epochs_of(7) == 7
    cut = EpochLengths(iter(()), [(1, 2), (3, 4)], 5)
    assert (cut(0), cut(9), cut.total(3), cut.shortest(3), cut.epochs_of(11)) == (5, 5, 15, 5, 3)


def test_the_length_is_asked_for_once():
    class Asked(list):
        count = 0

        def __len__(self):
            self.count += 1
            return 10

    data = Asked()
    lengths = EpochLengths(data, [(1, 5), (2, 1)])
    assert lengths.total(10**9) == 2 + (10**9 - 1) * 10
    assert lengths.epochs_of(10**9) == 10**8 + 1
    assert data.count == 1


@pytest.mark.parametrize(("steps", "batches"), [(1, 5), (2, 10), (3, 11), (12, 20), (42, 50)])
def test_batches_of_steps(steps, batches):
    assert EpochLengths(range(10), [(1, 5), (2, 1)]).batches_of(steps) == batches
