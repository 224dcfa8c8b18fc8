from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import data, mixing
from mxtorch.data import Mixed


@pytest.fixture
def pictures():
    labels = torch.arange(24) % 3
    return DataLoader(TensorDataset(torch.randn(24, 3, 8, 8) + labels[:, None, None, None], labels), 8)


@pytest.mark.parametrize("options", [{}, {"mixup": None}, {"cutmix": None}])
def test_targets_are_mixed_in_proportion(pictures, options):
    mixed = Mixed(pictures, num_classes=3, **options)
    assert len(mixed) == len(pictures)
    for (inputs, targets), (plain, labels) in zip(mixed, pictures, strict=True):
        assert inputs.shape == plain.shape
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert targets.shape == (8, 3)
        # Mixup and CutMix mix each sample with the previous sample of the batch.
        partners = nn.functional.one_hot(labels.roll(1), 3)
        own = nn.functional.one_hot(labels, 3)
        share = (targets - partners).abs().sum() / (own - partners).abs().sum()
        assert torch.allclose(targets, share * own + (1 - share) * partners, atol=1e-5)


def test_find_lr_and_fit_take_mixed_batches(pictures, make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    trainer = make(net, nn.CrossEntropyLoss(label_smoothing=0.1))
    mixed = Mixed(pictures, num_classes=3)
    assert len(trainer.find_lr(mixed, num_steps=40).trials) > 5
    history = trainer.fit(mixed, pictures, epochs=3, lr=0.01)
    assert history["val/loss"][-1] < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes: got 1"),
        ({"num_classes": 2.5}, "num_classes: got 2.5"),
        ({"num_classes": 3, "mixup": None, "cutmix": None}, "mixup: got None"),
        ({"num_classes": 3, "mixup": -1}, "mixup: got -1"),
    ],
)
def test_wrong_arguments(pictures, options, message):
    with pytest.raises(ValueError, match=message):
        Mixed(pictures, **options)


def test_batches_of_another_form():
    with pytest.raises(ValueError, match="takes batches of"):
        next(iter(Mixed([torch.ones(4, 3, 8, 8)], num_classes=2)))


def test_public_names():
    assert mixing is data.mixing
    assert mixing.Mixed is Mixed


def test_a_number_of_classes_of_numpy(pictures):
    inputs, targets = next(iter(Mixed(pictures, num_classes=np.int64(3))))
    assert targets.shape == (len(inputs), 3)
