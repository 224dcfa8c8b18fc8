import pytest

from mxtorch import init, nn


def test_prelu():
    layer = nn.PReLU(4, weight_init=init.Constant(0.5))
    assert layer.weight.tolist() == [0.5] * 4
    assert nn.PReLU(init=0.1).weight.item() == pytest.approx(0.1)
