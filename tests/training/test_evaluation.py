from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import StepOutput, Trainer


def test_evaluate_is_the_mean_over_samples_and_leaves_modes(net, two_moons, make):
    trainer = make(net)
    net.train()
    net[3].eval()
    values = trainer.evaluate(DataLoader(two_moons, 100))
    assert [module.training for module in net] == [True, True, True, False, True]
    net.eval()
    inputs, labels = two_moons.tensors
    assert values["val/loss"] == pytest.approx(nn.functional.cross_entropy(net(inputs), labels).item(), rel=1e-5)


def test_predict_is_in_order(net, two_moons, make):
    outputs = make(net).predict(DataLoader(two_moons, 100))
    net.eval()
    assert torch.allclose(outputs, net(two_moons.tensors[0]), atol=1e-6)
    assert not outputs.requires_grad


def test_nothing_is_trained_and_no_gradient_is_kept(make, net, loader, weights):
    trainer, before = make(net, metrics={"accuracy": MulticlassAccuracy(num_classes=2)}), weights(net)
    mean = net[1].running_mean.clone()
    assert set(trainer.evaluate(loader, prefix="test")) == {"test/loss", "test/accuracy"}
    trainer.predict(loader)
    assert all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))
    assert torch.equal(net[1].running_mean, mean)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_step_that_gives_a_loss_alone_or_no_loss(make, two_moons):
    class LossAlone(Trainer):
        def evaluation_step(self, batch):
            return torch.tensor(float(batch[1].sum()))

    class NoLoss(Trainer):
        def evaluation_step(self, batch):
            return StepOutput(None, self.model(batch[0]), batch[1])

    net, data = nn.Linear(8, 2), [two_moons.tensors]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    alone = LossAlone(net, None, optimizer, device="cpu", progress=False)
    assert alone.evaluate(data) == {"val/loss": float(two_moons.tensors[1].sum())}
    metrics = {"accuracy": MulticlassAccuracy(num_classes=2)}
    assert list(NoLoss(net, None, optimizer, metrics=metrics, device="cpu").evaluate(data)) == ["val/accuracy"]


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_data_that_can_not_be_taken(make, net, method):
    call = getattr(make(net), method)
    for data, message in (([], "no batches"), (iter([]), "no batches"), (5, "give a DataLoader")):
        with pytest.raises((ValueError, TypeError), match=message):
            call(data)
    step = {"evaluate": "evaluation_step", "predict": "prediction_step"}[method]
    with pytest.raises(
        ValueError, match=rf"{step} could not take the first batch, a list of \(float32 tensor \[4, 9\]"
    ):
        call([[torch.ones(4, 9), torch.zeros(4).long()]])


def test_augmentation_at_prediction(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    pictures = torch.randn(6, 3, 5, 5)
    net(pictures)
    trainer = make(net, channels_last=False)
    data = [(pictures[:4], torch.zeros(4)), (pictures[4:], torch.zeros(2))]
    with torch.no_grad():
        plain, flipped, turned = net(pictures), net(pictures.flip(-1)), net(pictures.rot90(1, (2, 3)))
    assert torch.allclose(trainer.predict(data), plain, atol=1e-6)
    assert torch.allclose(trainer.predict(data, tta="flip"), (plain + flipped) / 2, atol=1e-6)
    functions = [lambda x: x.flip(-1), lambda x: x.rot90(1, (2, 3))]
    assert torch.allclose(trainer.predict([pictures], tta=functions), (plain + flipped + turned) / 3, atol=1e-6)
    with pytest.raises(ValueError, match="tta: got 'flop'"):
        trainer.predict(data, tta="flop")
    with pytest.raises(TypeError, match="tta: got"):
        trainer.predict(data, tta=[3])
    with pytest.raises(ValueError, match="'flip' takes pictures"):
        make(nn.Linear(4, 2)).predict([torch.ones(2, 4)], tta="flip")


class GivesNumbers(Trainer):
    def training_step(self, batch):
        return super().training_step(batch).loss.item()

    evaluation_step = training_step


def number(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets).item()


@pytest.mark.parametrize("kind", ["the loss", "the steps"])
def test_a_loss_that_is_a_number_is_named_by_all(kind):
    net = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if kind == "the loss":
        trainer = Trainer(net, number, optimizer, device="cpu", progress=False)
    else:
        trainer = GivesNumbers(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    data = [(torch.randn(4, 8), torch.zeros(4).long())] * 8
    calls = {
        "evaluate": lambda: trainer.evaluate(data),
        "fit": lambda: trainer.fit(data),
        "fit with validation": lambda: trainer.fit(data, data),
        "find_lr": lambda: trainer.find_lr(data, num_steps=60),
        "find_lr with validation": lambda: trainer.find_lr(data, data, num_steps=60),
    }
    for name, call in calls.items():
        step = "training_step" if name == "fit" else "evaluation_step"
        with pytest.raises(TypeError, match=rf"^{step}: got 0\.\d+ as the loss; let it, .* without \.item\(\)"):
            call()


def test_a_loss_for_each_sample_is_refused_in_evaluation(make):
    trainer = make(nn.Linear(8, 2), nn.CrossEntropyLoss(reduction="none"))
    for count in (1, 4):
        data = [(torch.randn(count, 8), torch.zeros(count).long())] * 2
        with pytest.raises(ValueError, match=r"loss: got a tensor of shape .* reduce it to a scalar"):
            trainer.evaluate(data)


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


def test_a_stream_without_a_batch_is_named_as_it_was_given(make):
    train, empty = [(torch.randn(4, 8), torch.zeros(4).long())], DataLoader(Empty(), 4)
    trainer = make(nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"^val_data: got a loader that yields no batches"):
        trainer.fit(train, empty)
    with pytest.raises(ValueError, match=r"^val_data\['noisy'\]: got a loader that yields no batches"):
        trainer.fit(train, {"clean": train, "noisy": empty})
    with pytest.raises(ValueError, match=r"^data: got a loader that yields no batches"):
        trainer.evaluate(empty)
