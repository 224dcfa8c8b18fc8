import math

import pytest
import torch
from torch import nn

from mxtorch import init


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), math.sqrt(2)),
        (nn.ReLU6(), math.sqrt(2)),
        (nn.LeakyReLU(0.2), math.sqrt(2 / 1.04)),
        (nn.PReLU(init=0.25), math.sqrt(2 / 1.0625)),
        (nn.Tanh(), 5 / 3),
        (nn.Sigmoid(), 1),
        (nn.SELU(), 3 / 4),
        (nn.Identity(), 1),
        (None, None),
        (nn.Softmax(1), None),
        (nn.Linear(2, 2), None),
    ],
)
def test_torchs_gains(activation, expected):
    assert init.gain_of(activation) == pytest.approx(expected)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.Softplus(), nn.Hardswish()])
def test_other_gains_keep_the_second_moment(activation):
    samples = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    assert (activation(samples) * init.gain_of(activation)).square().mean().item() == pytest.approx(1, abs=0.01)


def test_the_measure_agrees_with_the_formula_for_relu():
    from mxtorch.init.gain import _measured_gain

    assert _measured_gain(nn.ReLU()) == pytest.approx(math.sqrt(2), rel=1e-4)
