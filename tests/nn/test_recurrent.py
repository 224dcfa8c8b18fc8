import pytest
import torch
from torch import nn as torch_nn

from mxtorch import init, nn


@pytest.mark.parametrize(("make", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_input_recurrent_and_bias_apart_and_gate_by_gate(make, gates):
    layer = make(
        5, 6, num_layers=2, bidirectional=True, input_init="xavier_normal", recurrent_init="identity", bias_init="ones"
    )
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.chunk(gates):
                assert torch.equal(gate, torch.eye(6)), name
        elif name.startswith("bias"):
            assert parameter.unique().item() == 1
        else:
            assert parameter.unique().numel() == parameter.numel()


def test_weight_init_is_for_weights_without_a_separate_initialiser():
    layer = nn.LSTM(5, 6, proj_size=2, weight_init="ones", recurrent_init="zeros", bias_init="lstm_bias")
    assert layer.weight_ih_l0.unique().item() == layer.weight_hr_l0.unique().item() == 1
    assert not layer.weight_hh_l0.any()
    assert (layer.bias_ih_l0 + layer.bias_hh_l0).tolist() == [0] * 6 + [1] * 6 + [0] * 12


def test_fans_are_those_of_one_gate():
    layer = nn.LSTM(100, 100, weight_init="xavier_normal")
    assert layer.weight_hh_l0.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.03)


def test_without_initialisers_the_values_are_torchs():
    layer = nn.GRU(100, 100, recurrent_init="orthogonal")
    assert layer.weight_ih_l0.abs().max().item() == pytest.approx(0.1, rel=0.01)
    report = init.initialize(layer, "zeros", "zeros")
    assert report["weight_hh_l0"].reason == "GRU's own"
    assert not layer.weight_ih_l0.any()


def test_arguments_are_torchs():
    with pytest.raises(ValueError, match="proj_size"):
        nn.GRU(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="nonlinearity"):
        nn.RNN(3, 4, nonlinearity="gelu")
    assert isinstance(nn.RNN(3, 4), torch_nn.RNNBase)


@pytest.mark.parametrize("given", ["relu", torch_nn.ReLU, torch_nn.ReLU()])
def test_an_rnns_activation_is_its_nonlinearity(given):
    layer = nn.RNN(3, 4, activation=given)
    assert type(layer) is torch_nn.RNN
    assert layer.nonlinearity == "relu"
    assert nn.RNN(3, 4, nonlinearity="relu", activation=given).nonlinearity == "relu"
    assert nn.RNN(3, 4, activation="tanh").nonlinearity == nn.RNN(3, 4).nonlinearity == "tanh"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"activation": "gelu"}, "activation: got 'gelu', but an RNN's activation is its nonlinearity"),
        ({"activation": "relu", "nonlinearity": "tanh"}, "activation: got 'relu' with nonlinearity='tanh'"),
        ({"activation": "rely"}, "activation: got 'rely'; did you mean 'relu'"),
    ],
)
def test_other_activations_of_an_rnn(arguments, says):
    with pytest.raises(ValueError, match=says):
        nn.RNN(3, 4, **arguments)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("size", [3, None])
def test_an_activation_of_packed_sequences(make, size):
    torch.manual_seed(0)
    layer = make(size, 4, activation="relu", recurrent_init="orthogonal")
    packed = torch_nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    output, _ = layer(packed)
    assert isinstance(output, torch_nn.utils.rnn.PackedSequence)
    plain, _ = layer.torch_class.forward(layer, packed)
    assert torch.equal(output.data, plain.data.relu())
    assert output.batch_sizes is plain.batch_sizes


def test_the_gates_do_not_use_the_gain_of_the_activation():
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4, weight_init="xavier_normal")
    torch.manual_seed(0)
    activated = nn.LSTM(3, 4, weight_init="xavier_normal", activation="relu")
    assert torch.equal(plain.weight_ih_l0, activated.weight_ih_l0)
