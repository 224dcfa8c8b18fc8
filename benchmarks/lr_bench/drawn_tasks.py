"""Cheap trainings of 100 to 2,000 steps, drawn at random from a grammar, so that nobody chose them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lr_bench import data
from benchmarks.lr_bench.data import Split, kept_on_disk, split, standardised
from benchmarks.lr_bench.flat_optimizers import OptimizerSpec
from benchmarks.lr_bench.long_networks import BasicBlock, TransformerBlock
from benchmarks.lr_bench.recipes import Recipe, classification, squared_error

SEED, COUNT = 15, 120


# Data: bundled with scikit-learn, CIFAR-10, source text, or drawn


@kept_on_disk
def wine(folder: Path) -> Split:
    """178 wines, 13 measurements, 3 growers."""
    from sklearn.datasets import load_wine

    raw = load_wine()
    return split(standardised(torch.tensor(raw.data, dtype=torch.float32)), torch.tensor(raw.target))


@kept_on_disk
def iris(folder: Path) -> Split:
    """150 flowers, 4 measurements, 3 kinds."""
    from sklearn.datasets import load_iris

    raw = load_iris()
    return split(standardised(torch.tensor(raw.data, dtype=torch.float32)), torch.tensor(raw.target))


def blobs(folder: Path) -> Split:
    """2,000 points of 10 overlapping clusters in 20 dimensions."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 20, generator=generator)
    labels = torch.randint(10, (2000,), generator=generator)
    return split(centres[labels] + 1.2 * torch.randn(2000, 20, generator=generator), labels)


def spirals(folder: Path) -> Split:
    """1,500 points of three noisy spirals in the plane."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (1500,), generator=generator)
    radius = torch.rand(1500, generator=generator)
    angle = 5 * radius + 2.1 * labels + 0.2 * torch.randn(1500, generator=generator)
    return split(2 * torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels)


def friedman(folder: Path) -> Split:
    """1,200 rows of ten columns, five of which matter (Friedman 1991), one standardised number with noise."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(1200, 10, generator=generator)
    y = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return split(standardised(x), standardised(y + torch.randn(1200, generator=generator))[:, None])


def teacher(folder: Path) -> Split:
    """3,000 rows of 30 columns, the output of a drawn network with noise."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3000, 30, generator=generator)
    y = (x @ torch.randn(30, 20, generator=generator) / 4).tanh() @ torch.randn(20, 1, generator=generator)
    return split(x, standardised(y) + 0.3 * torch.randn(3000, 1, generator=generator))


def digit_rows(folder: Path) -> Split:
    """The digits as sequences of eight rows."""
    flat = data.digits(folder)
    return flat._replace(train_inputs=flat.train_inputs.view(-1, 8, 8), val_inputs=flat.val_inputs.view(-1, 8, 8))


def waves(folder: Path) -> Split:
    """1,500 noisy series [24, 2]: which of five combinations of wave and trend it is."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(5, (1500,), generator=generator)
    time = torch.arange(24) / 24
    phase = 6.3 * torch.rand(1500, 1, generator=generator)
    first = (6.3 * (1 + labels[:, None] % 3) * time + phase).sin() + (labels[:, None] > 2) * time
    second = (6.3 * (1 + labels[:, None] // 2) * time + phase).cos()
    return split(torch.stack([first, second], 2) + 0.6 * torch.randn(1500, 24, 2, generator=generator), labels)


def sums(folder: Path) -> Split:
    """2,000 series [16, 2]: the sum of the two numbers that are marked (the adding problem)."""
    generator = torch.Generator().manual_seed(6)
    values = torch.rand(2000, 16, generator=generator) * 2 - 1
    marked = torch.rand(2000, 16, generator=generator).argsort(1) < 2
    return split(torch.stack([values, marked.float()], 2), (values * marked).sum(1, keepdim=True))


# Each: loader, how it looks (the shape of a sample), number of outputs (0 classes: a regression).
DATA: dict[str, tuple[Callable[[Path], Split], tuple[int, ...], int]] = {
    "digits": (data.digits, (64,), 10),
    "breast cancer": (data.breast_cancer, (30,), 2),
    "wine": (wine, (13,), 3),
    "iris": (iris, (4,), 3),
    "diabetes": (data.diabetes, (10,), 0),
    "blobs": (blobs, (20,), 10),
    "spirals": (spirals, (2,), 3),
    "friedman": (friedman, (10,), 0),
    "teacher": (teacher, (30,), 0),
    "digit images": (data.digit_images, (1, 8, 8), 10),
    "CIFAR-10": (data.cifar10, (3, 32, 32), 10),
    "digit rows": (digit_rows, (8, 8), 10),
    "waves": (waves, (24, 2), 5),
    "sums": (sums, (16, 2), 0),
    "text": (data.text, (32,), 96),
}
KINDS = {
    "vectors": ["digits", "breast cancer", "wine", "iris", "diabetes", "blobs", "spirals", "friedman", "teacher"],
    "images": ["digit images", "CIFAR-10"],
    "sequences": ["digit rows", "waves", "sums", "text"],
}
ARCHITECTURES = {
    "linear": ["vectors", "images"],
    "MLP": ["vectors", "images"],
    "MLP with BatchNorm": ["vectors", "images"],
    "MLP with LayerNorm": ["vectors", "images"],
    "CNN": ["images"],
    "CNN with BatchNorm": ["images"],
    "ResNet": ["images"],
    "GRU": ["sequences"],
    "LSTM": ["sequences"],
    "Transformer": ["sequences"],
}
# About as often as they are met.
OPTIMIZER_WEIGHTS = {
    "SGD": 2, "momentum": 3, "Nesterov": 2, "Adam": 3, "AdamW": 3, "RMSprop": 1, "NAdam": 1, "Adagrad": 1
}  # fmt: skip
OPTIMIZERS = {
    "SGD": OptimizerSpec("SGD"),
    "momentum": OptimizerSpec("SGD", {"momentum": 0.9}),
    "Nesterov": OptimizerSpec("SGD", {"momentum": 0.9, "nesterov": True}),
    "Adam": OptimizerSpec("Adam"),
    "AdamW": OptimizerSpec("AdamW", {"weight_decay": 0.05}),
    "RMSprop": OptimizerSpec("RMSprop"),
    "NAdam": OptimizerSpec("NAdam"),
    "Adagrad": OptimizerSpec("Adagrad"),
}


# Networks


def perceptron(inputs: int, width: int, depth: int, outputs: int, norm: type[nn.Module] | None) -> nn.Module:
    """Hidden layers of one width, perhaps normalised."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([norm(width)] if norm else []), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def convolutions(channels: int, width: int, depth: int, outputs: int, *, norm: bool, large: bool) -> nn.Module:
    """Convolutions that double the width, the first ones of stride 2 on large images, then pooling."""
    layers: list[nn.Module] = []
    for index in range(depth):
        stride = 2 if index < (3 if large else 1) else 1
        layers += [nn.Conv2d(channels, width, 3, stride, 1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        channels, width = width, min(2 * width, 128)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def residual(channels: int, width: int, depth: int, outputs: int, *, large: bool) -> nn.Module:
    """A stem and residual blocks."""
    stride = 2 if large else 1
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for index in range(depth):
        layers.append(BasicBlock(width, 2 * width if index else width, 2 if index else 1))
        width = 2 * width if index else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


class SequenceNetwork(nn.Module):
    """A GRU, an LSTM or a Transformer over rows [N, length, columns] or symbols [N, length].

    Symbols get scores for the next one at each position, rows one output from the last position or the mean.
    """

    def __init__(self, kind: str, shape: tuple[int, ...], width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.kind, self.symbols = kind, len(shape) == 1
        self.embedding: nn.Module = nn.Embedding(outputs, width) if self.symbols else nn.Linear(shape[1], width)
        if kind == "Transformer":
            self.position = nn.Parameter(0.02 * torch.randn(shape[0], width))
            blocks = [TransformerBlock(width, 4, causal=self.symbols) for _ in range(depth)]
            self.body: nn.Module = nn.Sequential(*blocks, nn.LayerNorm(width))
        else:
            self.body = getattr(nn, kind)(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        embedded = self.embedding(values)
        states = self.body(embedded + self.position) if self.kind == "Transformer" else self.body(embedded)[0]
        if self.symbols:
            return self.head(states).transpose(1, 2)
        return self.head(states.mean(1) if self.kind == "Transformer" else states[:, -1])


def build(architecture: str, shape: tuple[int, ...], width: int, depth: int, outputs: int) -> nn.Module:
    """The network of a draw."""
    inputs = int(torch.tensor(shape).prod())
    large = len(shape) == 3 and shape[1] > 8
    match architecture:
        case "linear":
            return perceptron(inputs, width, 0, outputs, None)
        case "MLP":
            return perceptron(inputs, width, depth, outputs, None)
        case "MLP with BatchNorm":
            return perceptron(inputs, width, depth, outputs, nn.BatchNorm1d)
        case "MLP with LayerNorm":
            return perceptron(inputs, width, depth, outputs, nn.LayerNorm)
        case "CNN" | "CNN with BatchNorm":
            norm = architecture.endswith("BatchNorm")
            return convolutions(shape[0], width // 2, depth + 1, outputs, norm=norm, large=large)
        case "ResNet":
            return residual(shape[0], width // 4, min(depth, 3), outputs, large=large)
    return SequenceNetwork(architecture, shape, width, min(depth, 2), outputs)


@functools.cache
def _share(load: Callable[[Path], Split], share: float, folder: Path) -> Split:
    whole = load(folder)
    count = max(int(len(whole.train_inputs) * share), 40)
    return whole._replace(train_inputs=whole.train_inputs[:count], train_targets=whole.train_targets[:count])


@functools.cache
def drawn() -> list[Recipe]:
    """The draws: always the same."""
    return [_draw(random.Random(f"{SEED} {index}"), index) for index in range(COUNT)]


def _draw(dice: random.Random, index: int) -> Recipe:
    architecture = dice.choice([*ARCHITECTURES])
    data_name = dice.choice([name for kind in ARCHITECTURES[architecture] for name in KINDS[kind]])
    load, shape, outputs = DATA[data_name]
    share = dice.choice([1.0, 1.0, 0.4, 0.15])
    width, depth = dice.choice([16, 32, 64, 128]), dice.choice([1, 2, 3, 4])
    optimizer_name = dice.choices([*OPTIMIZER_WEIGHTS], [*OPTIMIZER_WEIGHTS.values()])[0]
    batch_size = dice.choice([16, 32, 64, 128])
    steps = round(100 * 20 ** dice.random())
    norm = {"BatchNorm": "batch", "LayerNorm": "layer"}.get(architecture.split(" ")[-1])
    norm = {"ResNet": "batch", "Transformer": "layer"}.get(architecture, norm)
    features: dict[str, Any] = {"data": data_name, "architecture": architecture, "normalisation": norm}
    if architecture != "linear":
        features |= {"width": width, "depth": depth}
    size = "" if architecture == "linear" else f" {width} x {depth}"
    part = "" if share == 1 else f" ({share:.0%})"
    return Recipe(
        f"{index:02d} {data_name}{part}, {architecture}{size}, {optimizer_name}, batch {batch_size}, {steps} steps",
        "cheap",
        functools.partial(_share, load, share),
        functools.partial(build, architecture, shape, width, depth, outputs or 1),
        OPTIMIZERS[optimizer_name],
        batch_size,
        steps,
        losses=classification if outputs else squared_error,
        light=architecture == "linear" or "MLP" in architecture,
        features=tuple(features.items()),
    )
