from typing import get_args

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from mxtorch import nn


@pytest.mark.parametrize("order", get_args(nn.Order))
@pytest.mark.parametrize("shape", [(5, 3), (5, 7, 3), (2, 3, 4, 3)])
@pytest.mark.parametrize("norm", ["batch", "layer", "group", torch_nn.RMSNorm])
def test_orders_and_norms_take_the_features_as_channels(order, shape, norm):
    torch.compiler.reset()
    layer = nn.Linear(3, 8, norm=norm, activation="tanh", order=order)
    batch = torch.randn(shape)
    parts = {
        "C": lambda x: F.linear(x, layer.weight, layer.bias),
        "N": lambda x: layer.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape),
        "A": torch.tanh,
    }
    expected = batch
    for stage in order:
        expected = parts[stage](expected)
    assert torch.allclose(layer(batch), expected, atol=1e-6)
    assert layer.norm.weight.shape == ((8,) if order.index("N") > order.index("C") else (3,))


@pytest.mark.parametrize("order", get_args(nn.Order))
def test_orders_compile_and_export(order):
    torch.compiler.reset()
    layer = nn.Linear(3, 8, norm="batch", activation="relu", order=order).eval()
    batch = torch.randn(4, 6, 3)
    expected = layer(batch)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(batch), expected, atol=1e-6)
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    assert torch.allclose(
        torch.export.export(layer, (batch,), dynamic_shapes=dynamic).module()(batch), expected, atol=1e-6
    )


def test_dense_takes_the_arguments_of_gluon():
    layer = nn.Dense(10, "relu", weight_init="xavier")
    assert layer(torch.randn(2, 3, 4, 5)).shape == (2, 10)
    assert layer.in_features == 60
    assert isinstance(layer, torch_nn.Linear)
    kept = nn.Dense(10, flatten=False)
    assert kept(torch.randn(2, 3, 4)).shape == (2, 3, 10)
    assert list(kept.state_dict()) == ["weight", "bias"]
    with pytest.raises(TypeError, match="activation: got 10"):
        nn.Dense(128, 10)


def test_bilinear_infers_both_sizes_and_activates():
    layer = nn.Bilinear(None, None, 4, activation="relu", weight_init="normal")
    first, second = torch.randn(2, 3), torch.randn(2, 5)
    output = layer(first, second)
    assert (layer.in1_features, layer.in2_features) == (3, 5)
    assert torch.equal(output, F.bilinear(first, second, layer.weight, layer.bias).relu())


def test_an_instance_norm_is_refused():
    with pytest.raises(ValueError, match="'instance', which has no positions to average over"):
        nn.Linear(3, 4, norm="instance")
