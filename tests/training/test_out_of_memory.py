"""Full memory, as a model on the CPU plays it that takes so many samples and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Trainer
from mxtorch.training.data import Window
from mxtorch.training.out_of_memory import split


class Small(nn.Module):
    def __init__(self, most, norm=None):
        super().__init__()
        self.most = most
        self.layers = nn.Sequential(nn.Linear(8, 8), norm or nn.Identity(), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        return self.layers(inputs)


def test_it_is_told_with_the_batch_size_and_what_to_try(make, loader):
    with pytest.raises(torch.OutOfMemoryError, match=r"step 1 .* batch of 32 samples \(CUDA out of memory.*batch_size"):
        make(Small(16)).fit(loader)
    for method in ("trials", "sweep"):
        with pytest.raises(torch.OutOfMemoryError, match="batch of 32 samples"):
            make(Small(16)).find_lr(loader, method=method, num_steps=60)


@pytest.mark.parametrize("most", [16, 9, 1])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_smaller_parts_take_the_same_steps(make, two_moons, most, accumulate, weights):
    def train(most, **fit):
        torch.manual_seed(1)
        accuracy = MulticlassAccuracy(num_classes=2, average="micro")
        trainer = make(Small(most), accumulate=accumulate, train_metrics={"accuracy": accuracy})
        trainer.fit(DataLoader(two_moons, 30, shuffle=True), epochs=2, lr=0.1, **fit)
        return trainer

    whole, parts = train(1000), train(most, auto_accumulate=True)
    assert parts.step == whole.step
    for a, b in zip(weights(parts.model), weights(whole.model), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert parts.history["train/loss"] == pytest.approx(whole.history["train/loss"], rel=1e-4)
    assert parts.history["train/accuracy"] == pytest.approx(whole.history["train/accuracy"])
    assert parts.run.micro_batches == {16: 2, 9: 4, 1: 32}[most]


def test_batch_norm_is_warned_of(make, loader):
    with pytest.warns(UserWarning, match=r"layers.1 \(BatchNorm\) normalises each part"):
        make(Small(16, nn.BatchNorm1d(8))).fit(loader, auto_accumulate=True)


def test_a_single_sample_that_does_not_fit(make, loader):
    with pytest.raises(torch.OutOfMemoryError, match="1 samples at a time"):
        make(Small(0)).fit(loader, auto_accumulate=True)


def test_batches_of_every_kind_are_split():
    inputs = torch.arange(10).reshape(5, 2)
    batch = {"pixels": inputs, "names": list("abcde"), "pair": (inputs, inputs + 1), "scale": 2.0}
    window = split(Window([batch], [5], 5), 2)
    assert window.sizes == [3, 2]
    assert window.samples == 5
    first, second = window.batches
    assert torch.equal(torch.cat([first["pixels"], second["pixels"]]), inputs)
    assert torch.equal(torch.cat([first["pair"][1], second["pair"][1]]), inputs + 1)
    assert first["names"] + second["names"] == list("abcde")
    assert second["scale"] == 2.0


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(50, 8, 3), torch.zeros(8)),
        {"nodes": torch.zeros(40, 2), "graph": torch.zeros(40), "labels": torch.zeros(8)},
        ((torch.zeros(5, 8, 3), torch.zeros(5, 8)), torch.zeros(8)),
    ],
)
def test_batches_with_the_samples_elsewhere_are_not_split(batch):
    with pytest.raises(ValueError, match="a batch of 8 samples can't be taken in parts"):
        split(Window([batch], [8], 8), 2)


def with_closures(net):
    return Trainer(net, nn.CrossEntropyLoss(), torch.optim.LBFGS(net.parameters()), device="cpu", progress=False)


def test_it_is_told_for_optimizers_with_a_closure_too(loader):
    trainer = with_closures(Small(16))
    with pytest.raises(torch.OutOfMemoryError, match=r"step 1 .* batch of 32 samples \(CUDA out of memory") as told:
        trainer.fit(loader)
    assert "auto_accumulate" not in str(told.value)
    with pytest.raises(torch.OutOfMemoryError, match="batch of 32 samples"):
        trainer.find_lr(loader, num_steps=60)


def test_smaller_parts_and_a_closure_are_refused_before_the_first_step(loader, weights):
    trainer = with_closures(Small(1000))
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"auto_accumulate: LBFGS computes .*smaller batch_size"):
        trainer.fit(loader, auto_accumulate=True)
    assert all(torch.equal(one, other) for one, other in zip(weights(trainer.model), before, strict=True))
    assert trainer.step == 0
