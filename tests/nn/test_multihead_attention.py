import pytest
import torch

from mxtorch import init, nn


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 5}])
def test_each_projection_is_a_separate_matrix(sizes):
    layer = nn.MultiheadAttention(8, 2, weight_init="orthogonal", bias_init=init.Constant(2), **sizes)
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    projections = [getattr(layer, name) for name in names] if sizes else layer.in_proj_weight.chunk(3)
    for projection in [*projections, layer.out_proj.weight]:
        square = projection.T @ projection
        assert torch.allclose(square, torch.eye(len(square)), atol=1e-5)
    assert layer.in_proj_bias.unique().item() == layer.out_proj.bias.unique().item() == 2


def test_the_output_projection_belongs_to_it():
    layer = nn.Sequential(nn.MultiheadAttention(8, 2, weight_init="ones"))
    report = init.initialize(layer, "zeros", init.Constant(5))
    assert layer[0].out_proj.weight.unique().item() == 1
    assert layer[0].out_proj.bias.unique().item() == 5
    assert report["0.out_proj.weight"].reason == "MultiheadAttention's own"


def test_an_activation_with_parameters_is_no_projection():
    layer = nn.MultiheadAttention(8, 2, weight_init="zeros", activation="prelu")
    assert layer.activation.weight.item() == 0.25
    assert "activation.weight" not in layer.own_initializers
    states = torch.randn(3, 2, 8)
    output, weights = layer(states, states, states, need_weights=False)
    assert not output.any()
    assert weights is None


@pytest.mark.parametrize("sizes", [{}, {"kdim": 2, "vdim": 5}, {"vdim": 5}])
@pytest.mark.parametrize("own", [{}, {"weight_init": "orthogonal", "activation": "relu"}])
def test_features_from_the_first_batch(sizes, own):
    layer = nn.MultiheadAttention(None, 2, **sizes, **own)
    keys = layer.state_dict().keys()
    key, value = torch.randn(4, 3, sizes.get("kdim", 6)), torch.randn(4, 3, sizes.get("vdim", 6))
    output, _ = layer(torch.randn(5, 3, 6), key, value=value)
    assert output.shape == (5, 3, 6)
    ready = nn.MultiheadAttention(6, 2, **sizes, **own)
    assert layer.state_dict().keys() == ready.state_dict().keys() == keys
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in ready.state_dict().items()}
    assert (layer.embed_dim, layer.kdim, layer.vdim, layer.head_dim) == (6, ready.kdim, ready.vdim, 3)
    if own:
        assert torch.allclose(layer.out_proj.weight @ layer.out_proj.weight.T, torch.eye(6), atol=1e-5)
    assert {row.name for row in init.initialize(layer, seed=0)} == set(keys)


def test_initialize_waits_for_the_first_batch_and_gives_the_same():
    def made(size):
        layer = nn.MultiheadAttention(size, 2, add_bias_kv=True)
        init.initialize(layer, "xavier_normal", init.Constant(0.5), seed=3)
        states = torch.ones(3, 2, 8)
        layer(states, states, states)
        return layer.state_dict()

    for (name, ready), lazy in zip(made(8).items(), made(None).values(), strict=True):
        assert torch.equal(ready, lazy), name


@pytest.mark.parametrize(
    ("sizes", "features", "says"),
    [
        ({}, (7, 7, 7), "query: got 7 features for 2 heads"),
        (
            {},
            (8, 6, 8),
            "kdim: got None, which means the 8 features of the query, and an input with 6 features; give 6",
        ),
        ({"kdim": 6}, (8, 6, 4), "vdim: got None"),
        ({"kdim": 8}, (8, 8, 8), "query: got 8 features, as for key and value; leave kdim and vdim out"),
    ],
)
def test_a_wrong_first_batch_changes_nothing(sizes, features, says):
    layer = nn.MultiheadAttention(None, 2, **sizes)
    with pytest.raises(ValueError, match=says):
        layer(*(torch.randn(3, 2, size) for size in features))
    assert layer.has_uninitialized_params()


def test_the_output_projection_alone_before_the_first_batch():
    layer = nn.MultiheadAttention(None, 2)
    with pytest.raises(ValueError, match="has no sizes yet; call the layer that contains it"):
        layer.out_proj(torch.randn(3, 8))
