"""A window of batches equals one large batch, for every loss of torch, and so does an evaluation."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mxtorch import StepOutput, Trainer
from mxtorch.training.loss_weight import ADDS_UP, CountedTargets, read_weights, weigher_of
from mxtorch.training.metrics import LossMeter
from mxtorch.training.supervised import batch_size

FEATURES, CLASSES, SAMPLES = 6, 5, 26
CLASS_WEIGHTS = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def labels(ignored: int = -100) -> torch.Tensor:
    """Labels of which some are ignored, and the first four, a whole batch, all are."""
    targets = torch.randint(CLASSES, (SAMPLES,))
    targets[torch.rand(SAMPLES) < 0.3] = ignored
    targets[:4] = ignored
    return targets


def values() -> torch.Tensor:
    return torch.randn(SAMPLES, CLASSES)


def probabilities() -> torch.Tensor:
    return torch.randn(SAMPLES, CLASSES).softmax(1)


def signs() -> torch.Tensor:
    return torch.randint(2, (SAMPLES, CLASSES)) * 2.0 - 1


def bits() -> torch.Tensor:
    return torch.randint(2, (SAMPLES, CLASSES)) * 1.0


def label_losses():
    for reduction in ("mean", "sum"):
        for weight in (None, CLASS_WEIGHTS):
            for ignored in (-100, 2):
                settings = {"weight": weight, "ignore_index": ignored, "reduction": reduction}
                name = f"{reduction}, {'weighted' if weight is not None else 'unweighted'}, ignore {ignored}"
                targets = functools.partial(labels, ignored)
                yield f"CrossEntropyLoss, {name}", None, nn.CrossEntropyLoss(**settings), targets
                smooth = nn.CrossEntropyLoss(**settings, label_smoothing=0.1)
                yield f"CrossEntropyLoss, smoothed, {name}", None, smooth, targets
                yield f"cross_entropy, {name}", None, functools.partial(F.cross_entropy, **settings), targets
                yield f"NLLLoss, {name}", nn.LogSoftmax(1), nn.NLLLoss(**settings), targets
                yield f"nll_loss, {name}", nn.LogSoftmax(1), functools.partial(F.nll_loss, **settings), targets
            settings = {"weight": weight, "reduction": reduction}
            name = f"{reduction}, {'weighted' if weight is not None else 'unweighted'}"
            yield f"CrossEntropyLoss, probabilities, {name}", None, nn.CrossEntropyLoss(**settings), probabilities
            yield f"BCEWithLogitsLoss, {name}", None, nn.BCEWithLogitsLoss(**settings), bits
            yield f"BCELoss, {name}", nn.Sigmoid(), nn.BCELoss(**settings), bits
            if reduction == "mean":  # its labels can't be ignored
                yield f"MultiMarginLoss, {name}", None, nn.MultiMarginLoss(**settings), lambda: labels(0)
            yield f"MultiLabelSoftMarginLoss, {name}", None, nn.MultiLabelSoftMarginLoss(**settings), bits


def element_losses():
    for reduction in ("mean", "sum"):
        for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss):
            yield f"{kind.__name__}, {reduction}", None, kind(reduction=reduction), values
        yield f"SoftMarginLoss, {reduction}", None, nn.SoftMarginLoss(reduction=reduction), signs
        yield f"HingeEmbeddingLoss, {reduction}", None, nn.HingeEmbeddingLoss(reduction=reduction), signs
        yield f"PoissonNLLLoss, {reduction}", None, nn.PoissonNLLLoss(reduction=reduction), lambda: values().abs()
        multi = nn.MultiLabelMarginLoss(reduction=reduction)
        yield f"MultiLabelMarginLoss, {reduction}", None, multi, lambda: torch.randint(-1, CLASSES, (SAMPLES, CLASSES))
        yield f"mse_loss, {reduction}", None, functools.partial(F.mse_loss, reduction=reduction), values
    for reduction in ("mean", "batchmean", "sum"):
        yield f"KLDivLoss, {reduction}", nn.LogSoftmax(1), nn.KLDivLoss(reduction=reduction), probabilities
    yield "mse_loss as it is", None, F.mse_loss, values
    yield "cross_entropy as it is", None, F.cross_entropy, labels
    yield "pos_weight", None, nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), bits


class Positional(nn.Module):
    """Any inputs -> outputs [samples, classes]."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.end = nn.Linear(FEATURES, CLASSES), end

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.linear(inputs)
        return outputs if self.end is None else self.end(outputs)


class TimeFirst(Positional):
    """Sequences [time, samples, features]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.mean(0))


class Graphs(Positional):
    """Graphs whose nodes are joined: `nodes` [all nodes, features], `graph` says which graph a node is of."""

    def forward(self, nodes: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(int(graph.max()) + 1, FEATURES).index_add(0, graph, nodes)
        return super().forward(sums)


def tuples(inputs, targets, nodes):
    return inputs, targets


def time_first(inputs, targets, nodes):
    return torch.stack([inputs, 2 * inputs, inputs - 1]), targets


def graphs(inputs, targets, nodes):
    graph = torch.arange(len(inputs)).repeat_interleave(nodes)
    return {"nodes": inputs[graph], "graph": graph, "labels": targets}


FORMS = {"tuple": (Positional, tuples), "time-major": (TimeFirst, time_first), "graphs": (Graphs, graphs)}
LOSSES = {name: rest for name, *rest in (*label_losses(), *element_losses())}
SPLITS = {"even": [4] * 6 + [2], "uneven": [4, 9, 1, 7, 5], "one": [26]}


def batches_of(form, sizes, inputs, targets, nodes):
    parts = zip(inputs.split(sizes), targets.split(sizes), nodes.split(sizes), strict=True)
    return [form(*part) for part in parts]


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_window_and_an_evaluation_equal_one_large_batch(name, form):
    end, loss, make_targets = LOSSES[name]
    network, batch = FORMS[form]
    data = torch.randn(SAMPLES, FEATURES), make_targets(), torch.randint(1, 6, (SAMPLES,))
    start = network(end)
    found = {}
    for split, sizes in SPLITS.items():
        net = copy.deepcopy(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        trainer = Trainer(net, loss, optimizer, accumulate=len(sizes), device="cpu", progress=False)
        batches = batches_of(batch, sizes, *data)
        evaluated = trainer.evaluate(batches)["val/loss"]
        trained = trainer.fit(batches)["train/loss"]
        moved = torch.cat([(p - q).flatten() for p, q in zip(net.parameters(), start.parameters(), strict=True)])
        found[split] = evaluated, trained[0], moved.detach()
    evaluated, trained, moved = found.pop("one")
    assert evaluated == pytest.approx(trained, rel=1e-12)
    for other_evaluated, other_trained, other_moved in found.values():
        assert other_evaluated == pytest.approx(evaluated, rel=1e-9)
        assert other_trained == pytest.approx(trained, rel=1e-9)
        assert (other_moved - moved).norm() <= 1e-9 * moved.norm()


def test_pixels_that_are_ignored_do_not_count():
    inputs, targets = torch.randn(6, 3, 4, 4), torch.randint(CLASSES, (6, 4, 4))
    targets[torch.rand(targets.shape) < 0.5] = -100
    moved = []
    for sizes in ([6], [1, 3, 2]):
        torch.manual_seed(1)
        net = nn.Conv2d(3, CLASSES, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        trainer = Trainer(
            net, nn.CrossEntropyLoss(CLASS_WEIGHTS), optimizer, accumulate=len(sizes), device="cpu", progress=False
        )
        trainer.fit(list(zip(inputs.split(sizes), targets.split(sizes), strict=True)))
        moved.append(net.weight.detach())
    assert torch.allclose(*moved, rtol=1e-12)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_says_what_its_loss_is_a_mean_of(as_tensor, accumulate):
    """Sequences of different lengths: the loss is a mean over words."""

    class Words(Trainer):
        def training_step(self, batch):
            inputs, targets, mask = batch
            losses = F.cross_entropy(self.model(inputs), targets, reduction="none") * mask
            words = mask.sum()
            return StepOutput(losses.sum() / words, weight=words if as_tensor else int(words))

        evaluation_step = training_step

    inputs, targets, mask = torch.randn(12, FEATURES), torch.randint(CLASSES, (12,)), (torch.rand(12) < 0.6).double()
    mask[:4], mask[4] = 0, 1  # nothing to learn from in the first batch
    net = nn.Linear(FEATURES, CLASSES)
    whole = F.cross_entropy(net(inputs), targets, reduction="none").mul(mask).sum() / mask.sum()
    expected = torch.autograd.grad(whole, net.weight)[0]
    trainer = Words(
        net, None, torch.optim.SGD(net.parameters(), lr=1.0), accumulate=accumulate, device="cpu", progress=False
    )
    batches = list(zip(inputs.split(4), targets.split(4), mask.split(4), strict=True))
    before = net.weight.detach().clone()
    assert trainer.evaluate(batches)["val/loss"] == pytest.approx(whole.item())
    history = trainer.fit(batches)
    if accumulate == 3:
        assert history["train/loss"] == [pytest.approx(whole.item())]
        assert torch.allclose(before - net.weight, expected)
    else:
        assert trainer.skipped_steps == 1
        assert history["train/loss"][0] < 10


def test_samples_can_be_counted_by_an_overridden_method():
    class Bags(Trainer):
        def count_samples(self, batch):
            return int(batch["bags"])

    def loss(outputs, targets):  # not one that is known
        return (outputs - targets).square().mean()

    batches = [{"input": torch.randn(9, 2), "bags": torch.tensor(bags), "labels": torch.randn(())} for bags in (1, 5)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, input, bags):
            return self.linear(input).mean()

    net = Net()
    trainer = Bags(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), accumulate=2, device="cpu", progress=False)
    first, second = (loss(net(batch["input"], None), batch["labels"]).item() for batch in batches)
    assert trainer.evaluate(batches)["val/loss"] == pytest.approx((first + 5 * second) / 6)
    assert trainer.fit(batches)["train/loss"] == [pytest.approx((first + 5 * second) / 6)]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("ignored", [[0], [3], [1, 2], [0, 1]])
def test_batches_that_are_wholly_ignored_are_passed_over(accumulate, ignored):
    inputs = torch.randn(32, FEATURES)
    targets = torch.randint(CLASSES, (32,))
    for batch in ignored:
        targets[batch * 8 : batch * 8 + 8] = -100
    net = nn.Linear(FEATURES, CLASSES)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), lr=0.1),
        accumulate=accumulate,
        device="cpu",
        progress=False,
    )
    right = F.cross_entropy(net(inputs), targets).item()
    assert trainer.evaluate(batches)["val/loss"] == pytest.approx(right, rel=1e-12)
    history = trainer.fit(batches, batches)
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert 0 < history["train/loss"][0] < 10
    whole_windows = sum(all(b in ignored for b in range(s, s + accumulate)) for s in range(0, 4, accumulate))
    assert trainer.skipped_steps == whole_windows
    assert trainer.optimizer.current_steps == 4 // accumulate - whole_windows


def test_training_metrics_leave_ignored_batches_out():
    import torchmetrics

    inputs, targets = torch.randn(16, FEATURES), torch.randint(CLASSES, (16,))
    targets[:8] = -100
    net = nn.Linear(FEATURES, CLASSES)
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, train_metrics={"a": metric}, device="cpu", progress=False)
    right = (net(inputs[8:]).argmax(1) == targets[8:]).double().mean().item()
    assert trainer.fit(list(zip(inputs.split(8), targets.split(8), strict=True)))["train/a"] == [pytest.approx(right)]


class OwnForward(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return super().forward(input, target) + 1


class Inherited(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (nn.CrossEntropyLoss(), True),
        (Inherited(), True),
        (OwnForward(), False),
        (F.cross_entropy, True),
        (functools.partial(F.cross_entropy, reduction="sum"), True),
        (lambda outputs, targets: outputs.sum(), False),
        (nn.Linear(1, 1), False),
    ],
)
def test_losses_that_are_known(loss, known):
    assert (weigher_of(loss) is not None) == known


def test_weights_are_read_together():
    class_weights = torch.tensor([1.0, 2.0])
    counted = [
        CountedTargets(torch.tensor([0, 1, -100]), nn.CrossEntropyLoss(weights))
        for weights in (None, class_weights, None)
    ]
    weights = [
        4,
        counted[0],
        torch.tensor(2.5),
        ADDS_UP,
        counted[1],
        counted[2],
        CountedTargets(torch.tensor(1), nn.CrossEntropyLoss()),
    ]
    assert read_weights(weights) == [4, 2, 2.5, 1, 3, 2, 1]


def test_the_meter_weighs_losses_and_goes_on_from_its_state():
    def add(meter, first, last):
        for step in range(first, last):
            targets = torch.tensor([0, 1, -100 if step % 2 else 1])
            meter.add(torch.tensor(float(step)), 3, weight=CountedTargets(targets, nn.NLLLoss()))

    meter, other = LossMeter(1), LossMeter(1)
    add(meter, 0, 5)
    add(other, 0, 3)
    restored = LossMeter(0)
    restored.load_state_dict(other.state_dict(), torch.device("cpu"))
    add(restored, 3, 5)
    expected = (0 * 3 + 1 * 2 + 2 * 3 + 3 * 2 + 4 * 3) / 13
    assert meter.read()[0]["train/loss"] == restored.read()[0]["train/loss"] == expected
    assert meter.finish()["train/loss"] == restored.finish()["train/loss"] == expected


def test_a_loss_of_nothing_is_no_bad_step():
    meter = LossMeter(1)
    meter.add(torch.tensor(1.0), 2, weight=2)
    meter.add(torch.tensor(float("nan")), 2, weight=CountedTargets(torch.tensor([-100, -100]), nn.CrossEntropyLoss()))
    figures, bad = meter.read()
    assert (figures["train/loss"], bad) == (1.0, 0)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((torch.zeros(3, 2), torch.zeros(3)), 3),
        ((torch.zeros(50, 8, 3), torch.zeros(8)), 8),
        ({"nodes": torch.zeros(40, 2), "labels": torch.zeros(4)}, 4),
        ({"nodes": torch.zeros(40, 2), "target": torch.zeros(())}, 40),
        (
            (
                [torch.zeros(3, 9, 9), torch.zeros(3, 7, 5)],
                [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(6, 4)}],
            ),
            2,
        ),
        ((torch.zeros(7, 2), torch.tensor(1.0)), 7),
        ((torch.zeros(7, 2), ["a"] * 7), 7),
        (["a", "b"], None),
    ],
)
def test_the_size_of_a_batch(batch, size):
    assert batch_size(batch) == size
