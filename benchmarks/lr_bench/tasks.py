"""The tasks: a network, an optimizer, real data. Half of them may be looked at while the estimator is developed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from benchmarks.lr_bench import data
from benchmarks.lr_bench.networks import RecurrentModel, TransformerModel, VisionTransformer, cnn, mlp, resnet

Half = Literal["development", "reporting"]
TRAINING_STEPS = 300
# What an optimizer's outcome depends on; its other settings are about speed.
_SETTINGS = ("momentum", "nesterov", "betas", "alpha", "eps", "weight_decay")


class Setup(NamedTuple):
    """All that a training needs, fresh."""

    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]


@dataclass(frozen=True)
class Task:
    """One thing to be trained for 300 steps.

    Attributes:
        name: Data, network and optimizer.
        half: Whether the estimator may be developed on it.
        load: Gives the data.
        network: Makes a network, initialised from torch's global generator.
        optimizer: Makes an optimizer of parameters; its rate is a placeholder.
        loss: The loss's class.
        batch_size: Samples a step.
        default_rate: What people take without a finder: 1e-3 for the Adam kind, 1e-2 for the SGD kind.
    """

    name: str
    half: Half
    load: Callable[[Path], data.Split]
    network: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss
    batch_size: int = 32

    def setup(self, folder: Path, seed: int) -> Setup:
        """A fresh network, optimizer and loaders; the seed decides initial values and the order of the batches."""
        torch.manual_seed(seed)
        model = self.network()
        split = self.load(folder)
        train = TensorDataset(split.train_inputs, split.train_targets)
        val = TensorDataset(split.val_inputs, split.val_targets)
        order = RandomSampler(train, generator=torch.Generator().manual_seed(seed))
        # Whole batches are indexed at once: much faster than samples one by one.
        return Setup(
            model,
            self.loss(),
            self.optimizer(model.parameters()),
            DataLoader(train, sampler=BatchSampler(order, self.batch_size, drop_last=True), batch_size=None),
            DataLoader(val, sampler=BatchSampler(SequentialSampler(val), 250, drop_last=False), batch_size=None),
        )

    @property
    def default_rate(self) -> float:
        """What people take without a finder."""
        return 1e-2 if isinstance(self.optimizer([nn.Parameter(torch.zeros(1))]), SGD) else 1e-3

    def digest(self, folder: Path) -> str:
        """A hash of all that decides the task's outcome: data, network, what it computes, optimizer, sizes."""
        torch.manual_seed(0)
        model, split = self.network(), self.load(folder)
        defaults = self.optimizer(model.parameters()).defaults
        with torch.inference_mode():
            outputs = model.eval()(split.val_inputs[:4]).flatten()[:20]
        content = [
            split.digest(),
            [f"{value:.3f}" for value in outputs.tolist()],
            sum(parameter.numel() for parameter in model.parameters()),
            type(self.optimizer([nn.Parameter(torch.zeros(1))])).__name__,
            [(name, defaults[name]) for name in _SETTINGS if name in defaults],
            type(self.loss()).__name__,
            self.batch_size,
            TRAINING_STEPS,
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def sgd(**settings: Any) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """SGD with a placeholder for the rate."""
    return functools.partial(SGD, lr=1e-3, **settings)


MOMENTUM = sgd(momentum=0.9)
NESTEROV = sgd(momentum=0.9, nesterov=True)
ADAM = functools.partial(Adam, lr=1e-3)
ADAMW = functools.partial(AdamW, lr=1e-3, weight_decay=0.05)
RMSPROP = functools.partial(RMSprop, lr=1e-3)

TASKS = (
    Task("digits, MLP, RMSprop", "development", data.digits, lambda: mlp(64, 128, 10), RMSPROP),
    Task("digits, 6-layer MLP, SGD", "development", data.digits, lambda: mlp(64, 64, 10, depth=6), sgd()),
    Task("breast cancer, linear, Adam", "development", data.breast_cancer, lambda: nn.Linear(30, 2), ADAM),
    Task("diabetes, MLP, Adam", "development", data.diabetes, lambda: mlp(10, 64, 1), ADAM, nn.MSELoss),
    Task("CIFAR-10, CNN, Nesterov", "development", data.cifar10, lambda: cnn(3, 16, norm=False), NESTEROV),
    Task("CIFAR-10, ResNet, AdamW", "development", data.cifar10, lambda: resnet(12), ADAMW),
    Task("CIFAR-10, ViT, momentum", "development", data.cifar10, VisionTransformer, MOMENTUM),
    Task("text, GRU, Adam", "development", data.text, RecurrentModel, ADAM),
    Task("text, Transformer, AdamW", "development", data.text, TransformerModel, ADAMW),
    Task("ants and bees, linear, momentum", "development", data.ants_and_bees, lambda: nn.Linear(1280, 2), MOMENTUM),
    Task(
        "digits, CNN with BatchNorm, momentum", "reporting", data.digit_images, lambda: cnn(1, 8, norm=True), MOMENTUM
    ),
    Task(
        "digits, 10-layer tanh MLP, momentum",
        "reporting",
        data.digits,
        lambda: mlp(64, 64, 10, depth=10, activation=nn.Tanh),
        MOMENTUM,
    ),
    Task("breast cancer, MLP, Nesterov", "reporting", data.breast_cancer, lambda: mlp(30, 32, 2), NESTEROV),
    Task("diabetes, linear, SGD", "reporting", data.diabetes, lambda: nn.Linear(10, 1), sgd(), nn.MSELoss),
    Task("CIFAR-10, CNN with BatchNorm, RMSprop", "reporting", data.cifar10, lambda: cnn(3, 16, norm=True), RMSPROP),
    Task("CIFAR-10, ResNet, SGD", "reporting", data.cifar10, lambda: resnet(12), sgd()),
    Task("CIFAR-10, ViT, AdamW", "reporting", data.cifar10, VisionTransformer, ADAMW),
    Task("text, GRU, momentum", "reporting", data.text, RecurrentModel, MOMENTUM),
    Task("text, Transformer, Adam", "reporting", data.text, TransformerModel, ADAM),
    Task("ants and bees, MLP, AdamW", "reporting", data.ants_and_bees, lambda: mlp(1280, 64, 2), ADAMW),
)
