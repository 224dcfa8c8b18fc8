import copy
import pickle

import pytest
import torch
from torch import nn as torch_nn
from torch.nn.utils import prune
from torchvision.models import resnet18

from mxtorch import init, nn


def small():
    return torch_nn.Sequential(
        torch_nn.Conv2d(3, 4, 3),
        torch_nn.BatchNorm2d(4),
        torch_nn.PReLU(),
        torch_nn.Flatten(),
        torch_nn.Linear(36, 5),
    )


def values(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_weights_biases_norms_and_slopes_of_torchs_own_layers():
    net = small()
    net[1](torch.randn(2, 4, 3, 3) + 5)
    for parameter in net.parameters():
        torch_nn.init.constant_(parameter, 9)
    report = init.initialize(net, "xavier_normal", init.Constant(0.5))
    assert net[0].bias.unique().item() == net[4].bias.unique().item() == 0.5
    assert net[0].weight.std().item() == pytest.approx((2 / (27 + 36)) ** 0.5, rel=0.3)
    assert (net[1].weight.unique().item(), net[1].bias.unique().item(), net[2].weight.item()) == (1, 0, 0.25)
    assert not net[1].running_mean.any()
    assert net[1].num_batches_tracked == 0
    assert [row.name for row in report] == [name for name, _ in net.named_parameters()]
    assert report["4.weight"] == init.Row("4.weight", (5, 36), init.XavierNormal(), "global weight")
    assert report["1.weight"].reason == "torch's for BatchNorm2d"


def test_own_initialisers_precede_global_ones_and_patterns_precede_both():
    net = torch_nn.ModuleDict(
        {
            "stem": nn.Linear(4, 4, weight_init="ones"),
            "body": nn.Linear(4, 4, weight_init="ones", activation="relu"),
            "head": nn.Linear(4, 2, bias_init="ones"),
        }
    )
    report = init.initialize(
        net, "zeros", "zeros", overrides={"*.body.*": init.Constant(3), "*.b*.bias": init.Constant(4)}
    )
    assert net["stem"].weight.unique().item() == 1
    assert net["stem"].bias.unique().item() == 0
    assert net["body"].weight.unique().item() == 3
    assert net["body"].bias.unique().item() == 4
    assert net["head"].weight.unique().item() == 0
    assert net["head"].bias.unique().item() == 1
    assert report["stem.weight"].reason == "Linear's own"
    assert report["body.bias"].reason == "pattern '*.b*.bias'"
    for row in report:
        assert f"{row.name} " in str(report)
        assert row.reason in repr(report)


def test_values_depend_only_on_seed_and_name():
    first, second = small(), small()
    init.initialize(first, seed=1)
    torch.rand(5)
    before = torch.get_rng_state()
    init.initialize(second, seed=1)
    assert same(values(first), values(second))
    assert torch.equal(torch.get_rng_state(), before)
    init.initialize(second, seed=1, overrides={"0.*": "ones"})
    assert torch.equal(first[4].weight, second[4].weight)
    init.initialize(second, seed=2)
    assert not torch.equal(first[4].weight, second[4].weight)
    assert not torch.equal(first[0].weight.flatten()[:20], first[4].weight.flatten()[:20])


def test_without_a_seed_torchs_generator_draws():
    first, second = small(), small()
    torch.manual_seed(0)
    init.initialize(first)
    torch.manual_seed(0)
    init.initialize(second)
    assert same(values(first), values(second))


def test_recurrent_and_attention_parameters_are_all_reached():
    net = torch_nn.ModuleList(
        [
            torch_nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
            torch_nn.GRUCell(3, 4),
            torch_nn.MultiheadAttention(8, 2, add_bias_kv=True),
            torch_nn.MultiheadAttention(8, 2, kdim=3, vdim=5),
            torch_nn.Embedding(5, 3, padding_idx=0),
            torch_nn.Bilinear(2, 3, 4),
        ]
    )
    report = init.initialize(net, init.Constant(2), init.Constant(3))
    for name, parameter in net.named_parameters():
        if name in ("2.bias_k", "2.bias_v"):
            assert report[name].reason == "torch's for MultiheadAttention"
        elif "bias" in name:
            assert parameter.unique().item() == 3, name
        elif name == "4.weight":
            assert parameter.sum(1).tolist() == [0, 6, 6, 6, 6]
        else:
            assert parameter.unique().item() == 2, name


class Custom(torch_nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch_nn.Parameter(torch.full((3, 3), 7.0))
        self.bias = torch_nn.Parameter(torch.full((3,), 7.0))
        self.position = torch_nn.Parameter(torch.full((1, 3), 7.0))


def test_other_parameters_do_not_change_and_are_reported():
    net = Custom()
    report = init.initialize(net, "ones")
    assert net.weight.unique().item() == 1
    assert not net.bias.any()
    assert net.position.unique().item() == 7
    assert report["position"].initializer is None
    assert "not changed" in str(report)
    init.initialize(net, overrides={"position": "normal"})
    assert net.position.unique().numel() == 3


def test_a_scale_called_weight_and_a_parametrised_weight_do_not_change():
    scale = torch_nn.Module()
    scale.weight = torch_nn.Parameter(torch.full((3,), 7.0))
    normed = torch_nn.utils.parametrizations.weight_norm(torch_nn.Linear(3, 3))
    net = torch_nn.ModuleList([scale, normed])
    before = values(net)
    init.initialize(net)
    changed = {name for name, value in values(net).items() if not torch.equal(value, before[name])}
    assert changed == {"1.bias"}


def test_any_module_can_have_its_own_initialisers():
    net = Custom()
    net.own_initializers = {"position": "zeros", "weight": init.Constant(5)}
    report = init.initialize(net)
    assert not net.position.any()
    assert net.weight.unique().item() == 5
    assert report["position"].reason == "Custom's own"


def test_own_initialisers_must_be_for_existing_parameters():
    net = Custom()
    net.own_initializers = {"positoin": "zeros"}
    with pytest.raises(
        ValueError, match=r"own_initializers of Custom: got 'positoin', which is no parameter; did you mean 'position'"
    ):
        init.initialize(net)


@pytest.mark.parametrize(
    "change",
    [torch_nn.utils.parametrizations.weight_norm, lambda layer: prune.random_unstructured(layer, "weight", 1)],
)
def test_a_weight_that_was_parametrised_or_pruned_later_does_not_change(change):
    layer = change(nn.Linear(3, 4, weight_init="ones", bias_init="ones"))
    before = values(layer)
    layer.reset_parameters()
    init.initialize(layer, "zeros", "zeros")
    assert same(values(layer), before)


def test_shared_parameters_are_filled_once_and_matched_by_every_name():
    net = torch_nn.ModuleDict({"embedding": torch_nn.Embedding(5, 3), "head": torch_nn.Linear(3, 5)})
    net["head"].weight = net["embedding"].weight
    report = init.initialize(net, "zeros", overrides={"head.weight": "ones"})
    assert net["embedding"].weight.unique().item() == 1
    assert [row.name for row in report] == ["embedding.weight", "head.bias"]


def lazy_nets():
    yield torch_nn.Sequential(
        torch_nn.LazyConv2d(4, 3), torch_nn.LazyBatchNorm2d(), torch_nn.Flatten(), torch_nn.LazyLinear(5)
    )
    yield torch_nn.Sequential(nn.Conv2d(None, 4, 3), nn.BatchNorm2d(None), torch_nn.Flatten(), nn.Linear(None, 5))
    yield torch_nn.Sequential(
        nn.Conv2d(None, 4, 3), nn.BatchNorm2d(None), torch_nn.Flatten(), nn.Linear(None, 5, bias_init="zeros")
    )


@pytest.mark.parametrize("how", ["run", "copy", "pickle", "compile"])
@pytest.mark.parametrize("which", range(3))
def test_lazy_layers_get_the_same_values_when_they_materialise(which, how):
    batch = torch.randn(2, 3, 5, 5)
    ready = torch_nn.Sequential(
        torch_nn.Conv2d(3, 4, 3), torch_nn.BatchNorm2d(4), torch_nn.Flatten(), torch_nn.Linear(36, 5)
    )
    init.initialize(ready, "kaiming_normal", seed=4)
    net = list(lazy_nets())[which]
    report = init.initialize(net, "kaiming_normal", seed=4)
    assert all(row.shape is None for row in report)
    assert "lazy" in str(report)
    if how == "copy":
        if which == 0:
            pytest.skip("torch's own lazy norms can't be copied")
        net = copy.deepcopy(net)
    elif how == "pickle":
        if which == 0:
            pytest.skip("torch's own lazy norms can't be pickled")
        net = pickle.loads(pickle.dumps(net))
    run = torch.compile(net, backend="eager") if how == "compile" else net
    assert torch.equal(run.eval()(batch), ready.eval()(batch))
    assert same(values(net), values(ready))
    assert {type(layer) for layer in net} == {type(layer) for layer in ready}


def test_a_lazy_layer_that_loaded_its_values_keeps_them():
    ready = torch_nn.Sequential(torch_nn.Linear(3, 4))
    net = torch_nn.Sequential(nn.Linear(None, 4))
    init.initialize(net, "zeros", seed=0)
    net.load_state_dict(ready.state_dict())
    net(torch.randn(2, 3))
    assert same(values(net), values(ready))
    assert net[0].in_features == 3


def test_a_lazy_layer_keeps_its_own_initialiser_after_the_plan():
    layer = nn.Linear(None, 4, weight_init="ones")
    init.initialize(layer, overrides={"weight": "zeros"})
    layer(torch.randn(2, 3))
    assert not layer.weight.any()
    layer.reset_parameters()
    assert layer.weight.unique().item() == 1


def test_the_meta_device():
    ready, net = resnet18(), None
    with torch.device("meta"):
        net = resnet18()
    init.initialize(ready, seed=5)
    init.initialize(net, seed=5)
    assert same(values(net), values(ready))
    with torch.device("meta"):
        net = resnet18()
    net.to_empty(device="cpu")
    init.initialize(net, seed=5)
    assert same(values(net), values(ready))


def test_sharing_survives_the_meta_device():
    net = torch_nn.ModuleDict({"embedding": torch_nn.Embedding(5, 3), "head": torch_nn.Linear(3, 5)})
    net["head"].weight = net["embedding"].weight
    net.to("meta")
    net["head"].weight = net["embedding"].weight
    init.initialize(net, "ones")
    assert net["head"].weight is net["embedding"].weight
    assert net["head"].weight.unique().item() == 1


def test_parameters_without_values_after_the_meta_device_are_refused():
    net = Custom().to("meta")
    with pytest.raises(ValueError, match="position would have no values after the meta device"):
        init.initialize(net)
    assert net.weight.is_meta
    init.initialize(net, overrides={"position": "zeros"})
    assert not net.position.any()
    other = torch_nn.Linear(2, 2)
    other.register_buffer("mask", torch.ones(2))
    with pytest.raises(ValueError, match="mask would have no values"):
        init.initialize(other.to("meta"))
    with pytest.raises(ValueError, match="weight, bias is lazy and on the meta device"):
        init.initialize(nn.Linear(None, 2, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"weight": "xavier_unifrm"}, ValueError, "weight: got 'xavier_unifrm'; did you mean 'xavier_uniform'"),
        ({"bias": 3}, TypeError, "bias: got 3"),
        ({"overrides": ["0.*"]}, TypeError, "overrides: got list"),
        ({"overrides": {"0.wieght": "ones"}}, ValueError, "'0.wieght' matches no parameter; did you mean '0.weight'"),
        ({"overrides": {"0.*": "one"}}, ValueError, r"overrides\['0.\*'\]: got 'one'; did you mean 'ones'"),
        ({"overrides": {"0.*": "orthogonal"}}, ValueError, r"0.bias \(pattern '0.\*'\): Orthogonal.* can't fill"),
        ({"bias": "xavier_uniform"}, ValueError, r"0.bias \(global bias\): XavierUniform"),
        ({"weight": "identity"}, ValueError, r"0.weight \(global weight\): Identity"),
        ({"seed": 1.5}, ValueError, "seed: got 1.5"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(arguments, error, says):
    net = small()
    before = values(net)
    with pytest.raises(error, match=says):
        init.initialize(net, **arguments)
    assert same(values(net), before)


def test_net_must_be_a_module():
    with pytest.raises(TypeError, match="net: got list"):
        init.initialize([])


def test_the_report_names_the_closest_parameter():
    with pytest.raises(KeyError, match=r"did you mean '0\.weight'"):
        init.initialize(small())["0.wight"]
