"""The optimizers that the tests of ScheduledOptim make."""

from __future__ import annotations

import torch
from torch import nn

from mxtorch import ScheduledOptim


def make(*rates, kind=torch.optim.SGD, schedule=None, **settings):
    parameters = [nn.Parameter(torch.ones(3)) for _ in rates]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    return ScheduledOptim(kind(groups, **settings), schedule)


def give_gradients(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
