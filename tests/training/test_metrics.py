from __future__ import annotations

import pytest
import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from mxtorch.training.metrics import MOST_BUFFERED_BATCHES, MetricBuffer, as_collection


def test_what_is_taken_for_metrics():
    accuracy = MulticlassAccuracy(num_classes=3)
    assert list(as_collection(accuracy, "metrics")) == ["multiclassaccuracy"]
    assert list(as_collection({"top1": accuracy}, "metrics")) == ["top1"]
    collection = MetricCollection([accuracy])
    assert as_collection(collection, "metrics") is collection
    assert as_collection(None, "metrics") is None
    for wrong in ({}, {"a": 1}, len, "accuracy"):
        with pytest.raises(TypeError, match="metrics: got"):
            as_collection(wrong, "metrics")


@pytest.mark.parametrize("size", [1, 7])
def test_batches_handed_over_together_give_what_single_ones_give(size):
    outputs, targets = torch.randn(301, 3), torch.randint(3, (301,))
    together, single = (MulticlassAccuracy(num_classes=3) for _ in range(2))
    buffer = MetricBuffer(as_collection({"accuracy": together}, "metrics"))
    for part in torch.arange(301).split(size):
        buffer.update(outputs[part], targets[part])
        single.update(outputs[part], targets[part])
    assert buffer.compute("train") == {"train/accuracy": pytest.approx(float(single.compute()))}
    buffer.update(outputs[:3], outputs[:3].argmax(1))
    assert buffer.compute("train") == {"train/accuracy": 1.0}, "begun afresh"


def test_few_batches_are_held_back():
    updates = []

    class Counting(MeanMetric):
        def update(self, outputs, targets):
            updates.append(len(outputs))
            super().update(outputs)

    buffer = MetricBuffer(as_collection(Counting(), "metrics"))
    for _ in range(MOST_BUFFERED_BATCHES + 1):
        buffer.update(torch.ones(2), torch.ones(2))
    assert updates == [2 * MOST_BUFFERED_BATCHES]
    for _ in range(2):
        buffer.update(torch.ones(2, 600_000), torch.ones(2))
    assert len(updates) > 1, "large outputs sooner"


def test_outputs_of_changing_shape_and_values_of_several_numbers():
    buffer = MetricBuffer(as_collection({"confusion": MulticlassConfusionMatrix(num_classes=2)}, "metrics"))
    for length in (4, 6, 6):
        buffer.update(torch.zeros(1, 2, length), torch.zeros(1, length, dtype=torch.int64))
    values = buffer.compute("val")
    assert values == {"val/confusion_0": 16, "val/confusion_1": 0, "val/confusion_2": 0, "val/confusion_3": 0}
