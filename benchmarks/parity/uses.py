"""Settings of what the loop is used for and with: metrics, models, layers, evaluation, fine-tuning, the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mxtorch
from benchmarks.parity.tasks import (
    CLASSES,
    RATE,
    ConvNet,
    Noisy,
    adversarial,
    fitted,
    outcome,
    perceptron,
    pictures,
    points,
    setting,
    sgd,
    train,
    trainer,
    val,
)
from mxtorch import LRFinderResult, StepOutput, Trainer, init

# ---------------------------------------------------------------- models, metrics, evaluation


@setting
def metrics(folder: Path) -> dict[str, Any]:
    """Of training and of validation."""
    module = torchmetrics.classification
    both = {"accuracy": module.MulticlassAccuracy(CLASSES), "f1": module.MulticlassF1Score(CLASSES)}
    return fitted(trainer(metrics=both, train_metrics=both["accuracy"].clone(), log_every=3))


@setting
def own_steps(folder: Path) -> dict[str, Any]:
    """A trainer whose steps are overridden."""

    class Own(Trainer):
        def training_step(self, batch: Any) -> StepOutput:
            outputs = self.model(batch[0])
            return StepOutput(nn.functional.multi_margin_loss(outputs, batch[1]), outputs, batch[1])

        def evaluation_step(self, batch: Any) -> StepOutput:
            outputs = self.model(batch[0]).softmax(1)
            return StepOutput(nn.functional.nll_loss(outputs.log(), batch[1]), outputs, batch[1])

    accuracy = torchmetrics.classification.MulticlassAccuracy(CLASSES)
    return fitted(trainer(kind=Own, loss=None, train_metrics=accuracy, metrics=accuracy.clone()))


@setting
def loss_with_weights(folder: Path) -> dict[str, Any]:
    """A loss that is a module and is trained."""

    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs / self.temperature, targets)

    model, loss = perceptron(), Tempered()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=RATE, momentum=0.9)
    return fitted(trainer(model, optimizer, loss=loss)) | {"loss": loss.state_dict()}


@setting
def frozen_layers(folder: Path) -> dict[str, Any]:
    """Frozen batch normalisation keeps its statistics."""
    model = ConvNet()
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    return fitted(trainer(model), train(pictures(), 8), val(pictures(20, 2)))


@setting
def channels_last(folder: Path) -> dict[str, Any]:
    """A convolutional network with batch normalisation, in the memory format that "auto" gives it."""
    return fitted(trainer(ConvNet()), train(pictures(), 8), val(pictures(20, 2)))


@setting
def channels_first(folder: Path) -> dict[str, Any]:
    """The same in torch's own format."""
    return fitted(trainer(ConvNet(), channels_last=False), train(pictures(), 8), val(pictures(20, 2)))


@setting
def dropout(folder: Path) -> dict[str, Any]:
    """Another seed, and random numbers in the forward pass."""
    return fitted(trainer(perceptron(0.4), seed=7))


@setting
def evaluate_and_predict(folder: Path) -> dict[str, Any]:
    """After a training without validation; with flipped pictures as well, and interpreted."""
    data = val(pictures(37, 2))
    trained = trainer(ConvNet(), metrics=torchmetrics.classification.MulticlassAccuracy(CLASSES), log_every=4)
    trained.fit(train(pictures(), 8), epochs=2)
    seen = trained.interpret(data)
    return outcome(
        trained,
        data,
        figures=trained.evaluate(data, prefix="test"),
        flipped=trained.predict(data, tta="flip"),
        interpreted=[seen.probabilities, seen.targets, seen.confusion, seen.losses, sorted(seen.pictures)],
    )


INITIALIZERS = {
    "zeros": "zeros",
    "ones": "ones",
    "constant": init.Constant(0.3),
    "uniform": init.Uniform(-0.2, 0.1),
    "normal": init.Normal(0.1, 0.2),
    "truncated normal": init.TruncatedNormal(std=0.1),
    "Xavier uniform": "xavier_uniform",
    "Xavier normal": "xavier_normal",
    "Kaiming uniform": "kaiming_uniform",
    "Kaiming normal": "kaiming_normal",
    "Lecun uniform": "lecun_uniform",
    "Lecun normal": "lecun_normal",
    "orthogonal": "orthogonal",
    "identity": "identity",
    "sparse": init.Sparse(0.4),
    "default": "default",
}


@setting
def initializers(folder: Path) -> dict[str, Any]:
    """What each one puts into the same network."""
    weights = {}
    for name, initializer in INITIALIZERS.items():
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))
        init.initialize(model, initializer, seed=5)
        weights[name] = model.state_dict()
    return weights


@setting
def own_layers(folder: Path) -> dict[str, Any]:
    """Layers of `mxtorch.nn` in several orders, sizes read off the first batch."""
    layers = mxtorch.nn
    torch.manual_seed(3)
    model = nn.Sequential(
        layers.Conv2d(None, 8, kernel_size=3, norm="batch", activation="relu", weight_init="kaiming_normal"),
        layers.Conv2d(None, 8, kernel_size=3, norm="batch", activation="relu", order="NAC"),
        layers.Dense(16, activation="gelu", weight_init=init.Normal(0, 0.05)),
        layers.Linear(16, CLASSES, bias_init="ones"),
    )
    model(pictures().tensors[0][:2])
    init.initialize(model, "xavier_uniform", seed=4)
    others = [
        layers.LSTM(4, 5, num_layers=2, batch_first=True, weight_init="orthogonal", bias_init="lstm_bias"),
        layers.GRU(None, 5, batch_first=True),
        layers.MultiheadAttention(4, 2, batch_first=True),
        layers.ConvTranspose1d(3, 2, kernel_size=2, weight_init="xavier_normal", activation="tanh"),
    ]
    sequence = torch.randn(2, 3, 4)
    outputs = [layer(*[sequence] * (3 if isinstance(layer, nn.MultiheadAttention) else 1)) for layer in others]
    left = {"others": [layer.state_dict() for layer in others], "outputs": outputs}
    return left | fitted(trainer(model, clip_grad_norm=1.0), train(pictures(), 8), val(pictures(20, 2)))


@setting
def zoo(folder: Path) -> dict[str, Any]:
    """A network of the zoo with another head."""
    torch.manual_seed(3)
    model = mxtorch.model_zoo.create("resnet18", num_classes=10)
    model.fc = nn.Linear(512, CLASSES)
    return fitted(trainer(model, sgd(model, 0.01)), train(pictures(16), 8), val(pictures(8, 2)), epochs=1)


# ---------------------------------------------------------------- fine-tuning and the search


@setting
def fine_tune(folder: Path) -> dict[str, Any]:
    """Two phases at a given rate, the first one on features that are kept."""
    model = ConvNet()
    passes: list[int] = []
    model.body[0].register_forward_pre_hook(lambda *_: passes.append(1))
    trained, data = trainer(model), val(pictures(20, 2))
    trained.fine_tune(train(pictures(), 4), data, epochs=1, freeze_epochs=8, lr=0.05, head="head", cache="memory")
    # Eight epochs of the head are 96 steps and 16 batches of validation, which the body would see without the features.
    return outcome(trained, data, features_kept=len(passes) < 96)


@setting
def fit_after_search(folder: Path) -> dict[str, Any]:
    """A search leaves no trace, whatever it finds: the training after it is the one without it."""
    trained, data = trainer(perceptron(0.2)), train(Noisy())
    trained.find_lr(data, val(), num_steps=40)
    return fitted(trained, data, lr=RATE)


def searched(found: LRFinderResult) -> dict[str, Any]:
    """What a search saw and what it says."""
    return {
        "curve": [list(found.rates), list(found.losses), found.stop_reason],
        "held out": [list(point) for point in found.held_out],
        "trials": [[trial.rate, trial.steps, trial.loss, trial.loss_before] for trial in found.trials],
        "suggestion": [found.suggestion, found.interval, found.status],
    }


def rate_of(found: LRFinderResult) -> float:
    """The rate that was found, or one that does no harm."""
    return RATE if found.suggestion is None else found.suggestion


@setting
def find_lr_100(folder: Path) -> dict[str, Any]:
    """A range test, then a training at the rate that was found."""
    trained, data = trainer(), train()
    found = trained.find_lr(data, method="sweep", num_steps=100)
    return searched(found) | fitted(trained, data, lr=rate_of(found))


@setting
def find_lr_300(folder: Path) -> dict[str, Any]:
    """Short trainings, judged by other data."""
    trained, data = trainer(perceptron(0.2), train_metrics=torchmetrics.classification.MulticlassAccuracy(3)), train()
    found = trained.find_lr(data, val(), num_steps=300, schedule="one_cycle", training_steps=30)
    return searched(found) | fitted(trained, data, lr=rate_of(found), schedule="one_cycle")


@setting
def find_lr_in_half(folder: Path) -> dict[str, Any]:
    """Under the gradient scaler, with accumulation."""
    trained, data = trainer(ConvNet(), precision="fp16", accumulate=2), train(pictures(), 8)
    found = trained.find_lr(data, num_steps=100)
    return searched(found) | fitted(trained, data, val(pictures(20, 2)), lr=rate_of(found))


@setting
def find_lr_of_another_optimizer(folder: Path) -> dict[str, Any]:
    """The discriminator's."""
    trained, data = adversarial()
    found = trained.find_lr(data, num_steps=60, optimizer="discriminator")
    trained.fit(data, epochs=2)
    return searched(found) | outcome(trained, DataLoader(points(20, 2).tensors[0], 8))


@setting
def find_lr_in_fine_tuning(folder: Path) -> dict[str, Any]:
    """The rates of both phases."""
    trained, data = trainer(ConvNet()), val(pictures(20, 2))
    tuned = trained.fine_tune(train(pictures(), 8), data, epochs=2, freeze_epochs=2, head="head", cache="memory")
    return outcome(trained, data, rates_by_phase=tuned.rates)
