import functools

import pytest
import torch
from torch import nn as torch_nn

from mxtorch import init, nn
from mxtorch.nn.activation import _BY_NAME


@pytest.mark.parametrize("name", _BY_NAME)
def test_every_name(name):
    layer = nn.Linear(3, 4, activation=name)
    batch = torch.randn(2, 3)
    plain = torch_nn.functional.linear(batch, layer.weight, layer.bias)
    expected = torch_nn.SiLU() if name == "swish" else _BY_NAME[name]()
    assert torch.equal(layer(batch), expected(plain))
    assert init.gain_of(layer.activation) > 0


@pytest.mark.parametrize(
    "given", [torch_nn.LeakyReLU(0.3), functools.partial(torch_nn.LeakyReLU, 0.3), lambda: torch_nn.LeakyReLU(0.3)]
)
def test_modules_and_callables_that_return_them(given):
    assert nn.Linear(3, 4, activation=given).activation.negative_slope == 0.3
