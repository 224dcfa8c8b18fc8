"""Accelerate keeps a state for each process, which must not let a process train alone without a word."""

from __future__ import annotations

import pytest
import torch
from launching import launch, values
from torch import nn

from mxtorch import Trainer
from mxtorch.engines import DistributedEngine


def trainer_of(engine) -> Trainer:
    net = nn.Linear(2, 2)
    return Trainer(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), 0.1), engine=engine, progress=False)


def alone_to_accelerate() -> None:
    """As in a process that was forked from one with an Accelerator: the state says that it is alone."""
    from accelerate import PartialState

    PartialState._shared_state.update(
        _cpu=True, backend=None, device=torch.device("cpu"), debug=False, distributed_type="NO", num_processes=1
    )
    PartialState._shared_state.update(process_index=0, local_process_index=0, fork_launched=False)


def told_by_the_engine() -> str:
    with pytest.raises(ValueError, match="2 processes were started, and Accelerate knows of 1") as told:
        DistributedEngine("cpu")
    return str(told.value)


def made_too_early(rank: int) -> str:
    alone_to_accelerate()
    return told_by_the_engine()


def made_too_early_in_one(rank: int) -> str:
    if rank == 1:
        alone_to_accelerate()
    told = told_by_the_engine()
    assert "in rank 1," in told
    return told


def not_wrapped(rank: int) -> str:
    engine = DistributedEngine("cpu")
    engine._accelerator.prepare_model = lambda module, **settings: module  # as another plugin of Accelerate may do
    trainer = trainer_of(engine)
    with pytest.raises(ValueError, match="which does not wrap the model in DDP") as told:
        trainer.fit([(torch.ones(4, 2), torch.ones(4, 2))] * 4)
    return str(told.value)


@pytest.mark.parametrize("case", [made_too_early, made_too_early_in_one, not_wrapped])
def test_a_process_that_would_train_alone_says_so(case):
    first, second = values(launch(2, case))
    assert first == second
