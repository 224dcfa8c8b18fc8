"""Layers take the arguments of torch's classes and have the matching signatures."""

import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn as torch_nn

from mxtorch import init, nn

OWN = ["weight_init", "bias_init", "activation"]
RECURRENT = ("RNN", "LSTM", "GRU")
LAYERS = [name for name in nn.__all__ if hasattr(torch_nn, name)]


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in RECURRENT])
def test_a_signature_is_torchs_followed_by_ours(name):
    theirs = inspect.signature(getattr(torch_nn, name)).parameters
    ours = inspect.signature(getattr(nn, name)).parameters
    normed = name == "Linear" or name.startswith("Conv")
    assert list(ours) == [*theirs, *OWN, *(["norm", "order"] if normed else [])]
    for argument, parameter in theirs.items():
        assert ours[argument].kind == parameter.kind
        assert ours[argument].default == parameter.default or (name, argument) == ("GroupNorm", "num_channels")
    for argument in list(ours)[len(theirs) :]:
        assert ours[argument].kind == inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_take_the_arguments_of_torchs_base(name):
    theirs = list(inspect.signature(torch_nn.RNNBase).parameters)[1:]
    ours = list(inspect.signature(getattr(nn, name)).parameters)
    assert [argument for argument in ours if argument in theirs] == theirs
    positional = (3, 4, 2, *(["relu"] if name == "RNN" else []), False, True, 0.0, True, 0, "cpu", torch.float64)
    torch.manual_seed(0)
    expected = getattr(torch_nn, name)(*positional)
    torch.manual_seed(0)
    layer = getattr(nn, name)(*positional)
    assert repr(layer) == repr(expected)
    assert all(map(torch.equal, layer.parameters(), expected.parameters()))


def test_a_constructor_of_the_user_keeps_its_signature():
    class Head(nn.Linear):
        def __init__(self, classes):
            super().__init__(None, classes)

    class Scaled(nn.Linear):
        pass

    assert list(inspect.signature(Head).parameters) == ["classes"]
    assert inspect.signature(Scaled) == inspect.signature(nn.Linear)
    assert list(inspect.signature(nn.Dense).parameters)[:2] == ["units", "activation"]
    assert list(inspect.signature(nn.ChannelNorm).parameters) == ["channels", "dimensions"]
    assert "None" in str(inspect.signature(nn.Linear).parameters["in_features"].annotation)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Conv2d(3, 8), "Conv2d: missing a required argument: 'kernel_size'; it takes in_channels, out_chan"),
        (lambda: nn.Conv2d(3, 8, 3, strid=2), "Conv2d: got an unexpected keyword argument 'strid'; did you mean 'stri"),
        (lambda: nn.LSTM(3, 4, norm="batch"), "LSTM: got an unexpected keyword argument 'norm'"),
        (lambda: nn.Linear(3, 4, in_features=3), "Linear: multiple values for argument 'in_features'"),
        (lambda: nn.Linear(*range(9)), "Linear: too many positional arguments; it takes in_features, out_features"),
    ],
)
def test_arguments_that_do_not_fit(make, says):
    with pytest.raises(TypeError, match=says):
        make()


SIZES = {
    "Conv2d": (lambda i: nn.Conv2d(i(4), i(6), (i(3), i(2)), stride=i(2), groups=i(2)), (2, 4, 7, 7)),
    "ConvTranspose1d": (lambda i: nn.ConvTranspose1d(i(4), i(6), i(3), activation="relu"), (2, 4, 7)),
    "Linear": (lambda i: nn.Linear(i(3), i(4), norm="group"), (2, 3)),
    "Dense": (lambda i: nn.Dense(i(3), in_features=i(4)), (2, 4)),
    "LSTM": (lambda i: nn.LSTM(i(3), i(4), num_layers=i(2)), (5, 2, 3)),
    "Embedding": (lambda i: nn.Embedding(i(5), i(3), padding_idx=i(1)), None),
    "GroupNorm": (lambda i: nn.GroupNorm(i(2), i(4)), (2, 4, 3)),
    "LayerNorm": (lambda i: nn.LayerNorm([i(4), i(3)]), (2, 4, 3)),
    "ChannelNorm": (lambda i: nn.ChannelNorm(i(4), dimensions=i(1)), (2, 4, 3)),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_numpys_integers_are_integers(name, kind):
    make, shape = SIZES[name]
    torch.manual_seed(0)
    expected = make(int)
    torch.manual_seed(0)
    layer = make(kind)
    batch = torch.tensor([0, 1, 4]) if shape is None else torch.randn(shape)
    output, wanted = layer(batch), expected(batch)
    assert torch.equal(*((output[0], wanted[0]) if name == "LSTM" else (output, wanted)))
    assert repr(layer) == repr(expected)
    assert b"numpy" not in pickle.dumps(layer)


def test_numpys_integers_of_initialisers():
    assert init.Fixup(np.int64(4)) == init.Fixup(4)
    assert type(init.Dirac(np.int32(2)).groups) is int
    nets = [nn.Linear(3, 4), nn.Linear(3, 4)]
    for net, seed in zip(nets, (7, np.int64(7)), strict=True):
        init.initialize(net, seed=seed)
    assert torch.equal(nets[0].weight, nets[1].weight)
