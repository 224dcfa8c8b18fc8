"""Every layer with every suitable initialiser: the values are exactly torch's, with the moments of the formula."""

import math

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from mxtorch import init, nn

T = torch_nn.init
# Layers with weights of at least 10,000 values, and the number of stacked matrices in each weight.
MATRICES = {
    "Conv1d": lambda **own: nn.Conv1d(32, 64, 7, **own),
    "Conv2d": lambda **own: nn.Conv2d(32, 40, 3, **own),
    "Conv3d": lambda **own: nn.Conv3d(16, 24, 3, **own),
    "ConvTranspose1d": lambda **own: nn.ConvTranspose1d(32, 64, 7, **own),
    "ConvTranspose2d": lambda **own: nn.ConvTranspose2d(32, 40, 3, **own),
    "ConvTranspose3d": lambda **own: nn.ConvTranspose3d(16, 24, 3, **own),
    "Linear": lambda **own: nn.Linear(100, 130, **own),
    "Dense": lambda **own: nn.Dense(130, in_features=100, **own),
    "Bilinear": lambda **own: nn.Bilinear(20, 25, 30, **own),
    "Embedding": lambda **own: nn.Embedding(200, 60, **own),
    "RNN": lambda **own: nn.RNN(110, 100, nonlinearity="relu", **own),
    "LSTM": lambda **own: nn.LSTM(110, 100, **own),
    "GRU": lambda **own: nn.GRU(110, 100, **own),
    "MultiheadAttention": lambda **own: nn.MultiheadAttention(104, 2, **own),
}
VECTORS = {
    "BatchNorm1d": lambda **own: nn.BatchNorm1d(12_000, **own),
    "BatchNorm2d": lambda **own: nn.BatchNorm2d(12_000, **own),
    "BatchNorm3d": lambda **own: nn.BatchNorm3d(12_000, **own),
    "GroupNorm": lambda **own: nn.GroupNorm(4, 12_000, **own),
    "LayerNorm": lambda **own: nn.LayerNorm(12_000, **own),
    "PReLU": lambda **own: nn.PReLU(12_000, **own),
}
STACKED = {"LSTM": 4, "GRU": 3, "MultiheadAttention": 3}
TRUNCATED = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(
    math.sqrt(2)
)  # the variance of a normal that is truncated at two deviations

# Name: initialiser, torch's function, mean, variance from fan in, fan out and the longer side.
ANYWHERE = {
    "zeros": (init.Zeros(), T.zeros_, 0, lambda *fans: 0),
    "ones": (init.Ones(), T.ones_, 1, lambda *fans: 0),
    "constant": (init.Constant(0.3), lambda t: T.constant_(t, 0.3), 0.3, lambda *fans: 0),
    "uniform": (init.Uniform(-1, 2), lambda t: T.uniform_(t, -1, 2), 0.5, lambda *fans: 9 / 12),
    "normal": (init.Normal(1, 0.02), lambda t: T.normal_(t, 1, 0.02), 1, lambda *fans: 0.0004),
    "truncated": (init.TruncatedNormal(), T.trunc_normal_, 0, lambda *fans: TRUNCATED),
    "function": (T.normal_, T.normal_, 0, lambda *fans: 1),
}
ON_MATRICES = {
    "xavier_uniform": (init.XavierUniform(1.5), lambda t: T.xavier_uniform_(t, 1.5), 0, lambda i, o, n: 4.5 / (i + o)),
    "xavier_normal": (init.XavierNormal(1), T.xavier_normal_, 0, lambda i, o, n: 2 / (i + o)),
    "kaiming_uniform": (
        init.KaimingUniform(nonlinearity="relu"),
        lambda t: T.kaiming_uniform_(t, nonlinearity="relu"),
        0,
        lambda i, o, n: 2 / i,
    ),
    "kaiming_normal": (
        init.KaimingNormal(a=0.2, mode="fan_out", nonlinearity="leaky_relu"),
        lambda t: T.kaiming_normal_(t, 0.2, "fan_out"),
        0,
        lambda i, o, n: 2 / 1.04 / o,
    ),
    "lecun_uniform": (
        init.LecunUniform(),
        lambda t: T.kaiming_uniform_(t, nonlinearity="linear"),
        0,
        lambda i, o, n: 1 / i,
    ),
    "lecun_normal": (
        init.LecunNormal(),
        lambda t: T.kaiming_normal_(t, nonlinearity="linear"),
        0,
        lambda i, o, n: 1 / i,
    ),
    "orthogonal": (init.Orthogonal(1.5), lambda t: T.orthogonal_(t, 1.5), 0, lambda i, o, n: 2.25 / n),
    "fixup": (
        init.Fixup(9, 3),
        lambda t: T.kaiming_normal_(t, nonlinearity="relu").mul_(9**-0.25),
        0,
        lambda i, o, n: 2 / 3 / i,
    ),
}


def blocks_of(layer_name, layer):
    """The matrices that are stacked in each weight."""
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 1 or (layer_name in VECTORS and name == "weight"):
            yield from parameter.detach().chunk(1 if name.startswith("out") else STACKED.get(layer_name, 1))


CASES = [
    pytest.param(make, layer, *expected, id=f"{layer}-{name}")
    for layers, initialisers in ((MATRICES, ANYWHERE | ON_MATRICES), (VECTORS, ANYWHERE))
    for layer, make in layers.items()
    for name, expected in initialisers.items()
]


@pytest.mark.parametrize(("make", "layer_name", "initializer", "torch_function", "mean", "variance"), CASES)
def test_values_are_torchs_and_have_the_moments_of_the_formula(
    make, layer_name, initializer, torch_function, mean, variance
):
    torch.manual_seed(3)
    layer = make(weight_init=initializer)
    torch.manual_seed(3)
    if layer_name == "MultiheadAttention":
        torch_nn.Linear(104, 104)  # torch's constructor draws values for the output projection once more than needed
    samples = 0
    for block in blocks_of(layer_name, layer):
        expected = torch.empty(block.shape)
        assert torch.equal(block, torch_function(expected))
        fans = T._calculate_fan_in_and_fan_out(block) if block.dim() > 1 else (0, 0)
        wanted = variance(*fans, max(block.shape[0], block[0].numel()))
        count, values = block.numel(), block.double()
        samples += count
        assert abs(values.mean() - mean) <= 5 * math.sqrt(wanted / count) + 1e-7
        assert abs(values.var() - wanted) <= 5 * wanted * math.sqrt(2 / count) + 1e-12
    assert samples >= 10_000


@pytest.mark.parametrize("name", ANYWHERE | ON_MATRICES)
def test_values_are_torchs_under_the_same_generator(name):
    initializer, torch_function, *_ = (ANYWHERE | ON_MATRICES)[name]
    torch.manual_seed(5)
    expected = torch_function(torch.empty(20, 10, 3))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(init.get(initializer)(torch.empty(20, 10, 3), generator=generator), expected)


# Layers with biases of at least 10,000 values.
BIASES = {
    **{f"Conv{n}d": lambda n=n, **own: getattr(nn, f"Conv{n}d")(1, 12_000, 1, **own) for n in (1, 2, 3)},
    **{
        f"ConvTranspose{n}d": lambda n=n, **own: getattr(nn, f"ConvTranspose{n}d")(1, 12_000, 1, **own)
        for n in (1, 2, 3)
    },
    "Linear": lambda **own: nn.Linear(1, 12_000, **own),
    "Dense": lambda **own: nn.Dense(12_000, in_features=1, **own),
    "Bilinear": lambda **own: nn.Bilinear(1, 1, 12_000, **own),
    **{name: make for name, make in VECTORS.items() if name != "PReLU"},
    "RNN": lambda **own: nn.RNN(1, 100, num_layers=60, **own),
    "LSTM": lambda **own: nn.LSTM(1, 30, num_layers=50, **own),
    "GRU": lambda **own: nn.GRU(1, 30, num_layers=60, **own),
    "MultiheadAttention": lambda **own: nn.ModuleList([nn.MultiheadAttention(100, 2, **own) for _ in range(30)]),
}


@pytest.mark.parametrize("initializer", ANYWHERE)
@pytest.mark.parametrize("layer", BIASES)
def test_biases_have_the_moments_of_the_formula(layer, initializer):
    given, _, mean, variance = ANYWHERE[initializer]
    torch.manual_seed(3)
    made = BIASES[layer](bias_init=given)
    biases = [bias.detach().double() for name, bias in made.named_parameters() if "bias" in name]
    values = torch.cat(biases)
    assert len(values) >= 10_000
    assert abs(values.mean() - mean) <= 5 * math.sqrt(variance() / len(values)) + 1e-7
    assert abs(values.var() - variance()) <= 5 * variance() * math.sqrt(2 / len(values)) + 1e-12


@pytest.mark.parametrize("name", ["identity", "dirac", "sparse"])
@pytest.mark.parametrize("kind", ["Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Embedding", "RNN"])
def test_structured_initialisers_of_suitable_layers(kind, name):
    if (name == "dirac") != ("Conv" in kind):
        with pytest.raises(ValueError, match=r"weight.* \(.*'s own\): .* can't fill"):
            MATRICES[kind](weight_init=init.get(name, **({"sparsity": 0.5} if name == "sparse" else {})))
        return
    settings = {"sparsity": 0.5} if name == "sparse" else {}
    function = {"identity": T.eye_, "dirac": T.dirac_, "sparse": lambda t: T.sparse_(t, 0.5)}[name]
    torch.manual_seed(3)
    layer = MATRICES[kind](weight_init=init.get(name, **settings))
    torch.manual_seed(3)
    for block in blocks_of(kind, layer):
        assert torch.equal(block, function(torch.empty(block.shape)))


@pytest.mark.parametrize(
    ("activation", "gain"),
    [("relu", 2**0.5), ("tanh", 5 / 3), ("leaky_relu", (2 / 1.0001) ** 0.5), ("prelu", (2 / 1.0625) ** 0.5)],
)
def test_the_gain_is_that_of_the_layers_own_activation(activation, gain):
    def made(name):
        torch.manual_seed(0)
        return nn.Linear(100, 120, activation=activation, weight_init=name).weight

    assert torch.equal(made("xavier_normal"), _seeded(lambda t: T.xavier_normal_(t, gain), 120, 100))
    assert torch.equal(made("orthogonal"), _seeded(lambda t: T.orthogonal_(t, gain), 120, 100))
    assert made("kaiming_normal").std().item() == pytest.approx(gain / 10, rel=0.02)
    assert made("kaiming_uniform").std().item() == pytest.approx(gain / 10, rel=0.02)


def test_gains_without_an_activation_are_torchs_defaults():
    assert torch.equal(_seeded(init.KaimingNormal(), 9, 9), _seeded(T.kaiming_normal_, 9, 9))
    assert torch.equal(_seeded(init.XavierNormal(), 9, 9), _seeded(T.xavier_normal_, 9, 9))


def _seeded(function, *shape):
    torch.manual_seed(0)
    return function(torch.empty(shape))


def test_gains_of_an_activation_that_torch_has_none_for():
    torch.manual_seed(0)
    layer = nn.Linear(200, 200, activation="gelu", weight_init="kaiming_normal", bias_init="zeros")
    assert layer.weight.std().item() == pytest.approx(init.gain_of(torch_nn.GELU()) / 200**0.5, rel=0.02)


def test_recurrent_gains_are_those_of_the_nonlinearity():
    for nonlinearity, gain in (("relu", 2**0.5), ("tanh", 5 / 3)):
        layer = nn.RNN(50, 300, nonlinearity=nonlinearity, recurrent_init="orthogonal")
        square = layer.weight_hh_l0 @ layer.weight_hh_l0.T
        assert torch.allclose(square, gain**2 * torch.eye(300), atol=1e-4)


def test_identity_and_dirac_pass_the_input_on():
    batch = torch.randn(2, 6)
    assert torch.equal(F.linear(batch, init.Identity()(torch.empty(6, 6))), batch)
    conv = torch_nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
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
    torch_values = torch_nn.init.sparse_(torch.empty(20, 600), sparsity, generator=torch.Generator().manual_seed(1))
    both = (first != 0) & (torch_values != 0)
    assert torch.equal(first[both], torch_values[both])


@pytest.mark.parametrize(("dimensions", "mode"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bilinear_upsamples_as_interpolate_does_away_from_the_border(dimensions, mode, factor):
    kind = (torch_nn.ConvTranspose1d, torch_nn.ConvTranspose2d, torch_nn.ConvTranspose3d)[dimensions - 1]
    arguments = {"kernel_size": 2 * factor - factor % 2, "stride": factor, "padding": math.ceil((factor - 1) / 2)}
    images = torch.randn(1, 2, *[6] * dimensions)
    expected = F.interpolate(images, scale_factor=factor, mode=mode, align_corners=False)
    inner = (..., *[slice(factor, -factor)] * dimensions)
    for groups in (1, 2):
        upsample = kind(2, 2, groups=groups, bias=False, **arguments)
        init.Bilinear()(upsample.weight)
        assert torch.allclose(upsample(images)[inner], expected[inner], atol=1e-5)


def test_lstm_bias_sums_to_the_value_only_at_the_forget_gate():
    lstm = torch_nn.LSTM(3, 5, num_layers=2, bidirectional=True)
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
def test_a_wrong_shape_is_refused(initializer, shape):
    tensor = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"can't fill the shape \(.*it needs"):
        initializer(tensor)
    assert not tensor.any()


def test_lstm_bias_is_for_an_lstm():
    gru = torch_nn.GRU(3, 4)
    with pytest.raises(ValueError, match="it is only for an LSTM"):
        init.initialize(gru, bias="lstm_bias")
