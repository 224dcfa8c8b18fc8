import pytest
import torch
from torch import nn

from mxtorch import init

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 3),
    "linear": lambda: nn.Linear(5, 7),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "embedding": lambda: nn.Embedding(9, 4, padding_idx=1),
    "rnn": lambda: nn.RNN(3, 4, num_layers=2),
    "lstm": lambda: nn.LSTM(3, 4, bidirectional=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4),
    "cell": lambda: nn.LSTMCell(3, 4),
    "norm": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm(4),
    "prelu": lambda: nn.PReLU(3, init=0.1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_bit_identical_to_torchs(name):
    torch.manual_seed(7)
    expected = LAYERS[name]().state_dict()
    layer = LAYERS[name]()
    torch.manual_seed(7)
    init.reset(layer)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("settings", [{}, {"kdim": 6, "vdim": 5}, {"add_bias_kv": True}])
def test_attention_parameter_by_parameter(settings):
    attention = nn.MultiheadAttention(8, 2, **settings)
    init.initialize(attention, "default", "default", seed=0)
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()
    for name, parameter in attention.named_parameters():
        if "proj_weight" in name:
            bound = (6 / sum(parameter.shape)) ** 0.5
        elif name == "out_proj.weight":
            bound = 8**-0.5
        else:
            continue
        assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_a_parameter_without_a_default_of_torch_is_refused():
    net = nn.Module()
    net.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="torch has no default for weight of Module"):
        init.initialize(net, "default")
