import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mxtorch import init


def test_identity_and_dirac_pass_the_input_on():
    batch = torch.randn(2, 6)
    assert torch.equal(F.linear(batch, init.Identity()(torch.empty(6, 6))), batch)
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
    init.Dirac()(conv.weight, place=init.Place(conv, "weight"))
    images = torch.randn(2, 6, 5, 7)
    assert torch.equal(conv(images), images)
    assert torch.equal(init.Dirac(groups=3)(torch.empty(6, 2, 3, 3)), conv.weight)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
def test_sparse_zeroes_a_part_of_each_column_and_follows_the_generator(sparsity):
    first = init.Sparse(sparsity)(torch.empty(20, 600), generator=torch.Generator().manual_seed(1))
    torch.rand(3)
    second = init.Sparse(sparsity)(torch.empty(20, 600), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert (first == 0).sum(0).unique().tolist() == [math.ceil(20 * sparsity)]
    torch_values = nn.init.sparse_(torch.empty(20, 600), sparsity, generator=torch.Generator().manual_seed(1))
    both = (first != 0) & (torch_values != 0)
    assert torch.equal(first[both], torch_values[both])


@pytest.mark.parametrize(("dimensions", "mode"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bilinear_upsamples_as_interpolate_does_away_from_the_border(dimensions, mode, factor):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    arguments = {"kernel_size": 2 * factor - factor % 2, "stride": factor, "padding": math.ceil((factor - 1) / 2)}
    images = torch.randn(1, 2, *[6] * dimensions)
    expected = F.interpolate(images, scale_factor=factor, mode=mode, align_corners=False)
    inner = (..., *[slice(factor, -factor)] * dimensions)
    for groups in (1, 2):
        upsample = kind(2, 2, groups=groups, bias=False, **arguments)
        init.Bilinear()(upsample.weight)
        assert torch.allclose(upsample(images)[inner], expected[inner], atol=1e-5)


def test_lstm_bias_sums_to_the_value_at_the_forget_gate_alone():
    lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True)
    init.initialize(lstm, bias=init.LSTMBias(1.5))
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        total = getattr(lstm, f"bias_ih_{suffix}") + getattr(lstm, f"bias_hh_{suffix}")
        assert total.tolist() == [0] * 5 + [1.5] * 5 + [0] * 10
    assert init.LSTMBias()(torch.empty(8)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("initializer", "shape"),
    [
        (init.Identity(), (3,)),
        (init.Identity(), (3, 3, 3)),
        (init.Dirac(), (3, 3)),
        (init.Dirac(groups=2), (3, 3, 3)),
        (init.Sparse(0.5), (3, 3, 3)),
        (init.Bilinear(), (3, 2, 4, 4)),
        (init.Bilinear(), (3, 3)),
        (init.LSTMBias(), (6,)),
        (init.LSTMBias(), (4, 4)),
        (init.Orthogonal(), (3,)),
        (init.XavierUniform(), (3,)),
        (init.XavierNormal(), (3,)),
        (init.KaimingUniform(), (3,)),
        (init.KaimingNormal(), (3,)),
        (init.LecunUniform(), (3,)),
        (init.LecunNormal(), (3,)),
        (init.Fixup(2), (3,)),
        (init.Default(), (3,)),
    ],
)
def test_a_shape_that_does_not_suit_is_refused(initializer, shape):
    tensor = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"can't fill the shape \(.*it needs"):
        initializer(tensor)
    assert not tensor.any()


def test_lstm_bias_is_for_an_lstm():
    gru = nn.GRU(3, 4)
    with pytest.raises(ValueError, match="it is for an LSTM's alone"):
        init.initialize(gru, bias="lstm_bias")
