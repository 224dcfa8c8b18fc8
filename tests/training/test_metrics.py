from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import MeanMetric, Metric, MetricCollection, RunningMean, RunningSum, classification, regression
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.wrappers import MinMaxMetric, Running

from mxtorch.training.metrics import MOST_BUFFERED_BATCHES, LossMeter, MetricBuffer, as_collection


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

    class Counting(MetricCollection):
        def update(self, outputs, targets):
            updates.append(len(outputs))
            super().update(outputs, targets)

    buffer = MetricBuffer(Counting({"mean": MeanMetric()}))
    for _ in range(MOST_BUFFERED_BATCHES + 1):
        buffer.update(torch.ones(2), torch.ones(2))
    assert updates == [2 * MOST_BUFFERED_BATCHES]
    for _ in range(2):
        buffer.update(torch.ones(2, 600_000), torch.ones(2, 600_000))
    assert len(updates) > 1, "large outputs sooner"


def test_outputs_of_changing_shape_and_values_of_several_numbers():
    buffer = MetricBuffer(as_collection({"confusion": MulticlassConfusionMatrix(num_classes=2)}, "metrics"))
    for length in (4, 6, 6):
        buffer.update(torch.zeros(1, 2, length), torch.zeros(1, length, dtype=torch.int64))
    values = buffer.compute("val")
    assert values == {"val/confusion_0": 16, "val/confusion_1": 0, "val/confusion_2": 0, "val/confusion_3": 0}


@pytest.mark.parametrize("length", [3, 5])
def test_a_buffer_goes_on_where_it_was_saved(length):
    def make():
        accuracy = MulticlassAccuracy(num_classes=3, multidim_average="global", average="micro")
        return MetricBuffer(as_collection({"accuracy": accuracy, "mean": Mean()}, "metrics"))

    class Mean(MeanMetric):
        def update(self, outputs, targets):
            super().update(outputs)

    def batch(length):
        return torch.randn(4, 3, length), torch.randint(3, (4, length))

    batches = [batch(3) for _ in range(MOST_BUFFERED_BATCHES + 2)] + [batch(length), batch(length)]
    whole, first, second = make(), make(), make()
    for outputs, targets in batches:
        whole.update(outputs, targets)
    for outputs, targets in batches[:-2]:
        first.update(outputs, targets)
    second.load_state_dict(first.state_dict())
    for outputs, targets in batches[-2:]:
        second.update(outputs, targets)
    assert second.compute("train") == whole.compute("train")
    other = MetricBuffer(as_collection({"other": MeanMetric()}, "metrics"))
    with pytest.raises(ValueError, match="train_metrics: got"):
        other.load_state_dict(first.state_dict())


class MeanOfBatches(Metric):
    """A metric of one's own, whose batches count alike."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0))
        self.add_state("batches", torch.tensor(0))

    def update(self, outputs, targets):
        self.total += (outputs.argmax(1) == targets).float().mean()
        self.batches += 1

    def compute(self):
        return self.total / self.batches


class AveragePrecisionOfBatches(RetrievalMAP):
    """Each batch is the answer to one query."""

    queries = 0

    def update(self, outputs, targets):
        super().update(outputs[:, 1], targets == 1, indexes=torch.full_like(targets, self.queries))
        self.queries += 1


class Tripled(MulticlassAccuracy):
    """One of torchmetrics, changed."""

    def update(self, outputs, targets):
        super().update(outputs, targets)
        self.tp = self.tp.clone() if self._update_count % 3 else self.tp * 0


def accuracy():
    return MulticlassAccuracy(num_classes=3, average="micro")


SPLIT_MATTERS = {
    "running": lambda: Running(accuracy(), window=2),
    "running mean": lambda: RunningMean(window=3),
    "running sum": lambda: RunningSum(window=2),
    "min and max": lambda: MinMaxMetric(accuracy()),
    "retrieval": AveragePrecisionOfBatches,
    "one's own": MeanOfBatches,
    "changed": lambda: Tripled(num_classes=3, average="micro"),
    "of two": lambda: accuracy() + Running(accuracy(), window=2),
}
SPLIT_DOES_NOT_MATTER = {
    "accuracy": accuracy,
    "macro": lambda: MulticlassAccuracy(num_classes=3),
    "F1": lambda: classification.MulticlassF1Score(num_classes=3),
    "AUROC": lambda: classification.MulticlassAUROC(num_classes=3),
    "binned AUROC": lambda: classification.MulticlassAUROC(num_classes=3, thresholds=20),
    "average precision": lambda: classification.MulticlassAveragePrecision(num_classes=3),
    "calibration": lambda: classification.MulticlassCalibrationError(num_classes=3),
    "kappa": lambda: classification.MulticlassCohenKappa(num_classes=3),
    "Matthews": lambda: classification.MulticlassMatthewsCorrCoef(num_classes=3),
    "hinge": lambda: classification.MulticlassHingeLoss(num_classes=3),
    "named": lambda: type("Named", (MulticlassAccuracy,), {})(num_classes=3),
}
REGRESSION = (
    "MeanSquaredError", "MeanAbsoluteError", "R2Score", "ExplainedVariance", "PearsonCorrCoef", "SpearmanCorrCoef",
    "KendallRankCorrCoef", "ConcordanceCorrCoef", "RelativeSquaredError", "LogCoshError", "MeanSquaredLogError",
    "NormalizedRootMeanSquaredError", "SymmetricMeanAbsolutePercentageError", "TweedieDevianceScore",
)  # fmt: skip


def compared(make_metric, batches):
    """The figures of a metric in the buffer, and of the same metric given batch after batch."""
    alone = make_metric()
    buffer = MetricBuffer(MetricCollection({"metric": make_metric()}))
    for outputs, targets in batches:
        alone.update(outputs, targets)
        buffer.update(outputs, targets)
    expected = alone.compute()
    expected = expected if isinstance(expected, dict) else {"metric": expected}
    return list(buffer.compute("val").values()), [float(value) for value in expected.values()]


def samples(sizes=(7, 3, 12, 1, 8)):
    return [(torch.randn(size, 3), torch.randint(3, (size,))) for size in sizes]


@pytest.mark.parametrize("kind", SPLIT_MATTERS)
def test_batches_are_not_joined_where_the_split_matters(kind):
    batches = samples()
    if kind.startswith("running "):  # means and sums of numbers
        batches = [(outputs[:, 0], torch.ones(len(outputs))) for outputs, _ in batches]
        make_metric = SPLIT_MATTERS[kind]
        alone, buffer = make_metric(), MetricBuffer(MetricCollection({"metric": Numbers(make_metric())}))
        for outputs, targets in batches:
            alone.update(outputs)
            buffer.update(outputs, targets)
        assert buffer.compute("val") == {"val/metric": pytest.approx(float(alone.compute()))}
        return
    found, expected = compared(SPLIT_MATTERS[kind], batches)
    assert found == pytest.approx(expected)


class Numbers(Metric):
    """Gives a metric the outputs alone."""

    def __init__(self, metric):
        super().__init__()
        self.metric = metric

    def update(self, outputs, targets):
        self.metric.update(outputs)

    def compute(self):
        return self.metric.compute()


@pytest.mark.parametrize("kind", SPLIT_DOES_NOT_MATTER)
def test_batches_are_joined_where_the_split_does_not_matter(kind):
    batches = samples()
    found, expected = compared(SPLIT_DOES_NOT_MATTER[kind], batches)
    assert found == pytest.approx(expected, abs=1e-6)
    buffer = MetricBuffer(MetricCollection({"metric": SPLIT_DOES_NOT_MATTER[kind]()}))
    buffer.update(*batches[0])
    assert buffer.metrics["metric"]._update_count == 0, "held back"


@pytest.mark.filterwarnings("ignore:Metric .* will save all targets")
@pytest.mark.parametrize("name", REGRESSION)
def test_regression_does_not_depend_on_the_split(name):
    batches = [(torch.rand(size) + 0.1, torch.rand(size) + 0.1) for size in (7, 3, 12, 2, 8)]
    found, expected = compared(getattr(regression, name), batches)
    assert found == pytest.approx(expected, rel=1e-4)


def test_one_metric_that_depends_on_the_split_is_enough():
    metrics = {"accuracy": accuracy(), "running": Running(accuracy(), window=1)}
    buffer = MetricBuffer(as_collection(metrics, "metrics"))
    batches = samples((5, 6))
    for outputs, targets in batches:
        buffer.update(outputs, targets)
    last = float((batches[-1][0].argmax(1) == batches[-1][1]).float().mean())
    assert buffer.compute("val")["val/running"] == pytest.approx(last)


def test_metrics_that_are_no_numbers_are_named():
    metrics = {"roc": classification.MulticlassROC(num_classes=3), "accuracy": accuracy()}
    buffer = MetricBuffer(as_collection(metrics, "metrics"))
    buffer.update(*samples((5,))[0])
    with pytest.raises(ValueError, match=r"metrics: 'roc' computes a tuple of "):
        buffer.compute("val")


# ---------------------------------------------------------------- the loss


def test_means_are_over_samples():
    meter = LossMeter(first_step=1)
    meter.add(torch.tensor(1.0), 30)
    meter.add(torch.tensor(2.0), 10)
    assert meter.read()[0]["train/loss"] == pytest.approx(1.25)
    meter.add(torch.tensor(5.0), 40)
    meter.read()
    figures = meter.finish()
    assert figures["train/loss"] == pytest.approx((30 + 20 + 200) / 80)
    assert figures["samples_per_second"] > 0
    assert meter.count == 3
    assert not meter.unread


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_step_of_a_bad_loss_is_named(value):
    meter = LossMeter(first_step=11)
    for loss in (1.0, value, 2.0):
        meter.add(torch.tensor(loss), 1)
    with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
        meter.read()
    assert meter.bad_step == 12


def test_bad_steps_are_left_out_of_the_mean():
    meter = LossMeter(first_step=1)
    for loss, bad in ((1.0, 0.0), (9.0, 1.0), (3.0, 0.0)):
        meter.add(torch.tensor(loss), 5, torch.tensor(bad))
    figures, bad_steps = meter.read(skips=True)
    assert figures["train/loss"] == 2.0
    assert bad_steps == 1


def test_it_goes_on_where_it_was_saved():
    def feed(meter, losses):
        for loss in losses:
            meter.add(torch.tensor(loss), 3)

    whole, first, second = (LossMeter(first_step=1) for _ in range(3))
    feed(whole, [1.0, 2.0, 4.0])
    feed(first, [1.0, 2.0])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    feed(second, [4.0])
    for meter in (whole, second):
        meter.read()
    assert second.finish()["train/loss"] == whole.finish()["train/loss"]
    assert second.count == 3
