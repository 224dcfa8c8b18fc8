import pytest
import torch

from mxtorch import init, nn


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 5}])
def test_each_projection_is_a_matrix_of_its_own(sizes):
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
