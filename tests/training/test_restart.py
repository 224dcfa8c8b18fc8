"""How a run goes on with another number of processes, within an epoch."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, CheckpointError, Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing import file


class EndedAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.step - 1 == self.step:  # which is saved
            raise KeyboardInterrupt


def run(folder, batch, accumulate, *, after=None, resume=None, every=1, **options):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    callbacks = [EndedAfter(after), *([] if folder is None else [Checkpoint(folder, every=every, keep=99)])]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = Trainer(
        net, nn.MSELoss(), optimizer, accumulate=accumulate, callbacks=callbacks, device="cpu", progress=False
    )
    inputs = torch.arange(96.0).view(48, 2) / 96
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(data, resume=resume, **options)
    return trainer


def as_of_two_processes(path):
    """The checkpoint of one process, as two with half the batch each would have written it, and as they call it."""
    content = file.read(path)
    content["processes"] = [None, None]
    content["run"]["fingerprint"]["processes"] = 2
    file.write(path, content)
    return path


@pytest.mark.parametrize(
    ("accumulate", "options", "step", "rows", "batches", "every"),
    [
        (2, {"epochs": 2}, 2, [10, 22], 24, 1),  # 12 batches of 4 samples are 24 of 2; from the 8th on 8 steps, then 12
        ({1: 2, 2: 3}, {"epochs": 2}, 2, [10, 18], 24, 1),
        ({1: 2, 2: 3}, {"epochs": 2}, 7, [6, 13], 24, 1),  # a step of the second epoch has become two
        (1, {"epochs": 3, "steps_per_epoch": 5}, 7, [5, 8, 13], 20, 1),  # two steps in a pass that was cut are four
        (1, {"epochs": 3, "steps_per_epoch": 5}, 5, [5, 10, 15], 20, 1),  # at the end of an epoch that was cut
        (1, {"epochs": 3, "steps_per_epoch": 5}, 5, [5, 10, 15], 20, "epoch"),  # after it
    ],
    ids=str,
)
def test_it_goes_on_at_the_same_sample(tmp_path, accumulate, options, step, rows, batches, every):
    run(tmp_path, 4, accumulate, after=step, every=every, **options)
    path = as_of_two_processes(tmp_path / f"step-{step:08d}.ckpt")
    with pytest.warns(UserWarning, match="a step takes 2 samples, and took 4"):
        trainer = run(None, 2, accumulate, resume=path, **options)
    assert trainer.history["step"] == rows
    assert trainer.run.feed.batches == batches


def test_another_accumulation_in_the_first_epoch_is_another_run(tmp_path):
    run(tmp_path, 4, {1: 2, 2: 3}, after=3, epochs=2)
    with pytest.raises(CheckpointError, match=r"accumulate is '\{1: 4, 2: 3\}' here, '\{1: 2, 2: 3\}' there"):
        run(None, 4, {1: 4, 2: 3}, resume=tmp_path / "step-00000003.ckpt", epochs=2)
