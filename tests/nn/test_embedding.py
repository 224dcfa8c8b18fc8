import pytest
import torch

from mxtorch import init, nn


def test_initialiser_padding_and_activation():
    layer = nn.Embedding(5, 3, padding_idx=1, weight_init=init.Constant(-2))
    assert layer.weight.sum(1).tolist() == [-6, 0, -6, -6, -6]
    layer = nn.Embedding(5, 3, weight_init=init.Constant(-2), activation="relu")
    assert not layer(torch.tensor([0, 1])).any()


def test_from_pretrained():
    weight = torch.randn(5, 3)
    layer = nn.Embedding.from_pretrained(weight)
    assert torch.equal(layer.weight, weight)
    assert not layer.weight.requires_grad
    with pytest.raises(ValueError, match="weight_init: got an initialiser and a weight"):
        nn.Embedding(5, 3, _weight=weight, weight_init="zeros")
