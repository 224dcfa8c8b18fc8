"""Small pictures and a small network with a body and a head."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset):
    """32 pictures of two classes, through a transform, counted as they are read."""

    def __init__(self, transform=None, count: int = 32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.targets = [index % 2 for index in range(count)]
        self.pictures = torch.randn(count, 3, 8, 8, generator=generator)
        self.pictures += torch.tensor(self.targets)[:, None, None, None]
        self.transform = transform
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index):
        picture = self.pictures[index]
        return picture if self.transform is None else self.transform(picture), self.targets[index]


class Net(nn.Sequential):
    """Counts how many samples go through its body."""

    def __init__(self) -> None:
        body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        more = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(body, more, nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 2)))
        self.samples = 0
        self[0][0].register_forward_hook(lambda module, inputs, output: self.count(len(output)))

    def count(self, samples: int) -> None:
        self.samples += samples


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net()


@pytest.fixture
def frozen(net) -> Net:
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    return net


@pytest.fixture
def train(pictures) -> DataLoader:
    return DataLoader(pictures, 5, shuffle=True)


@pytest.fixture
def val() -> DataLoader:
    return DataLoader(Pictures(count=11), 4)
