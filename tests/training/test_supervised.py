from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Trainer
from mxtorch.training.supervised import checked_labels, predictions, supervised_step


class Returning(nn.Module):
    """A model in Hugging Face's manner."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


@pytest.mark.parametrize("with_loss", [False, True])
def test_dictionary_batches(two_moons, with_loss):
    inputs, labels = two_moons.tensors
    data = [{"inputs": inputs[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 256, 64)]
    net = Returning()
    loss = nn.CrossEntropyLoss() if with_loss else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    accuracy = MulticlassAccuracy(num_classes=2)
    trainer = Trainer(net, loss, optimizer, metrics=accuracy, device="cpu", progress=False)
    history = trainer.fit(data, data, epochs=5)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert history["val/multiclassaccuracy"][-1] > 0.5
    assert trainer.predict(data).shape == (256, 2)
    assert trainer.find_lr(data, method="sweep", num_steps=25).rates
    assert trainer.find_lr(data, data, num_steps=40).trials


def test_several_inputs(two_moons, make):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, first, second):
            return self.layer(first + second)

    inputs, labels = two_moons.tensors
    trainer = make(Sum())
    assert trainer.fit([(inputs, inputs, labels)]).rows[0]["train/loss"] > 0


@pytest.mark.parametrize("shift", [2, -2])
def test_a_bad_label_in_a_later_batch_is_told_too(make, two_moons, shift):
    inputs, labels = two_moons.tensors
    trainer = make(nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"labels: got .* but the model has 2 outputs, for classes 0 to 1"):
        trainer.fit([(inputs, labels), (inputs, labels + shift)])
    assert trainer.step == 1


def test_labels_can_be_looked_at_before_the_loss_is(two_moons):
    inputs, labels = two_moons.tensors
    net, loss = nn.Linear(8, 2), nn.CrossEntropyLoss(ignore_index=7)
    ignored = torch.where(labels == 1, 7, labels)
    with checked_labels(True):
        assert supervised_step(net, loss, (inputs, ignored)).loss.ndim == 0
        with pytest.raises(ValueError, match="labels: got 0 to 3"):
            supervised_step(net, loss, (inputs, labels * 3))


def test_models_that_return_dictionaries_or_objects():
    net = Returning()
    batch = {"inputs": torch.ones(2, 8), "labels": torch.tensor([0, 1])}
    assert supervised_step(net, None, batch).loss.ndim == 0
    assert predictions(net, batch).shape == (2, 2)
    assert predictions(nn.Identity(), (torch.ones(2), "left out")).shape == (2,)
    assert predictions(lambda inputs: {"logits": inputs}, {"inputs": 3}) == 3


def test_running_out_of_memory_is_not_explained_away(make, two_moons):
    def loss(outputs, targets):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        make(nn.Linear(8, 2), loss).fit([two_moons.tensors])
