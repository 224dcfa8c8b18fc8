"""Schedulers that transformers makes, in fit."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from mxtorch import Callback, CheckpointError, Trainer, schedules
from mxtorch.callbacks import Checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    optimization = pytest.importorskip("transformers.optimization")

MAKE = {
    "linear": (lambda o: optimization.get_linear_schedule_with_warmup(o, 3, 16), schedules.WarmupLinear(16, 3)),
    "cosine": (
        lambda o: optimization.get_cosine_schedule_with_warmup(o, 3, 16),
        schedules.WarmupCosine(16, 3, start_factor=0.0),
    ),
    "inverse": (lambda o: optimization.get_inverse_sqrt_schedule(o, 3), schedules.InverseSquareRoot(3)),
    "wsd": (
        lambda o: optimization.get_wsd_schedule(o, 3, 4, 16, decay_type="linear"),
        schedules.WarmupStableDecay(16, 3, 4),
    ),
    "polynomial": (
        lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, 3, 16, lr_end=0.05, power=2),
        schedules.Polynomial(16, 2.0, 0.1, 3),
    ),
}


class Rates(Callback):
    def __init__(self, stop_at=None):
        self.stop_at, self.rates = stop_at, []

    def on_step(self, trainer):
        self.rates.append(trainer.optimizer.learning_rate)
        if trainer.step == self.stop_at:
            raise KeyboardInterrupt


def run(loader, schedule, folder=None, stop_at=None, wrapped=True, **options):
    torch.manual_seed(0)
    net = nn.Linear(8, 2)
    rates = Rates(stop_at)
    callbacks = [rates, *([] if folder is None else [Checkpoint(folder, every=1)])]
    optimizer = torch.optim.AdamW([{"params": [net.weight]}, {"params": [net.bias], "lr": 0.05}], lr=0.5)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False)
    if callable(schedule) and not isinstance(schedule, schedules.Schedule):
        schedule = schedule(trainer.optimizer if wrapped else optimizer)
        options |= {"schedule_every": "step"}
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(loader, epochs=2, schedule=schedule, **options)
    return trainer, rates.rates


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", MAKE)
def test_a_training_is_that_of_our_schedule(loader, name, wrapped):
    make, ours = MAKE[name]
    theirs, _ = run(loader, make, wrapped=wrapped)
    own, _ = run(loader, ours)
    torch.testing.assert_close(theirs.model.weight, own.model.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(theirs.model.bias, own.model.bias, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_goes_on_bit_for_bit(loader, tmp_path):
    make = MAKE["linear"][0]
    whole, _ = run(loader, make, tmp_path / "whole")
    run(loader, make, tmp_path / "parts", stop_at=9)
    parts, _ = run(loader, make, tmp_path / "parts", resume="auto")
    assert torch.equal(parts.model.weight, whole.model.weight)
    another = MAKE["cosine"][0]
    with pytest.raises(CheckpointError, match="another run"):
        run(loader, another, tmp_path / "parts", resume="auto")


def test_get_scheduler_by_name(loader):
    make = lambda o: optimization.get_scheduler("linear", o, num_warmup_steps=3, num_training_steps=16)  # noqa: E731
    assert torch.equal(run(loader, make)[0].model.weight, run(loader, MAKE["linear"][0])[0].model.weight)


def test_lr_must_be_left_to_it(loader):
    with pytest.raises(ValueError, match="keeps its own base rates"):
        run(loader, MAKE["linear"][0], lr=0.1)
