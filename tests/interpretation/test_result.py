from __future__ import annotations

import csv
import functools

import numpy as np
import pytest
import schedulefree
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, Trainer
from mxtorch.interpretation import Interpretation, interpret


@pytest.fixture
def result():
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    predictions = torch.tensor([0, 0, 1, 1, 1, 1, 0, 2, 2, 2])
    logits = F.one_hot(predictions, 4).float() * torch.linspace(0.5, 3, 10)[:, None]
    return Interpretation(logits.softmax(1), targets, ["cat", "dog", "pig", "owl"])


def test_figures_follow_their_definitions(result):
    assert result.confusion.tolist() == [[2, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]
    assert result.accuracy == pytest.approx(0.7)
    rows = {row["class"]: row for row in result.per_class()}
    assert (rows["cat"]["precision"], rows["cat"]["recall"]) == (pytest.approx(2 / 3), pytest.approx(0.5))
    assert rows["cat"]["f1"] == pytest.approx(4 / 7)
    assert rows["owl"]["samples"] == 0
    assert np.isnan(rows["owl"]["recall"])
    assert [(row["true"], row["predicted"], row["times"], row["part"]) for row in result.most_confused()] == [
        ("cat", "dog", 2, 0.5),
        ("dog", "cat", 1, pytest.approx(1 / 3)),
    ]
    assert torch.allclose(result.losses, F.nll_loss(result.probabilities.log(), result.targets, reduction="none"))
    worst = result.top_losses(3)
    assert [row["sample"] for row in worst] == [6, 3, 2]
    assert worst[0]["true"] == "dog"
    assert worst[0]["predicted"] == "cat"


def test_calibration_equals_a_computation_in_numpy():
    torch.manual_seed(0)
    probabilities = (torch.randn(500, 3) * 2).softmax(1)
    targets = torch.multinomial(probabilities, 1)[:, 0]
    result = Interpretation(probabilities, targets, ["a", "b", "c"])
    sure, right = probabilities.max(1).values.numpy(), (probabilities.argmax(1) == targets).numpy()
    error = 0.0
    for row in result.calibration():
        inside = (sure > row["low"]) & (sure <= row["high"])
        assert row["samples"] == inside.sum()
        assert row["accuracy"] == pytest.approx(right[inside].mean())
        error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert result.calibration_error == pytest.approx(error, abs=1e-4)
    assert error < 0.06  # the targets were drawn from these probabilities


def test_plots_and_files(result, tmp_path):
    assert [text.get_text() for text in result.plot_confusion().texts] == ["2", "2", "1", "2", "3"]
    assert "0.700" in result.plot_confusion().get_title(loc="left")
    assert len(result.plot_per_class().get_yticklabels()) == 3  # the class "owl" has no samples
    assert result.plot_calibration().get_xlabel() == "predicted probability"
    assert len(result.plot().axes) == 3
    with pytest.raises(ValueError, match="pictures: got none"):
        result.plot_top_losses()
    paths = result.to_csv(tmp_path / "figures")
    with open(paths[0], newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == result.classes
    assert "accuracy 0.7000" in str(result)
    assert "cat taken for dog: 2 times (50%)" in str(result)


@pytest.fixture
def pictures():
    labels = torch.arange(20) % 2
    return TensorDataset(torch.randn(20, 3, 8, 8) + labels[:, None, None, None], labels)


def test_from_a_trainer(pictures, make, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 2))
    trainer = make(net, log_dir=tmp_path)
    data = DataLoader(pictures, 6)
    result = trainer.interpret(data, classes=["ant", "bee"], pictures=3)
    net.eval()
    logits = net(pictures.tensors[0])
    assert torch.allclose(result.probabilities, logits.softmax(1).detach(), atol=1e-6)
    worst = F.cross_entropy(logits, pictures.tensors[1], reduction="none").argsort(descending=True)[:3].tolist()
    assert list(result.pictures) == worst
    assert torch.equal(result.pictures[worst[0]], pictures.tensors[0][worst[0]])
    figure = result.plot_top_losses()
    assert len([axes for axes in figure.axes if axes.images]) == 3
    trainer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert {"interpretation/overview", "interpretation/top_losses"} <= set(events.Tags()["images"])
    assert "interpretation/calibration_error" in events.Tags()["scalars"]
    assert "interpretation/per_class/text_summary" in events.Tags()["tensors"]


def test_names_of_classes(pictures, make):
    trainer = make(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    assert trainer.interpret(DataLoader(pictures, 6), pictures=0).classes == ["0", "1"]
    pictures.classes = ["ant", "bee"]
    assert trainer.interpret(DataLoader(pictures, 6)).classes == ["ant", "bee"]
    with pytest.raises(ValueError, match="classes: got 3 names, but the model has 2 outputs"):
        trainer.interpret(DataLoader(pictures, 6), classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("net", "batch", "message"),
    [
        (nn.Linear(4, 1), (torch.ones(3, 4), torch.zeros(3).long()), r"interpret needs logits"),
        (nn.Linear(4, 2), (torch.ones(3, 4), torch.zeros(3)), "interpret needs class numbers"),
        (nn.Linear(4, 2), torch.ones(3, 4), "interpret needs class numbers"),
        (nn.Linear(4, 2), (torch.ones(3, 4), torch.ones(3, 2)), "several labels or numbers for each sample"),
        (nn.Linear(4, 2), (torch.ones(3, 4), torch.ones(3, 2).long()), "several labels or numbers for each sample"),
        (nn.Linear(4, 1), (torch.ones(3, 4), torch.zeros(3)), "One output is a number, or the logit of one class"),
    ],
)
def test_models_that_are_no_classifiers(net, batch, message, make):
    with pytest.raises(ValueError, match=message):
        make(net).interpret([batch])
    with pytest.raises(ValueError, match="no batches"):
        make(net).interpret([])


@pytest.mark.parametrize("label", [2, -1])
def test_a_class_number_that_the_model_does_not_have(label, make):
    with pytest.raises(ValueError, match=r"got class numbers .*; the model has 2 outputs, so give 0 to 1"):
        make(nn.Linear(4, 2)).interpret([(torch.ones(2, 4), torch.tensor([0, label]))])


def test_a_later_batch_that_the_model_can_not_take(make):
    trainer = make(nn.Linear(4, 2))
    first, wrong = (torch.ones(3, 4), torch.zeros(3).long()), (torch.ones(3, 5), torch.zeros(3).long())
    with pytest.raises(ValueError, match="could not take the first batch"):
        trainer.interpret([wrong, first])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer.interpret([first, wrong])


def test_any_object_with_model_and_predict_will_do(pictures):
    class Model:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))

        def predict(self, data):
            return self.model(torch.cat([inputs for inputs, _ in data])).detach()

    result = interpret(Model(), DataLoader(pictures, 6), pictures=2)
    assert torch.allclose(result.probabilities, Model.model(pictures.tensors[0]).softmax(1), atol=1e-6)
    assert len(result.pictures) == 2


def test_averaged_weights_are_interpreted(two_moons):
    """As in `evaluate`, also during training, when Schedule-Free holds the weights at another point."""
    loader = DataLoader(two_moons, 32)

    class Interprets(Callback):
        def on_step(self, trainer):
            before = trainer.model.weight.detach().clone()
            losses.append((float(trainer.interpret(loader).losses.mean()), trainer.evaluate(loader)["val/loss"]))
            assert torch.equal(trainer.model.weight, before)

    losses = []
    net = nn.Linear(8, 2)
    optimizer = schedulefree.SGDScheduleFree(net.parameters(), lr=0.5)
    Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, callbacks=[Interprets()]).fit(loader)
    assert len(losses) == 8
    for interpreted, evaluated in losses:
        assert interpreted == pytest.approx(evaluated, rel=1e-5)


WEIGHTS = torch.tensor([1.0, 5.0])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.NLLLoss(),
    ],
)
def test_the_loss_is_that_of_the_training(loss, make):
    """The loss equals that of all data as one batch, whatever the batch sizes."""
    inputs, labels = torch.randn(20, 4), torch.arange(20) % 2
    net = nn.Sequential(nn.Linear(4, 2), nn.LogSoftmax(1))
    result = make(net, loss).interpret(list(zip(inputs.split(6), labels.split(6), strict=True)))
    if isinstance(loss, nn.NLLLoss) or loss.reduction == "sum":
        assert result.loss is None
        assert "cross-entropy" in str(result)
        return
    expected = float(loss(net(inputs).detach(), labels))
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.loss == pytest.approx(make(net, loss).evaluate([(inputs, labels)])["val/loss"], rel=1e-5)
    assert f"loss {expected:.4f}" in str(result)
    assert ("with class weights or label smoothing" in str(result)) == bool(
        loss.label_smoothing or loss.weight is not None
    )


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("ignored", [-100, 1, 255])
def test_samples_that_the_loss_ignores_are_left_out(pictures, make, ignored, function):
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    if function:
        loss = F.cross_entropy if ignored == -100 else functools.partial(F.cross_entropy, ignore_index=ignored)
    inputs, labels = pictures.tensors[0], pictures.tensors[1].clone()
    labels[[1, 2, 7, 19]] = ignored
    left = labels != ignored
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    result = make(net, loss).interpret(list(zip(inputs.split(6), labels.split(6), strict=True)), pictures=4)
    assert result.ignored == int((~left).sum())
    assert f"{result.ignored} samples left out" in str(result)
    assert torch.equal(result.targets, labels[left])
    logits = net(inputs).detach()
    assert torch.allclose(result.probabilities, logits[left].softmax(1), atol=1e-6)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignored)
    worst = losses.argsort(descending=True)[:4].tolist()
    assert [row["sample"] for row in result.top_losses(4)] == worst
    assert list(result.pictures) == worst
    assert all(torch.equal(result.pictures[number], inputs[number]) for number in worst)
    result.plot_top_losses()


def test_only_ignored_samples_are_an_error(make):
    with pytest.raises(ValueError, match="every label is -100, which the loss ignores"):
        make(nn.Linear(4, 2)).interpret([(torch.ones(3, 4), torch.full((3,), -100))])
