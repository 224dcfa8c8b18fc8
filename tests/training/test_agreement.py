"""What one process of several decides is decided for all of them, at the same step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing.contents import read
from mxtorch.engines import DistributedEngine


class Stop(Callback):
    """One process stops the run at a step, or its clock gets to the end before those of the others."""

    def __init__(self, rank: int, *, step: int | None = None, within_epoch: bool = True) -> None:
        self.rank, self.step, self.within_epoch = rank, step, within_epoch

    def on_fit_start(self, trainer):
        run = trainer.run
        if run.limits.max_seconds is not None and trainer.engine.rank != self.rank:
            run.limits = dataclasses.replace(run.limits, max_seconds=3600.0)

    def on_step(self, trainer):
        if trainer.engine.rank == self.rank and trainer.step == self.step:
            trainer.stop(within_epoch=self.within_epoch)


def fit(rank: int, folder: str | None, stop: Stop, arguments: dict) -> tuple:
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(12)]
    net = nn.Linear(4, 2)
    callbacks = [stop, *([] if folder is None else [Checkpoint(folder, every=10**6)])]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False, log_every=3
    )
    trainer.fit(data, data if "validate_every" in arguments else None, **arguments)
    validated = [int(record["step"]) for record in trainer.history.records if "val/loss" in record]
    return trainer.step, trainer.epoch, trainer.run.stopping, validated


def fits(rank: int, cases: list[tuple]) -> list[tuple]:
    return [fit(rank, *case) for case in cases]


def both(cases: list[tuple]) -> list[tuple]:
    """The cases one after the other in two processes, which come to the same."""
    first, second = values(launch(2, fits, cases, seconds=60))
    assert first == second
    return first


def test_time_that_is_over_on_one_process(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    found = both([(str(folder), Stop(int(folder.name)), {"epochs": 10**6, "max_time": 0.3}) for folder in folders])
    for folder, (step, epoch, _, _) in zip(folders, found, strict=True):
        assert 0 < step < 6 * 10**6
        assert epoch >= 1
        assert (folder / f"step-{step:08d}.ckpt").exists()


def test_a_stop_on_one_process(tmp_path):
    stops = [
        (Stop(0, step=2), {}, 3),  # where nothing else ends a run, the answer comes a step later
        (Stop(1, step=2), {}, 3),
        (Stop(1, step=2), {"max_steps": 11}, 2),
        (Stop(1, step=2, within_epoch=False), {}, 6),
    ]
    folders = [tmp_path / str(number) for number in range(len(stops))]
    cases = zip(folders, stops, strict=True)
    found = both([(str(folder), stop, {"epochs": 2} | more) for folder, (stop, more, _) in cases])
    assert found == [(step, 1, True, []) for _, _, step in stops]
    for folder, (step, *_) in zip(folders, found, strict=True):
        saved = read(folder / f"step-{step:08d}.ckpt")["run"]
        assert saved["stopping"] is True, "a resume would go on with a run that was stopped"


def test_a_stop_on_one_process_where_a_validation_is_due():
    arguments = {"epochs": 2, "validate_every": 2}
    found = both([(None, Stop(rank, step=step), arguments) for rank, step in [(0, 2), (1, 2), (1, 3)]])
    assert found == [(2, 1, True, []), (2, 1, True, []), (3, 1, True, [2])]


def own_parts(rank: int, folder: str, counts: tuple[int, int], epochs: int) -> tuple:
    """Each process has data of its own, and a run goes on from the checkpoint of the main process."""
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    generator = torch.Generator().manual_seed(rank)
    samples = TensorDataset(torch.randn(counts[rank], 4, generator=generator), torch.arange(counts[rank]) % 2)
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), 0.1),
        engine=DistributedEngine("cpu", split_data=False),
        callbacks=[Checkpoint(folder)],
        progress=True,
    )
    try:
        trainer.fit(DataLoader(samples, 10), DataLoader(samples, 10), epochs=epochs, resume="auto")
    except ValueError as error:
        return str(error)
    return trainer.step, trainer.history["train/loss"], net.weight.tolist()


def test_parts_of_the_data_may_differ_by_some_samples(tmp_path):
    ended = launch(2, own_parts, str(tmp_path / "whole"), (34, 33), 2)
    whole, other = values(ended)
    assert whole == other
    assert "2 processes: batches of 10 x 2 = 20 samples" in ended[0].output
    assert whole[0] == 8
    values(launch(2, own_parts, str(tmp_path / "parts"), (34, 33), 1))
    assert values(launch(2, own_parts, str(tmp_path / "parts"), (34, 33), 2)) == [whole, whole]


def test_parts_of_the_data_that_have_other_numbers_of_batches(tmp_path):
    told = values(launch(2, own_parts, str(tmp_path), (34, 23), 1))
    assert all("batches" in words for words in told)


class LossOnOne(Trainer):
    """Only the main process has batches that are worth a loss; with `nowhere`, none has."""

    nowhere = False

    def training_step(self, batch):
        return super().training_step(batch) if self.engine.is_main and not self.nowhere else None


def fit_without_losses(rank: int) -> tuple[int, str]:
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
    net = nn.Linear(4, 2)
    trainer = LossOnOne(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), device="cpu", progress=False
    )
    trainer.fit(data, epochs=2)
    trainer.nowhere = True
    with pytest.raises(ValueError, match="returned None for every batch") as told:
        trainer.fit(data)
    return trainer.optimizer.current_steps, str(told.value)


def test_losses_on_one_process_alone_are_enough():
    first, second = values(launch(2, fit_without_losses, seconds=60))
    assert first == second
    assert first[0] == 4
