import copy

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection, regression
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

from mxtorch import Callback, Trainer
from mxtorch.callbacks import BestWeights, Checkpoint

BATCHES = [(torch.randn(n, 4), torch.randn(n, 1)) for n in (7, 5, 3)]


def rmse(outputs, targets):
    return (outputs - targets).square().mean().sqrt().detach()


def largest(outputs, targets):
    return (outputs - targets).abs().max().detach()


def made(net, loss=None, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return Trainer(net, loss or nn.MSELoss(), optimizer, device="cpu", progress=False, **options)


def test_a_function_is_given_all_of_the_data():
    net = nn.Linear(4, 1)
    trainer = made(net, metrics={"rmse": rmse, "largest": largest, "mse": regression.MeanSquaredError()})
    figures = trainer.evaluate(BATCHES)
    inputs, targets = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    assert figures["val/rmse"] == pytest.approx(float(rmse(net(inputs), targets)))
    assert figures["val/largest"] == pytest.approx(float(largest(net(inputs), targets)))
    assert figures["val/rmse"] ** 2 == pytest.approx(figures["val/mse"]) == pytest.approx(figures["val/loss"])
    assert trainer.evaluate(BATCHES) == figures, "nothing is left over from a pass before"


def test_in_training_and_by_callbacks():
    best = BestWeights("val/rmse")
    trainer = made(nn.Linear(4, 1), metrics={"rmse": rmse}, train_metrics={"rmse": rmse}, callbacks=[best])
    history = trainer.fit(BATCHES, BATCHES, epochs=3)
    assert best.best == min(history["val/rmse"])
    assert len(history["train/rmse"]) == 3


def test_a_function_that_can_not_be_had_is_found_before_the_first_step():
    for function, message in [
        (lambda outputs, targets: outputs @ targets, "can't compute|can't take"),
        (lambda outputs, targets: "a", "computes a str"),
    ]:
        net = nn.Linear(4, 1)
        before = copy.deepcopy(net.state_dict())
        trainer = made(net, metrics={"wrong": function})
        if "str" in message:
            with pytest.raises(ValueError, match=message):
                trainer.fit(BATCHES, BATCHES)
            assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        else:
            with pytest.warns(UserWarning, match=message), pytest.raises(RuntimeError):
                trainer.fit(BATCHES, BATCHES)


def test_a_pass_in_the_midst_of_which_a_checkpoint_was_written(tmp_path):
    class Kill(Callback):
        def on_step(self, trainer):
            if self.at == trainer.step:
                raise KeyboardInterrupt

    def run(folder, at=None, resume=None):
        torch.manual_seed(0)
        kill = Kill()
        kill.at = at
        trainer = made(nn.Linear(4, 1), train_metrics={"rmse": rmse}, callbacks=[Checkpoint(folder, every=1), kill])
        try:
            return trainer.fit(BATCHES, epochs=2, resume=resume)["train/rmse"]
        except KeyboardInterrupt:
            return None

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", at=5)
    assert run(tmp_path / "parts", resume="auto") == whole


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, inputs):
        return {"kind": self.kind(inputs), "size": self.size(inputs)}


def both(outputs, targets):
    size = nn.functional.mse_loss(outputs["size"], targets["size"])
    return nn.functional.cross_entropy(outputs["kind"], targets["kind"]) + size


def test_several_outputs():
    batches = [(torch.randn(n, 4), {"kind": torch.randint(3, (n,)), "size": torch.randn(n, 1)}) for n in (8, 6)]
    net = TwoHeads()
    metrics = {
        "kind": {"accuracy": MulticlassAccuracy(3, average="micro")},
        "size": {"rmse": rmse, "mse": regression.MeanSquaredError()},
        "gap": lambda outputs, targets: outputs["size"].max() - targets["size"].max(),
    }
    best = BestWeights("val/kind_accuracy")
    trainer = made(net, both, metrics=metrics, callbacks=[best])
    history = trainer.fit(batches, batches, epochs=2)
    figures = trainer.evaluate(batches)
    inputs = torch.cat([x for x, _ in batches])
    kinds, sizes = (torch.cat([targets[name] for _, targets in batches]) for name in ("kind", "size"))
    outputs = {name: value.detach() for name, value in net(inputs).items()}
    assert figures["val/kind_accuracy"] == pytest.approx(float((outputs["kind"].argmax(1) == kinds).float().mean()))
    assert figures["val/size_rmse"] == pytest.approx(float(rmse(outputs["size"], sizes)))
    assert figures["val/size_mse"] == pytest.approx(figures["val/size_rmse"] ** 2)
    assert figures["val/gap"] == pytest.approx(float(outputs["size"].max() - sizes.max()))
    assert best.best == max(history["val/kind_accuracy"])


def test_outputs_by_index():
    net = nn.Linear(4, 2)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, inputs):
            return self.net(inputs), self.net(inputs).sum(1)

    batches = [(torch.randn(8, 4), [torch.randint(2, (8,)), torch.randn(8)])]
    trainer = made(
        Pair(), lambda outputs, targets: nn.functional.mse_loss(outputs[1], targets[1]),
        metrics={0: {"accuracy": MulticlassAccuracy(2)}, 1: {"rmse": rmse}},
    )  # fmt: skip
    assert {"val/0_accuracy", "val/1_rmse"} <= set(trainer.evaluate(batches))


@pytest.mark.parametrize("metrics", [{}, {"a": 3}, {"a": BinaryAccuracy}, {3: rmse}, {"a": {}}, [rmse], rmse])
def test_what_is_no_metric(metrics):
    with pytest.raises(TypeError, match="metrics: got"):
        made(nn.Linear(4, 1), metrics=metrics)


def test_a_collection_stays_as_it_is():
    collection = MetricCollection({"mse": regression.MeanSquaredError()})
    assert made(nn.Linear(4, 1), metrics=collection).metrics is collection
