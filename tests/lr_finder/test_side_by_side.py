"""A search on several gloo processes: the rate of one process with the batch of all, and no trace."""

from __future__ import annotations

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer
from mxtorch._structure import digest
from mxtorch.checkpointing.random_state import random_state
from mxtorch.engines import LocalEngine
from mxtorch.lr_finder.side_by_side import run_all


def samples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] + inputs[:, 1] ** 2 > 0.5).long())


def state_of(trainer: Trainer) -> int:
    parts = [list(trainer.model.state_dict().values()), trainer.optimizer.state_dict(), random_state()]
    return digest([*parts, [parameter.grad for parameter in trainer.model.parameters()]])


def searches(rank: int, batch: int, cases: list, seed: int = 3) -> list:
    found = []
    for norm, held_out, options in cases:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 2)
        )
        optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
        trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, seed=seed)
        data = DataLoader(samples(800), batch, shuffle=True, generator=torch.Generator().manual_seed(5))
        trainer.fit(data, epochs=1, lr=1e-3)
        before = state_of(trainer), digest(data.generator.get_state())
        val_data = DataLoader(samples(96), batch) if held_out else None
        result = trainer.find_lr(data, val_data, epochs=4, schedule="one_cycle", **options)
        after = state_of(trainer), digest(data.generator.get_state())
        trials = [(trial.rate, trial.steps, trial.loss) for trial in result.trials]
        found.append((result.suggestion, result.status, trials, before == after, result.losses))
    return found


CASES = [
    (False, True, {"budget": 2.0}),
    (True, True, {"budget": 2.0}),
    (False, False, {"budget": 2.0}),
    (False, True, {"method": "sweep"}),
]


def test_all_processes_find_the_rate_of_one_with_the_batch_of_all():
    first, second = values(launch(2, searches, 16, CASES))
    alone = searches(0, 32, CASES)
    spread = [searches(0, 32, CASES, seed) for seed in (4, 5)]
    for index, (case, one, other) in enumerate(zip(CASES, first, second, strict=True)):
        assert one == other, case  # rates, losses and all, to the last bit
        assert one[3], case
        rates = [alone[index][0], *(seeded[index][0] for seeded in spread)]
        assert min(rates) / 3.2 < one[0] < max(rates) * 3.2
    # Without batch normalisation a training of one process is that of all, whoever trains it. Those of few steps are
    # judged by a part of the held-out samples, which is another one for another batch size.
    on_one = {(rate, steps): loss for rate, steps, loss in alone[0][2] if steps > 10}
    compared = [(loss, on_one[rate, steps]) for rate, steps, loss in first[0][2] if (rate, steps) in on_one]
    assert len(compared) >= 3
    for loss, expected in compared:
        assert loss == pytest.approx(expected, rel=1e-3)


class Processes(LocalEngine):
    """Pretends to be one of several."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__("cpu")
        self.rank, self.world_size = rank, world_size
        self.alone_now = 0

    def gather_values(self, value):
        everyone = {index: ("alone", index) for index in range(6) if index % self.world_size != self.rank}
        return [value, everyone]


@pytest.mark.parametrize(
    ("world_size", "count", "together", "own"),
    [
        (2, 4, 0.55, [0, 2]),
        (2, 5, 0.55, [0, 2, 4]),  # the last one is trained by both together
        (3, 5, 0.4, [0, 3, 4]),  # two take 0.8 of the time of one alone
        (3, 5, 0.6, [0, 3]),  # the exchange costs more than to let a process wait
        (2, 3, 0.0, [0, 1, 2]),
        (1, 3, 0.0, [0, 1, 2]),
    ],
)
def test_how_rates_are_dealt(world_size, count, together, own):
    trained = []

    def train(rate):
        trained.append(rate)
        return ("alone", rate)

    found = run_all(Processes(0, world_size), range(count), train, together=together)
    assert trained == own
    assert found == [("alone", rate) for rate in range(count)]
