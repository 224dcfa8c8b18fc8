import copy
from typing import get_args

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from mxtorch import init, nn

KINDS = {
    "Conv1d": (nn.Conv1d, (7,)),
    "Conv2d": (nn.Conv2d, (7, 5)),
    "Conv3d": (nn.Conv3d, (5, 6, 7)),
    "ConvTranspose1d": (nn.ConvTranspose1d, (7,)),
    "ConvTranspose2d": (nn.ConvTranspose2d, (7, 5)),
    "ConvTranspose3d": (nn.ConvTranspose3d, (3, 4, 5)),
}


def by_hand(layer, order, batch):
    """The output of the parts of the layer, called one after the other."""
    torch_class = next(base for base in type(layer).__mro__ if base.__module__ == "torch.nn.modules.conv")
    parts = {"C": lambda x: torch_class.forward(layer, x), "N": layer.norm, "A": layer.activation}
    for stage in order:
        batch = parts[stage](batch)
    return batch


@pytest.mark.parametrize("order", get_args(nn.Order))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 5), (None, 5)])
def test_six_orders_on_odd_shapes(kind, order, sizes):
    make, positions = KINDS[kind]
    layer = make(*sizes, 3, bias=False, norm="batch", activation="relu", order=order, weight_init="kaiming_normal")
    batch = torch.randn(3, 3, *positions, requires_grad=True)
    output = layer(batch)
    assert layer.norm.num_features == (5 if order.index("N") > order.index("C") else 3)
    assert type(layer) is make
    assert torch.allclose(output, by_hand(copy.deepcopy(layer), order, batch), atol=1e-6)
    output.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or order[-1] == "N", name
    assert batch.grad.isfinite().all()


@pytest.mark.parametrize("order", get_args(nn.Order))
@pytest.mark.parametrize("kind", KINDS)
def test_six_orders_compile_and_export(kind, order):
    torch.compiler.reset()
    make, positions = KINDS[kind]
    layer = make(3, 5, 3, norm="batch", activation="gelu", order=order).eval()
    batch = torch.randn(2, 3, *positions)
    expected = layer(batch)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(batch), expected, atol=1e-6)
    dynamic = {0: torch.export.Dim("batch")}
    exported = torch.export.export(layer, (batch,), dynamic_shapes=(dynamic,))
    assert torch.allclose(exported.module()(batch), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "layer", torch_nn.BatchNorm2d, torch_nn.BatchNorm2d(8)])
def test_norms(norm):
    layer = nn.Conv2d(4, 8, 3, norm=norm)
    batch = torch.randn(2, 4, 9, 7)
    plain = F.conv2d(batch, layer.weight, layer.bias)
    expected = {
        "batch": lambda: F.batch_norm(plain, None, None, training=True),
        "group": lambda: F.group_norm(plain, 8),
        "instance": lambda: F.instance_norm(plain),
        "layer": lambda: F.layer_norm(plain.movedim(1, -1), (8,)).movedim(-1, 1),
    }[norm if isinstance(norm, str) else "batch"]()
    assert torch.allclose(layer(batch), expected, atol=1e-5)
    keys = list(layer.state_dict())
    assert keys[:2] == ["weight", "bias"]
    assert all(key.startswith("norm.") for key in keys[2:])


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", nn.BatchNorm2d])
def test_a_lazy_norm_before_the_operation(norm):
    layer = nn.Conv2d(None, 8, 3, norm=norm, order="NCA", activation="relu")
    layer(torch.randn(2, 4, 9, 7))
    assert layer.norm.weight.shape == (4,)
    assert layer.in_channels == 4


def test_a_missing_part_is_skipped():
    batch = torch.randn(2, 3, 5, 5)
    layer = nn.Conv2d(3, 4, 3, activation="relu", order="NAC")
    assert torch.equal(layer(batch), F.conv2d(batch.relu(), layer.weight, layer.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert "order=AC" in repr(layer)


def test_torchs_weights_load_into_a_layer_with_an_activation():
    theirs, ours = torch_nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, activation="relu")
    ours.load_state_dict(theirs.state_dict())
    batch = torch.randn(2, 3, 5, 5)
    assert torch.equal(ours(batch), theirs(batch).relu())


def test_the_output_size_of_a_transposed_convolution():
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2, norm="batch", activation="relu")
    batch = torch.randn(2, 3, 5, 4)
    assert layer(batch, output_size=[12, 10]).shape == (2, 4, 12, 10)


def test_an_unbatched_input_is_inferred_too():
    layer = nn.Conv2d(None, 4, 3)
    assert layer(torch.randn(3, 5, 6)).shape == (4, 3, 4)
    assert layer.in_channels == 3


def test_groups_and_dirac():
    layer = nn.Conv2d(None, 6, 3, padding=1, groups=3, bias=False, weight_init="dirac")
    batch = torch.randn(2, 6, 5, 5)
    assert torch.equal(layer(batch), batch)


def test_parts_have_their_own_initialisers():
    layer = nn.Conv2d(
        3, 4, 3, weight_init="zeros", norm=lambda c: nn.BatchNorm2d(c, weight_init="zeros"), activation="prelu"
    )
    report = init.initialize(layer, "ones")
    assert not layer.weight.any()
    assert not layer.norm.weight.any()
    assert layer.activation.weight.item() == 0.25
    assert report["norm.weight"].reason == "BatchNorm2d's own"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"order": "CN"}, ValueError, "order: got 'CN'; it needs each of C, N and A once"),
        ({"order": "CNN"}, ValueError, "order: got 'CNN'"),
        ({"order": "cna"}, ValueError, "order: got 'cna'"),
        ({"norm": "bach"}, ValueError, "norm: got 'bach'; did you mean 'batch'"),
        ({"norm": 3}, TypeError, "norm: got 3"),
        ({"norm": lambda channels: channels}, TypeError, "returned a int"),
        ({"norm": torch_nn.BatchNorm2d(3)}, ValueError, "got a norm for 3 channels, but its input has 8"),
        ({"norm": torch_nn.BatchNorm2d(8), "order": "NCA"}, ValueError, "for 8 channels, but its input has 4"),
        ({"norm": "group", "order": "NCA", "in_channels": None}, ValueError, "got 'group', but the number of channels"),
        ({"norm": torch_nn.BatchNorm2d, "order": "NCA", "in_channels": None}, ValueError, "not known yet"),
        ({"weight_init": "identity"}, ValueError, r"weight \(Conv2d's own\): Identity"),
    ],
)
def test_bad_arguments(arguments, error, says):
    with pytest.raises(error, match=says):
        nn.Conv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments})


def test_a_wrong_first_batch_changes_nothing():
    layer = nn.Conv2d(None, 6, 3, groups=3)
    with pytest.raises(ValueError, match="input: got 2 dimensions"):
        layer(torch.randn(3, 4))
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        layer(torch.randn(2, 4, 5, 5))
    assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 6, 3, 3)
