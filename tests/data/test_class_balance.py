from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.datasets import FakeData

from mxtorch import balance, data
from mxtorch.data.class_balance import balanced_sampler, class_weights, labels_of

LABELS = [0] * 60 + [1] * 30 + [2] * 10


def test_weights_even_out_the_classes():
    weights = class_weights(LABELS)
    counts = torch.tensor([60.0, 30.0, 10.0])
    assert torch.allclose(weights * counts, torch.full((3,), 100 / 3), rtol=1e-5)
    assert float((weights * counts).sum() / 100) == pytest.approx(1)
    gentle = class_weights(LABELS, beta=0.9)
    assert 1 < gentle[2] / gentle[0] < weights[2] / weights[0]
    assert weights.dtype == torch.float32
    torch.nn.CrossEntropyLoss(weight=weights)(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))


def test_the_sampler_draws_classes_equally_often():
    sampler = balanced_sampler(LABELS, generator=torch.Generator().manual_seed(0))
    drawn = [LABELS[index] for _ in range(60) for index in sampler]
    assert len(drawn) == 6000
    for label in range(3):
        assert drawn.count(label) == pytest.approx(2000, rel=0.1)


def test_sources_of_labels():
    class Folder:
        targets = LABELS

        def __getitem__(self, index):
            raise AssertionError("items must not be read")

        def __len__(self):
            return len(LABELS)

    expected = torch.tensor(LABELS)
    for source in (LABELS, expected, Folder(), TensorDataset(torch.ones(100, 2), expected)):
        assert torch.equal(labels_of(source), expected)
    assert labels_of(Subset(Folder(), [0, 99])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 2], {}, "no samples of class 1"),
        ([0, 1], {"num_classes": 3}, "no samples of class 2"),
        ([0, 3], {"num_classes": 3}, "labels: got 0 to 3"),
        ([-1, 0], {}, "labels: got -1 to 0"),
        ([], {}, "labels: got"),
        ([0.5, 1.0], {}, "labels: got"),
        (LABELS, {"num_classes": 3.0}, "num_classes: got 3.0"),
        (LABELS, {"beta": 1.0}, "beta: got 1.0"),
        (3, {}, "labels: got a int"),
        (FakeData(size=2), {}, "labels: got a FakeData"),
    ],
)
def test_wrong_labels(labels, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        class_weights(labels, **options)


def test_public_names():
    assert balance is data.class_balance
    assert data.class_weights is class_weights is balance.class_weights
    assert data.balanced_sampler is balanced_sampler


def test_numbers_of_numpy():
    weights = class_weights(np.array(LABELS, dtype=np.int32), np.int64(3))
    assert torch.equal(weights, class_weights(LABELS))


def test_concatenated_data_sets():
    first, second = (TensorDataset(torch.zeros(3, 1), torch.tensor(labels)) for labels in ([0, 1, 1], [2, 0, 2]))
    assert labels_of(ConcatDataset([first, Subset(second, [0, 2])])).tolist() == [0, 1, 1, 2, 2]
    assert labels_of(Subset(ConcatDataset([first, second]), [4, 0])).tolist() == [0, 0]


def test_labels_of_a_loader_are_those_of_its_data():
    data = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    assert class_weights(DataLoader(data, 2)).tolist() == class_weights(data).tolist()
