import pickle

import pytest
import torch
from torch import nn

from mxtorch import init


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_initialisers_compare_hash_pickle_and_print():
    made = init.Normal(std=0.02)
    assert made == init.get("normal", std=0.02) != init.Normal()
    assert len({made, init.Normal(std=0.02)}) == 1
    assert pickle.loads(pickle.dumps(made)) == made
    assert repr(made) == "Normal(mean=0.0, std=0.02)"
    assert str(made) == "Normal(std=0.02)"


def test_a_generator_gives_the_same_values_whatever_else_was_drawn():
    first = init.XavierNormal()(torch.empty(5, 7), generator=generator())
    torch.rand(11)
    before = torch.get_rng_state()
    second = init.XavierNormal()(torch.empty(5, 7), generator=generator())
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["normal", "xavier_uniform", "kaiming_normal", "orthogonal", "default"])
def test_values_do_not_depend_on_the_memory_format(name):
    plain, last = torch.empty(8, 4, 3, 3), torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
    init.get(name)(plain, generator=generator())
    init.get(name)(last, generator=generator())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_it_fills_a_parameter_without_a_trace_in_the_graph():
    parameter = nn.Parameter(torch.empty(4, 4))
    assert init.Orthogonal()(parameter) is parameter
    assert parameter.grad_fn is None
    assert parameter.is_leaf


def test_meta_and_empty_tensors_do_not_change():
    assert init.Normal()(torch.empty(3, 3, device="meta")).is_meta
    assert init.XavierNormal()(torch.empty(0, 3)).shape == (0, 3)


def test_a_function_without_a_generator_argument_is_seeded_and_the_global_generator_restored():
    def fill(tensor):
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape))

    first = init.get(fill)(torch.empty(9), generator=generator(3))
    before = torch.get_rng_state()
    second = init.get(fill)(torch.empty(9), generator=generator(3))
    other = init.get(fill)(torch.empty(9), generator=generator(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_a_function_draws_from_the_global_one():
    torch.manual_seed(5)
    ours = init.get(lambda tensor: nn.init.normal_(tensor))(torch.empty(9))
    torch.manual_seed(5)
    assert torch.equal(ours, nn.init.normal_(torch.empty(9)))


def test_a_function_of_torch_gets_the_generator():
    ours = init.get(nn.init.xavier_uniform_)(torch.empty(6, 5), generator=generator())
    assert torch.equal(ours, nn.init.xavier_uniform_(torch.empty(6, 5), generator=generator()))


def test_the_padding_row_of_an_embedding_stays_zero():
    embedding = nn.Embedding(5, 3, padding_idx=2)
    init.Ones()(embedding.weight, place=init.Place(embedding, "weight"))
    assert embedding.weight.sum(1).tolist() == [3, 3, 0, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_orthogonal_in_half_precision(dtype):
    weight = init.Orthogonal()(torch.empty(8, 8, dtype=dtype)).float()
    assert torch.allclose(weight @ weight.T, torch.eye(8), atol=0.05)
