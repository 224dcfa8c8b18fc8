"""A training loop of one's own, whose rate the tests search."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch.lr_finder import find

LOSS = nn.CrossEntropyLoss()


QUICK = {"training_steps": 60, "num_steps": 240, "progress": False}


def points(count=320):
    torch.manual_seed(0)
    inputs = torch.randn(count, 8)
    return TensorDataset(inputs, (inputs[:, :3].sum(1) > 0).long())


def pictures(count=160):
    torch.manual_seed(0)
    inputs = torch.randn(count, 3, 8, 8)
    return TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())


class SmallTransformer(nn.Module):
    """Eight tokens of one number each."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.encode = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, inputs):
        return self.head(self.encode(self.embed(inputs[..., None])).mean(1))


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


TASKS = {"transformer": (SmallTransformer, points), "cnn": (convolutional, pictures)}


SEEN: set = set()  # what a step wrote down; what it closes over would be put back


class Loop:
    """A loop of one's own, over a network, an optimizer and two loaders, always made alike."""

    def __init__(self, network=perceptron, data=points, optimizer=torch.optim.AdamW, **settings):
        samples = data()
        torch.manual_seed(1)
        self.net = network()
        self.optimizer = optimizer(self.net.parameters(), **{"lr": 1e-3} | settings)
        self.train_data = DataLoader(samples, 16, shuffle=True)
        self.val_data = DataLoader(samples, 40)
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    def loss(self, batch):
        inputs, targets = batch
        return LOSS(self.net(inputs), targets)

    def step(self, batch):
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss

    def find(self, step=None, **options):
        options = {"state": self.net, "evaluate": self.loss, "val_data": self.val_data} | QUICK | options
        return find(step or self.step, options.pop("optimizer", self.optimizer), self.train_data, **options)

    def train(self, epochs=2):
        self.net.train()
        for _ in range(epochs):
            for batch in self.train_data:
                self.step(batch)
        numbers = [torch.rand(1), torch.tensor(random.random()), torch.tensor(np.random.rand())]
        return [*(value.clone() for value in self.net.state_dict().values()), *numbers]


def same(values, others):
    return len(values) == len(others) and all(map(torch.equal, values, others))
