"""What is wrong with a run is said before its first step, and looking for it leaves no trace."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from mxtorch import Callback, StepOutput, Trainer

CLASSES = 3


class Arranged(Trainer):
    """Counts the batches that it is trained on."""

    trained = 0

    def training_step(self, batch):
        self.trained += 1
        return super().training_step(batch)


def made(net=None, loss=None, kind=Trainer, **options) -> Trainer:
    net = nn.Linear(4, CLASSES) if net is None else net
    loss = nn.CrossEntropyLoss() if loss is None else loss
    return kind(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False, **options)


def data(count=32, size=8, classes=CLASSES) -> list:
    return list(zip(torch.randn(count, 4).split(size), torch.randint(classes, (count,)).split(size), strict=True))


def accuracy(classes=CLASSES):
    return torchmetrics.Accuracy(task="multiclass", num_classes=classes)


# ---------------------------------------------------------------- refused before the first step

WRONG = {
    "a curve": ({"roc": torchmetrics.ROC(task="multiclass", num_classes=CLASSES)}, "'roc' computes a tuple"),
    "a precision-recall curve": (
        {"pr": torchmetrics.PrecisionRecallCurve(task="multiclass", num_classes=CLASSES)},
        "'pr' computes a tuple",
    ),
    "too few classes": ({"accuracy": accuracy(2)}, "'accuracy' can't take the first batch"),
    "too many classes": ({"accuracy": accuracy(7)}, "'accuracy' can't take the first batch"),
    "another task": ({"accuracy": torchmetrics.Accuracy(task="binary")}, "'accuracy' can't take the first batch"),
    "of numbers": ({"error": torchmetrics.MeanSquaredError()}, "'error' can't take the first batch"),
    "one of several": ({"good": accuracy(), "bad": accuracy(9)}, "'bad' can't take the first batch"),
}


@pytest.mark.parametrize("argument", ["metrics", "train_metrics"])
@pytest.mark.parametrize("name", WRONG)
def test_metrics_that_can_not_be_computed(name, argument):
    metrics, message = WRONG[name]
    trainer = made(**{argument: metrics})
    before = trainer.model.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        trainer.fit(data(), data(), epochs=2)
    assert torch.equal(before, trainer.model.weight)
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.randn(8, 5), torch.zeros(8, dtype=torch.long)), "could not take the first batch"),
        ((torch.randn(8, 4), torch.full((8,), 7)), "labels: got 7 to 7"),
        ((torch.randn(8, 4), torch.zeros(7, dtype=torch.long)), "could not take the first batch"),
        (torch.randn(8, 4), "could not take the first batch|gives no loss"),
        ({"x": torch.randn(8, 4)}, "could not take the first batch"),
        ((torch.randn(8, 4), torch.zeros(8, dtype=torch.int32)), "could not take the first batch"),
    ],
)
@pytest.mark.parametrize("as_loader", [False, True])
def test_a_bad_validation_batch(batch, message, as_loader):
    class Batches(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return batch

    trainer = made(kind=Arranged)
    with pytest.raises(ValueError, match=message):
        trainer.fit(data(), DataLoader(Batches(), 1, collate_fn=lambda items: items[0]) if as_loader else [batch])
    assert trainer.trained == 0


def test_validation_where_training_step_alone_is_overridden():
    class Own(Trainer):
        def training_step(self, batch):
            return self.model(batch[0]).square().mean()

    net = nn.Linear(4, 2)
    trainer = Own(net, None, torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False)
    with pytest.raises(ValueError, match="override evaluation_step too"):
        trainer.fit(data(), data())
    with pytest.raises(ValueError, match="override evaluation_step too"):
        trainer.evaluate(data())
    assert trainer.step == 0
    trainer.fit(data())  # without validation there is nothing to miss


def test_an_evaluation_step_without_a_result():
    class Nothing(Trainer):
        def evaluation_step(self, batch):
            return StepOutput(None)

    with pytest.raises(ValueError, match="nothing to report"):
        made(kind=Nothing).evaluate(data())


LAST = {
    "a loader": lambda: DataLoader(TensorDataset(torch.randn(33, 4), torch.zeros(33).long()), 32),
    "a shuffled loader": lambda: DataLoader(
        TensorDataset(torch.randn(33, 4), torch.zeros(33).long()), 16, shuffle=True
    ),
    "a list": lambda: [(torch.randn(8, 4), torch.zeros(8).long()), (torch.randn(1, 4), torch.zeros(1).long())],
}


@pytest.mark.parametrize("kind", LAST)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_last_batch_of_one_with_batch_normalisation(kind, accumulate):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    before = net[0].weight.detach().clone()
    trainer = made(net, accumulate=accumulate)
    with pytest.raises(ValueError, match=r"its last batch has one sample, and 1 \(BatchNorm1d\).*drop_last=True"):
        trainer.fit(LAST[kind]())
    assert torch.equal(before, net[0].weight)
    assert not net[1]._forward_pre_hooks


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_one_that_could_not_be_foreseen(batch):
    class Stream:
        def __iter__(self):
            yield from [(torch.randn(n, 4), torch.zeros(n).long()) for n in [8] * (batch - 1) + [1]]

    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    with pytest.raises(ValueError, match=f"step {batch} .*a batch of one sample.*drop_last=True"):
        made(net).fit(Stream())


@pytest.mark.parametrize("case", ["pictures", "frozen", "drop_last", "group"])
def test_a_last_batch_of_one_that_is_none(case):
    count, options = 33, {"drop_last": case == "drop_last"}
    inputs = torch.randn(count, 3, 6, 6) if case == "pictures" else torch.randn(count, 4)
    norm = {"pictures": nn.BatchNorm2d(4), "group": nn.GroupNorm(2, 4)}.get(case, nn.BatchNorm1d(4))
    first = nn.Conv2d(3, 4, 3) if case == "pictures" else nn.Linear(4, 4)
    end = nn.Sequential(nn.Flatten(), nn.Linear(64 if case == "pictures" else 4, CLASSES))
    if case == "frozen":
        norm.requires_grad_(False)
    net = nn.Sequential(first, norm, end)
    trainer = made(net, channels_last=False)
    trainer.fit(DataLoader(TensorDataset(inputs, torch.randint(CLASSES, (count,))), 8, **options))
    assert trainer.step == (4 if case == "drop_last" else 5)


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss, Dataset])
def test_a_class_in_place_of_a_loss(kind):
    net = nn.Linear(4, 2)
    with pytest.raises(TypeError, match=rf"got the class {kind.__name__}; give an instance, {kind.__name__}\(\)"):
        Trainer(net, kind, torch.optim.SGD(net.parameters(), lr=0.1))


# ---------------------------------------------------------------- warned of


def after(*modules):
    return nn.Sequential(nn.Linear(4, CLASSES), *modules)


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.linear, self.end = nn.Linear(4, CLASSES), end

    def forward(self, inputs):
        return self.end(self.linear(inputs))


one_hot = [(x, nn.functional.one_hot(y, CLASSES).float()) for x, y in data()]
DOUBTFUL = {
    "softmax at the end": (after(nn.Softmax(1)), nn.CrossEntropyLoss(), data(), "takes their softmax once more"),
    "softmax in forward": (
        Ends(lambda x: x.softmax(1)),
        nn.CrossEntropyLoss(),
        data(),
        "takes their softmax once more",
    ),
    "softmax and the function": (after(nn.Softmax(1)), nn.functional.cross_entropy, data(), "takes their softmax once"),
    "logits and NLLLoss": (after(), nn.NLLLoss(), data(), "takes logarithms of probabilities"),
    "softmax and NLLLoss": (after(nn.Softmax(1)), nn.NLLLoss(), data(), "takes logarithms of probabilities"),
    "sigmoid twice": (after(nn.Sigmoid()), nn.BCEWithLogitsLoss(), one_hot, "takes their sigmoid once more"),
    "1,000 outputs": (nn.Linear(4, 1000), nn.CrossEntropyLoss(), data(), "has 1000 outputs, and the highest label"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_outputs_that_a_loss_is_not_made_for(name):
    net, loss, batches, message = DOUBTFUL[name]
    with pytest.warns(UserWarning, match=message) as caught:
        made(net, loss).fit(batches, epochs=2)
    assert len(caught) == 1


FINE = {
    "logits": (after(), nn.CrossEntropyLoss(), data()),
    "log-softmax": (after(nn.LogSoftmax(1)), nn.NLLLoss(), data()),
    "log-softmax and cross entropy": (after(nn.LogSoftmax(1)), nn.CrossEntropyLoss(), data()),
    "logits of bits": (after(), nn.BCEWithLogitsLoss(), one_hot),
    "probabilities and BCELoss": (after(nn.Sigmoid()), nn.BCELoss(), one_hot),
    "regression to probabilities": (after(nn.Softmax(1)), nn.MSELoss(), one_hot),
    "many classes": (nn.Linear(4, 200), nn.CrossEntropyLoss(), data(classes=200)),
}


@pytest.mark.parametrize("name", FINE)
def test_outputs_that_are_fine(name):
    net, loss, batches = FINE[name]
    made(net, loss).fit(batches)


@pytest.mark.parametrize("outputs", [CLASSES, 4, 1000])
@pytest.mark.parametrize("split", [False, True])
def test_more_outputs_than_the_data_set_has_classes(outputs, split):
    dataset = TensorDataset(torch.randn(32, 4), torch.randint(CLASSES, (32,)))
    dataset.classes = ["a", "b", "c"]
    loader = DataLoader(Subset(dataset, range(16)) if split else dataset, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(nn.Linear(4, outputs)).fit(loader)
    assert [f"{outputs} outputs, and the data set has 3 classes" in str(one.message) for one in caught] == (
        [] if outputs == CLASSES else [True]
    )


@pytest.mark.parametrize("change", ["replaced", "added", "parameter", "loss"])
def test_a_layer_that_no_optimizer_trains(change):
    class WithScale(nn.Module):
        def forward(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    net, loss = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, CLASSES)), WithScale()
    trainer = made(net, loss)
    if change == "replaced":
        net[1] = nn.Linear(4, CLASSES)
    elif change == "added":
        net.append(nn.Linear(CLASSES, CLASSES))
    elif change == "parameter":
        net[1].bias = nn.Parameter(torch.zeros(CLASSES))
    else:
        loss.scale = nn.Parameter(torch.ones(()))
    with pytest.warns(UserWarning, match="leaves out trainable parameters"):
        trainer.fit(data())
    trainer.fit(data())  # which is said once


def test_all_layers_replaced_is_an_error():
    net = nn.Sequential(nn.Linear(4, CLASSES))
    trainer = made(net)
    net[0] = nn.Linear(4, CLASSES)
    with pytest.raises(ValueError, match="holds none of the model's trainable parameters"):
        trainer.fit(data())


# ---------------------------------------------------------------- no trace


class Counting(Dataset):
    """Counts, draws random numbers from everywhere, has a generator of its own."""

    def __init__(self):
        self.calls, self.generator = 0, torch.Generator().manual_seed(5)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.calls += 1
        noise = torch.randn(4, generator=self.generator) + torch.randn(4) + random.random() + np.random.rand()
        return noise.float(), index % CLASSES


class State(Callback):
    """What the run begins with."""

    def on_fit_start(self, trainer):
        self.random = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        self.model = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        self.modes = [module.training for module in trainer.model.modules()]
        self.gradients = [parameter.grad for parameter in trainer.model.parameters()]


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.calls = nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES), 0
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, inputs):
        self.calls += 1
        outputs = self.norm(self.linear(inputs)) + torch.rand(())
        self.mean.mul_(0.5).add_(outputs.detach().mean(0))
        return outputs


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_trial_leaves_no_trace(workers, shuffle):
    dataset, state, metric = Counting(), State(), accuracy()
    generator = torch.Generator().manual_seed(2)
    held_out = DataLoader(dataset, 4, shuffle=shuffle, generator=generator, num_workers=workers)
    net = Attributes()
    trainer = made(net, metrics={"accuracy": metric}, callbacks=[state])
    train_data = data()
    random_before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    model_before = {name: value.clone() for name, value in net.state_dict().items()}
    calls, own, dealt = dataset.calls, dataset.generator.get_state(), generator.get_state()

    class Look(Callback):
        def on_fit_start(self, trainer):
            assert (dataset.calls, net.calls) == (calls, 0)
            assert torch.equal(dataset.generator.get_state(), own)
            assert torch.equal(generator.get_state(), dealt)
            assert metric._update_count == 0

    trainer.callbacks.callbacks.append(Look())
    trainer.fit(train_data, held_out)
    assert torch.equal(state.random[0], random_before[0])
    assert state.random[1:] == random_before[1:]
    assert all(torch.equal(value, model_before[name]) for name, value in state.model.items())
    assert all(state.modes)
    assert state.gradients == [None] * len(state.gradients)


def test_data_that_are_not_free_to_look_at_are_not_begun_twice():
    begun = []

    class Stream(IterableDataset):
        def __iter__(self):
            begun.append("stream")
            return iter([(torch.randn(4), 1)] * 8)

    class Own:
        def __iter__(self):
            begun.append("iterable")
            return iter(data())

    class OwnLoader(DataLoader):
        def __iter__(self):
            begun.append("loader")
            return super().__iter__()

    dataset = TensorDataset(torch.randn(8, 4), torch.zeros(8).long())
    for held_out in (DataLoader(Stream(), 4), Own(), OwnLoader(dataset, 4), iter(data())):
        made().fit(data(), held_out)
    assert begun == ["stream", "iterable", "loader"]


def test_training_data_are_begun_once():
    begun = []

    class Once:
        def __iter__(self):
            begun.append(1)
            return iter(data())

    trainer = made(train_metrics=accuracy(), kind=Arranged)
    trainer.fit(Once())
    assert begun == [1]
    assert trainer.trained == 4


# ---------------------------------------------------------------- the names of figures


class Expected(Callback):
    def on_fit_start(self, trainer):
        self.names = trainer.run.expected_figures
        self.expects = trainer.run.expects


@pytest.mark.parametrize("validates", [False, True])
def test_the_names_of_a_row_are_known_beforehand(validates):
    expected = Expected()
    metrics = {
        "accuracy": accuracy(),
        "each": torchmetrics.Recall(task="multiclass", num_classes=CLASSES, average=None),
        "spread": torchmetrics.BootStrapper(accuracy(), num_bootstraps=2),
    }
    history = made(metrics=metrics, callbacks=[expected]).fit(data(), data() if validates else None)
    assert expected.names == set(history.rows[0])
    assert not expected.expects("val/acuracy")
    assert not expected.expects("train/accuracy")
    assert expected.expects("val/each_2") == validates


def test_names_that_are_not_known_are_not_ruled_out():
    expected = Expected()
    made(train_metrics=accuracy(), metrics=accuracy(), callbacks=[expected]).fit(data(), iter(data()))
    assert expected.expects("train/anything")
    assert expected.expects("val/anything")
    assert not expected.expects("accuracy")


@pytest.mark.filterwarnings("ignore:The variance of predictions:UserWarning")
def test_a_metric_that_one_batch_is_too_small_for():
    class Hungry(torchmetrics.MeanMetric):
        def update(self, outputs, targets):
            super().update(outputs.detach())

        def compute(self):
            if self._update_count == 1 and self.weight < 30:
                raise ValueError("too few samples")
            return super().compute()

    with pytest.warns(UserWarning, match="can't compute on the first batch alone .*too few samples"):
        history = made(metrics={"hungry": Hungry()}).fit(data(), data())
    assert "val/hungry" in history.rows[0]
