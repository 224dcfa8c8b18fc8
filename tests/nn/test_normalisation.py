import pytest
import torch
from torch.nn import functional as F

from mxtorch import init, nn


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **own: nn.BatchNorm1d(4, **own), (3, 4)),
        (lambda **own: nn.BatchNorm2d(4, **own), (3, 4, 2, 2)),
        (lambda **own: nn.BatchNorm3d(4, **own), (3, 4, 2, 2, 2)),
        (lambda **own: nn.GroupNorm(2, 4, **own), (3, 4, 2)),
        (lambda **own: nn.LayerNorm(4, **own), (3, 4)),
    ],
)
def test_scale_shift_and_activation(make, shape):
    own = {"weight_init": init.Constant(2), "bias_init": init.Constant(1)}
    batch = torch.randn(shape)
    plain, activated = make()(batch), make(**own, activation="relu")
    assert torch.allclose(make(**own)(batch), 2 * plain + 1, atol=1e-6)
    assert torch.allclose(activated(batch), (2 * plain + 1).relu(), atol=1e-6)
    init.initialize(activated)
    assert (activated.weight.unique().item(), activated.bias.unique().item()) == (2, 1)


def test_a_reset_resets_the_statistics():
    for norm in (nn.BatchNorm2d(4, weight_init="zeros"), nn.BatchNorm2d(4, weight_init="zeros", activation="relu")):
        norm(torch.randn(3, 4, 2, 2) + 5)
        norm.reset_parameters()
        assert not norm.running_mean.any()
        assert norm.running_var.unique().item() == 1
        assert norm.num_batches_tracked == 0


def test_channel_norm_is_a_layer_norm_of_the_channels():
    norm = nn.ChannelNorm(4, 2)
    batch = torch.randn(3, 4, 5, 6)
    expected = F.layer_norm(batch.movedim(1, -1), (4,)).movedim(-1, 1)
    assert torch.allclose(norm(batch), expected, atol=1e-6)
    assert torch.allclose(norm(batch[0]), expected[0], atol=1e-6)


def test_a_layer_without_shift_where_torch_allows_it():
    try:
        torch.nn.BatchNorm2d(4, bias=False)
    except TypeError:
        pytest.skip("this torch can't")
    assert nn.BatchNorm2d(4, bias=False).bias is None
