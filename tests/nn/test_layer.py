"""The promise of every layer: without norm and activation, it is torch's layer."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn as torch_nn
from torchvision.models import resnet50

from mxtorch import init, nn

LAYERS = {
    "Conv1d": ((4, 6, 3), {"padding": 1, "groups": 2}, (2, 4, 9)),
    "Conv2d": ((4, 6, (3, 2)), {"stride": 2, "bias": False}, (2, 4, 9, 7)),
    "Conv3d": ((4, 6, 3), {"padding_mode": "circular", "padding": 1}, (2, 4, 5, 6, 7)),
    "ConvTranspose1d": ((4, 6, 3), {"output_padding": 1, "stride": 2}, (2, 4, 9)),
    "ConvTranspose2d": ((4, 6, 3), {"groups": 2}, (2, 4, 9, 7)),
    "ConvTranspose3d": ((4, 6, 3), {}, (2, 4, 5, 6, 7)),
    "Linear": ((4, 6), {}, (2, 3, 4)),
    "Embedding": ((9, 4), {"padding_idx": 2}, None),
    "RNN": ((4, 6, 2), {"nonlinearity": "relu"}, (3, 2, 4)),
    "LSTM": ((4, 6), {"bidirectional": True, "num_layers": 2}, (3, 2, 4)),
    "GRU": ((4, 6), {"batch_first": True, "bias": False}, (3, 2, 4)),
    "BatchNorm1d": ((4,), {}, (3, 4)),
    "BatchNorm2d": ((4,), {"momentum": None}, (3, 4, 2, 2)),
    "BatchNorm3d": ((4,), {"affine": False}, (3, 4, 2, 2, 2)),
    "GroupNorm": ((2, 4), {}, (3, 4, 2)),
    "LayerNorm": ((4,), {"bias": False}, (3, 4)),
    "PReLU": ((4,), {"init": 0.1}, (3, 4)),
}
TWO_INPUTS = {
    "Bilinear": ((3, 4, 5), {}, (torch.ones(2, 3), torch.ones(2, 4))),
    "MultiheadAttention": ((8, 2), {"add_bias_kv": True}, (torch.ones(3, 2, 8),) * 3),
}
ALL = list(LAYERS) + list(TWO_INPUTS)


def pair(name, **own):
    """torch's layer and that of mxtorch, made with the same seed, and their inputs."""
    positional, named, inputs = (LAYERS | TWO_INPUTS)[name]
    if name in LAYERS:
        inputs = (torch.randint(9, (2, 3)) if inputs is None else torch.randn(inputs),)
    torch.manual_seed(0)
    theirs = getattr(torch_nn, name)(*positional, **named)
    torch.manual_seed(0)
    return theirs, getattr(nn, name)(*positional, **named, **own), inputs


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", ALL)
def test_a_plain_layer_is_torchs_bit_for_bit(name):
    theirs, ours, inputs = pair(name)
    assert type(ours) is type(theirs)
    assert isinstance(ours, getattr(nn, name))
    assert issubclass(getattr(nn, name), type(theirs))
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    assert torch.equal(first(ours(*inputs)), first(theirs(*inputs)))
    torch.manual_seed(1)
    ours_again = copy.deepcopy(ours)
    (ours_again.reset_parameters if name != "MultiheadAttention" else ours_again._reset_parameters)()
    torch.manual_seed(1)
    (theirs.reset_parameters if name != "MultiheadAttention" else theirs._reset_parameters)()
    for key, value in theirs.state_dict().items():
        if not key.startswith("out_proj"):
            assert torch.equal(ours_again.state_dict()[key], value)


@pytest.mark.parametrize("name", ALL)
def test_a_pickle_of_a_plain_layer_can_be_read_without_this_package(name):
    _, ours, inputs = pair(name)
    pickled = pickle.dumps(ours.eval())
    assert b"mxtorch" not in pickled
    assert torch.equal(first(pickle.loads(pickled)(*inputs)), first(ours(*inputs)))


@pytest.mark.parametrize("name", ALL)
def test_own_initialisers_are_kept_through_copies_pickles_and_resets(name):
    positional, named, _ = (LAYERS | TWO_INPUTS)[name]
    if named.get("affine") is False:
        pytest.skip("it has no parameters")
    own = {"weight_init": init.Constant(3)}
    layer = getattr(nn, name)(*positional, **named, **own)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert type(twin) is getattr(torch_nn, name)
        for reset in (lambda twin=twin: None, twin.reset_parameters, lambda twin=twin: init.initialize(twin, "zeros")):
            with torch.no_grad():
                for parameter in twin.parameters() if reset is twin.reset_parameters else ():
                    parameter.fill_(9)
            reset()
            for key, parameter in twin.named_parameters():
                if "weight" in key:
                    assert set(parameter.flatten().tolist()) <= {0.0, 3.0}, key
                    assert parameter.flatten()[0] == 3
                elif not key.startswith("bias_"):
                    assert 9 not in parameter, key


@pytest.mark.filterwarnings(
    "ignore:The tensor attributes self._flat_weights"
)  # torch warns so for its own recurrent layers
@pytest.mark.parametrize("name", [name for name in ALL if name != "RNN"])
def test_every_layer_takes_an_activation_of_its_first_output(name):
    torch.compiler.reset()
    theirs, ours, inputs = pair(name, activation="sigmoid")
    assert type(ours) is getattr(nn, name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    plain, output = theirs(*inputs), ours(*inputs)
    assert torch.equal(first(output), first(plain).sigmoid())
    assert isinstance(output, tuple) == isinstance(plain, tuple)
    for state, expected in zip(tensors_in(output)[1:], tensors_in(plain)[1:], strict=True):
        assert torch.equal(state, expected)
    twin = pickle.loads(pickle.dumps(ours.eval()))
    assert type(twin) is type(ours)
    expected = first(ours(*inputs))
    assert torch.equal(first(twin(*inputs)), expected)
    recurrent = name in ("LSTM", "GRU")
    compiled = torch.compile(twin, fullgraph=not recurrent, backend="eager")
    assert torch.equal(first(compiled(*inputs)), expected)
    if not (recurrent and TORCH_2_6):
        assert torch.allclose(first(torch.export.export(ours, inputs).module()(*inputs)), expected, atol=1e-6)


def tensors_in(output):
    return [output] if isinstance(output, torch.Tensor) else [tensor for part in output for tensor in tensors_in(part)]


TORCH_2_6 = torch.__version__.startswith("2.6.")


@pytest.mark.filterwarnings(
    "ignore:The tensor attributes self._flat_weights"
)  # torch warns so for its own recurrent layers
@pytest.mark.parametrize("name", ALL)
def test_compile_and_export(name):
    if name in ("RNN", "LSTM", "GRU") and TORCH_2_6:
        pytest.skip("torch 2.6 can't export its own recurrent layers")
    torch.compiler.reset()
    _, ours, inputs = pair(name, **({} if name == "BatchNorm3d" else {"weight_init": "ones"}))
    ours.eval()
    expected = first(ours(*inputs))
    compiled = torch.compile(ours, fullgraph=name not in ("RNN", "LSTM", "GRU"), backend="eager")
    assert torch.equal(first(compiled(*inputs)), expected)
    exported = torch.export.export(ours, inputs).module()
    assert torch.allclose(first(exported(*inputs)), expected, atol=1e-6)


@contextlib.contextmanager
def ours_for_torchs(monkeypatch):
    """A context in which networks are built from the layers of mxtorch in place of torch's; returns the layers."""
    made = []
    construct = nn.Layer._construct
    with monkeypatch.context() as patch:
        patch.setattr(nn.Layer, "_construct", lambda self, *given: [made.append(type(self)), construct(self, *given)])
        for name in nn.__all__:
            for module in (torch_nn, torch_nn.modules.transformer):
                if hasattr(module, name):
                    patch.setattr(module, name, getattr(nn, name))
        yield made


def transformer():
    layer = torch_nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    return torch_nn.Sequential(
        torch_nn.Embedding(50, 32), torch_nn.TransformerEncoder(layer, 2), torch_nn.Linear(32, 50)
    )


@pytest.mark.parametrize(
    ("make", "batch"),
    [(resnet50, torch.randn(2, 3, 64, 64)), (transformer, torch.randint(50, (2, 7)))],
    ids=["resnet50", "transformer"],
)
def test_drop_in(make, batch, monkeypatch):
    torch.manual_seed(0)
    theirs = make()
    with ours_for_torchs(monkeypatch) as made:
        torch.manual_seed(0)
        ours = make()
    replaceable = {getattr(nn, name).torch_class for name in ALL}
    assert {kind.torch_class for kind in made} == {type(module) for module in theirs.modules()} & replaceable
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    for mode in (True, False):
        outputs = []
        for net in (ours, theirs):
            torch.manual_seed(2)
            output = net.train(mode)(batch)
            output.square().sum().backward()
            outputs.append(output)
        assert torch.equal(*outputs)
    gradients = [[parameter.grad for parameter in net.parameters()] for net in (ours, theirs)]
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_quantisation_and_tracing_treat_them_as_torchs():
    quantization = pytest.importorskip("torch.ao.quantization")
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False, weight_init="orthogonal"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 4),
    ).eval()
    batch = torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(net)(batch), net(batch))
    dynamic = quantization.quantize_dynamic(copy.deepcopy(net), {torch_nn.Linear})
    assert type(dynamic[4]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    prepared = fx.prepare_fx(copy.deepcopy(net), quantization.get_default_qconfig_mapping(), (batch,))
    prepared(batch)
    names = [type(module).__name__ for module in fx.convert_fx(prepared).modules()]
    assert any("ConvReLU2d" in name for name in names)


def test_everything_else_of_torch_nn_is_here():
    for name in dir(torch_nn):
        assert name.startswith("_") or hasattr(nn, name), name
    assert nn.ReLU is torch_nn.ReLU
    assert nn.Conv2d is not torch_nn.Conv2d


def test_a_subclass_of_the_user_keeps_its_class():
    class Scaled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    layer, lazy = (
        Scaled(3, 2, weight_init="ones", bias_init="zeros"),
        Scaled(None, 2, weight_init="ones", bias_init="zeros"),
    )
    batch = torch.ones(1, 3)
    assert layer(batch).tolist() == lazy(batch).tolist() == [[6, 6]]
    assert type(layer) is type(lazy) is Scaled
    assert not isinstance(torch_nn.Linear(3, 2), Scaled)
    with torch.no_grad():
        layer.weight.zero_()
    layer.reset_parameters()
    assert layer.weight.unique().item() == 1


def test_parameters_without_an_initialiser_have_torchs_values():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, bias_init="ones")
    torch.manual_seed(0)
    assert torch.equal(layer.weight, torch_nn.Conv2d(3, 4, 3).weight)
    assert layer.bias.unique().item() == 1


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: nn.Linear(3, 2, weight_init="orthogonl"),
            ValueError,
            "weight_init: got 'orthogonl'; did you mean 'orth",
        ),
        (lambda: nn.Linear(3, 2, bias_init=3), TypeError, "bias_init: got 3"),
        (lambda: nn.Linear(3, 2, bias_init="orthogonal"), ValueError, r"bias \(Linear's own\): Orthogonal"),
        (lambda: nn.Linear(3, 2, bias=False, bias_init="zeros"), ValueError, "bias_init: got Zeros.* has no bias"),
        (lambda: nn.BatchNorm2d(3, affine=False, weight_init="ones"), ValueError, "weight_init: .* has no weight"),
        (lambda: nn.GRU(3, 2, bias=False, bias_init="zeros"), ValueError, "bias_init: .* has no bias"),
        (lambda: nn.MultiheadAttention(4, 2, bias=False, bias_init="zeros"), ValueError, "bias_init: .* has no bias"),
        (lambda: nn.GRU(3, 2, recurrent_init="orthognal"), ValueError, "recurrent_init: got 'orthognal'"),
        (lambda: nn.Embedding(3, 2, bias_init="zeros"), ValueError, "bias_init: .* has no bias"),
        (lambda: nn.PReLU(3, bias_init="zeros"), ValueError, "bias_init: .* has no bias"),
        (
            lambda: nn.Embedding(None, 2),
            ValueError,
            "num_embeddings: got None; a batch does not show this",
        ),
        (lambda: nn.Conv2d(3, None, 3), ValueError, "out_channels: got None"),
        (lambda: nn.Linear(None, None), ValueError, "out_features: got None"),
        (lambda: nn.MultiheadAttention(None, None), ValueError, "num_heads: got None"),
        (lambda: nn.LSTM(3, None), ValueError, "hidden_size: got None"),
        (lambda: nn.LSTM(3, 2, activation="rely"), ValueError, "activation: got 'rely'; did you mean 'relu'"),
        (lambda: nn.Linear(3, 2, activation="rely"), ValueError, "activation: got 'rely'; did you mean 'relu'"),
        (lambda: nn.Linear(3, 2, activation=3), TypeError, "activation: got 3"),
        (lambda: nn.Linear(3, 2, activation=torch.relu), TypeError, "can't be called without arguments.*nn.ReLU"),
        (lambda: nn.Linear(3, 2, activation=dict), TypeError, "returned a dict"),
    ],
)
def test_bad_arguments(make, error, says):
    state = torch.get_rng_state()
    with pytest.raises(error, match=says):
        make()
    if error is TypeError:
        assert torch.equal(torch.get_rng_state(), state)
