"""Bad numbers, full memory and exact resume on a real device."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def data(bad=()):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 8, generator=generator)
    for batch in bad:
        inputs[16 * batch + 3, 2] = math.nan
    return DataLoader(TensorDataset(inputs, torch.arange(160) % 2), 16)


OPTIMIZERS = {
    "fused": functools.partial(torch.optim.AdamW, lr=0.01, fused=True),
    "capturable": functools.partial(torch.optim.AdamW, lr=0.01, capturable=True),
    "SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "momentum": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "counts on the host": functools.partial(torch.optim.AdamW, lr=0.01),
}


def build(optimizer="fused", norm=True, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32) if norm else nn.Identity(), nn.ReLU(), nn.Linear(32, 2))
    wrapped = OPTIMIZERS[optimizer](net.parameters())
    return Trainer(net, nn.CrossEntropyLoss(), wrapped, device="cuda", progress=False, **({"log_every": 5} | options))


@pytest.mark.parametrize(
    ("optimizer", "policy"),
    [(name, policy) for name in OPTIMIZERS for policy in ("raise", "skip")][:-1],  # the last one has to
)
@pytest.mark.parametrize("clips", [{}, {"clip_grad_value": 0.1}])
def test_no_step_waits_for_the_device(optimizer, policy, clips):
    class Strict(Callback):
        """From the second step on; reading figures is what logging steps are for."""

        def on_step(self, trainer):
            torch.cuda.set_sync_debug_mode("error" if 2 <= trainer.step < 8 else "default")

    trainer = build(optimizer, on_nonfinite=policy, log_every=100, callbacks=[Strict()], **clips)
    batches = [(x.pin_memory(), y.pin_memory()) for x, y in data()]
    try:
        trainer.fit(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 10


def test_a_fused_optimizer_keeps_the_weights_and_the_layer_is_named():
    trainer = build(norm=False)
    with pytest.raises(FloatingPointError, match=r"step 3 \(batch 2 .*is not finite.*the batch itself holds"):
        trainer.fit(data(bad=[2]))
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_without_one_the_step_is_named():
    with pytest.raises(FloatingPointError, match=r"step 3 \(batch 2 .*is not finite.*fused=True"):
        build("momentum").fit(data(bad=[2]))


class Root(nn.Module):
    """Its outputs are finite, and the gradient of its first weight, which is 0, is infinite."""

    def __init__(self):
        super().__init__()
        self.root = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return inputs * self.root.sqrt() + inputs * self.weight


@pytest.mark.parametrize("clips", [{}, {"clip_grad_value": 1.0}, {"clip_grad_value": 1.0, "clip_grad_norm": 1.0}])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_infinite_gradient_is_found_before_it_is_clipped(optimizer, clips):
    one = [(torch.ones(2, 1), torch.full((2, 1), 2.0))]
    for policy in ("raise", "skip"):
        net = Root()
        wrapped = OPTIMIZERS[optimizer](net.parameters())
        trainer = Trainer(
            net, nn.L1Loss(), wrapped, device="cuda", progress=False, log_every=1, on_nonfinite=policy, **clips
        )
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="is not finite"):
                trainer.fit(one)
            continue
        trainer.fit(one, epochs=3)
        assert trainer.skipped_steps == 3
        assert (float(net.root), float(net.weight)) == (0, 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_skipped_steps_leave_no_mark(optimizer):
    skipping = build(optimizer, on_nonfinite="skip")
    skipping.fit(data(bad=[0, 4, 9]), schedule="constant")
    clean = build(optimizer)
    inputs, labels = data().dataset.tensors
    kept = [index for index in range(160) if index // 16 not in (0, 4, 9)]
    clean.fit(DataLoader(TensorDataset(inputs[kept], labels[kept]), 16), schedule="constant")
    for (name, a), b in zip(skipping.model.state_dict().items(), clean.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert skipping.skipped_steps == 3
    assert skipping.optimizer.current_steps == 7


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resume_is_exact(tmp_path, precision):
    class Die(Callback):
        def on_step(self, trainer):
            if trainer.step == 14:
                raise InterruptedError

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 2))

        def forward(self, inputs):
            return self.layers(inputs)

    def go(name, resume=None, die=False):
        torch.manual_seed(0)
        net = Dropping()
        callbacks = [Checkpoint(tmp_path / name, every=3), *([Die()] if die else [])]
        trainer = Trainer(
            net, nn.CrossEntropyLoss(), torch.optim.AdamW(net.parameters(), lr=0.01), device="cuda", progress=False,
            precision=precision, callbacks=callbacks, log_every=4,
        )  # fmt: skip
        loader = DataLoader(data().dataset, 16, shuffle=True)
        torch.manual_seed(1)
        trainer.fit(loader, epochs=3, resume=resume)
        return trainer

    whole = go("whole")
    with pytest.raises(InterruptedError):
        go("broken", die=True)
    resumed = go("broken", resume="auto")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.history["train/loss"] == resumed.history["train/loss"]
    assert [r["train/loss"] for r in whole.history.records] == [r["train/loss"] for r in resumed.history.records]


def test_full_memory_is_told_and_got_round():
    class Hungry(nn.Module):
        """Needs a sixteenth of the device for each sample."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)
            self.size = torch.cuda.get_device_properties(0).total_memory // 16

        def forward(self, inputs):
            memory = torch.empty(self.size * len(inputs), dtype=torch.uint8, device="cuda")
            return self.layer(inputs) + 0 * memory[:1].float()

    def build_hungry(net):
        return Trainer(
            net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cuda", progress=False
        )

    with pytest.raises(torch.OutOfMemoryError, match="batch of 32 samples"):
        build_hungry(Hungry()).fit(DataLoader(data().dataset, 32))
    trainer = build_hungry(Hungry())
    trainer.fit(DataLoader(data().dataset, 32), auto_accumulate=True)
    assert trainer.step == 5
    assert trainer.run.micro_batches == 4
