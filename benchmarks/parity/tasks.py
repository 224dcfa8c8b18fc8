"""What the settings are made of: data, networks, a trainer, and what a training leaves behind."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mxtorch import Trainer

Setting = Callable[[Path], dict[str, Any]]
TIMES = ("seconds", "samples_per_second")
FEATURES, CLASSES = 12, 3
RATE = 0.1

SETTINGS: dict[str, Setting] = {}


def setting(function: Setting) -> Setting:
    """Put a setting on the list, under its name."""
    SETTINGS[function.__name__] = function
    return function


# ---------------------------------------------------------------- what settings are made of


def points(count: int = 100, seed: int = 1) -> TensorDataset:
    """A classification that a small network learns within some epochs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator)
    return TensorDataset(inputs, (inputs[:, :CLASSES] + 0.3 * inputs[:, CLASSES : 2 * CLASSES]).argmax(1))


def pictures(count: int = 48, seed: int = 1) -> TensorDataset:
    """Pictures [3, 8, 8] of which one of the three channels is bright."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    inputs = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(inputs + nn.functional.one_hot(targets, 3)[:, :, None, None], targets)


class Noisy(Dataset[Any]):
    """Random augmentation from all three global generators."""

    def __init__(self, count: int = 100) -> None:
        self.data = points(count)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.data[index]
        return inputs + 0.1 * (random.random() + np.random.rand() + float(torch.rand(()))), target


def train(data: Dataset[Any] | None = None, batch_size: int = 10, **options: Any) -> DataLoader[Any]:
    """A shuffling loader."""
    return DataLoader(points() if data is None else data, batch_size, shuffle=True, **options)


def val(data: Dataset[Any] | None = None) -> DataLoader[Any]:
    """A loader of other samples, with a shorter last batch."""
    return DataLoader(points(41, seed=2) if data is None else data, 16)


def perceptron(dropout: float = 0.0) -> nn.Sequential:
    """A network for `points`, the same for everybody."""
    torch.manual_seed(3)
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), *drop, nn.Linear(16, CLASSES))


class ConvNet(nn.Module):
    """A network for `pictures`, with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, 3]."""
        return self.head(self.body(inputs).flatten(1))


def sgd(model: nn.Module, lr: float = RATE, **options: Any) -> torch.optim.Optimizer:
    """With momentum, so that it has a state."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, **options)


def trainer(model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> Trainer:
    """A trainer that records every step; by default of the perceptron, with cross-entropy and SGD."""
    kind: type[Trainer] = options.pop("kind", Trainer)
    model = perceptron() if model is None else model
    loss = options.pop("loss", nn.CrossEntropyLoss())
    optimizer = sgd(model) if optimizer is None else optimizer
    return kind(model, loss, optimizer, **{"seed": 0, "log_every": 1, "progress": False, "device": "cpu"} | options)


def outcome(trained: Trainer, data: Any = None, **more: Any) -> dict[str, Any]:
    """Everything that a training left behind, the figures of its steps first."""
    generators = (torch.get_rng_state().numpy().tobytes(), pickle.dumps([random.getstate(), np.random.get_state()]))
    optimizer = trained.optimizer
    result = {
        "records": [_without_times(record) for record in trained.history.records],
        "rows": [_without_times(row) for row in trained.history.rows],
        "counts": {"step": trained.step, "epoch": trained.epoch, "skipped": trained.skipped_steps},
        "weights": trained.model.state_dict(),
        "modes": [module.training for module in trained.model.modules()],
        "rates": [optimizer.learning_rates, optimizer.base_learning_rates, optimizer.current_steps],
        "optimizer": optimizer.optimizer.state_dict(),
        "others": {name: other.optimizer.state_dict() for name, other in trained.other_optimizers.items()},
        "random": [hashlib.sha256(state).hexdigest() for state in generators],
        **more,
    }
    # The copy: predicting must not change what stands above, and would be seen in the next setting only.
    result["weights"] = {name: value.clone() for name, value in result["weights"].items()}
    result["predictions"] = trained.predict(val() if data is None else data)
    return result


def fitted(trained: Trainer, data: Any = None, val_data: Any = None, **options: Any) -> dict[str, Any]:
    """The outcome of three epochs with validation."""
    data, val_data = train() if data is None else data, val() if val_data is None else val_data
    trained.fit(data, val_data, **{"epochs": 3} | options)
    return outcome(trained, val_data)


def _without_times(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name not in TIMES}


class Adversarial(Trainer):
    """A generator against a discriminator that `training_step` steps itself; see docs/how-to/several-optimizers.md."""

    def training_step(self, real: Tensor) -> Tensor:
        """The generator's loss."""
        generator, discriminator = self.model["generator"], self.model["discriminator"]
        fake = generator(torch.randn(len(real), 2))
        optimizer = self.other_optimizers["discriminator"]
        optimizer.zero_grad()
        softplus = nn.functional.softplus
        self.engine.backward((softplus(-discriminator(real)) + softplus(discriminator(fake.detach()))).mean())
        self.engine.step(optimizer)
        return softplus(-discriminator(fake)).mean()

    def prediction_step(self, batch: Tensor) -> Tensor:
        """What the discriminator says."""
        return self.model["discriminator"](batch)


def adversarial() -> tuple[Trainer, DataLoader[Any]]:
    """The trainer, and its real points."""
    torch.manual_seed(3)
    networks = {
        "generator": nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, FEATURES)),
        "discriminator": nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1)),
    }
    first, other = (torch.optim.Adam(network.parameters(), lr=1e-2) for network in networks.values())
    options = {"kind": Adversarial, "loss": None, "other_optimizers": {"discriminator": other}}
    return trainer(nn.ModuleDict(networks), first, **options), train(points().tensors[0])
