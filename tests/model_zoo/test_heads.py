from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import model_zoo


def test_a_linear_head_on_a_convolutional_network_is_trained():
    net = model_zoo.squeezenet1_1(num_classes=3).eval()
    head = nn.Linear(net.fc.in_features, 4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    net.fc = head
    pictures = torch.randn(2, 3, 64, 64)
    maps = net.features(pictures)
    expected = torch.relu(torch.einsum("nchw,kc->nkhw", maps, head.weight) + head.bias[:, None, None]).mean((2, 3))
    assert torch.allclose(net(pictures), expected, atol=1e-6)
    before = head.weight.detach().clone()
    net(pictures).sum().backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)


@pytest.mark.parametrize("head", [nn.Sequential(nn.Dropout(0.0), nn.Linear(832, 6)), nn.Conv2d(832, 6, 1)])
def test_other_heads_on_a_convolutional_network(head):
    net = model_zoo.dpn68(num_classes=3).eval()
    pictures = torch.randn(1, 3, 64, 64)
    net.fc = head
    assert net(pictures).shape == (1, 6)
    net.fc = nn.Linear(832, 2)
    assert net(pictures).shape == (1, 2)
    vectors = torch.randn(5, 832)
    assert isinstance(head, nn.Conv2d) or head(vectors).shape == (5, 6), "a head taken off is as it was"


def test_copies_and_compiled_networks_keep_the_head():
    for name, width in (("efficientnet_lite0", 1280), ("squeezenet1_1", 512), ("resnet10t", 512)):
        net = model_zoo.create(name, num_classes=3).eval()
        net.fc = nn.Linear(width, 3)
        picture = torch.randn(1, 3, 64, 64)
        expected = net(picture)
        for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
            assert torch.equal(twin(picture), expected)
            twin.fc = nn.Linear(width, 4)
            assert twin(picture).shape == (1, 4)
            assert twin.num_classes == 4
            assert (net.fc.out_features, twin.zoo_name) == (3, name)
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(picture), expected)


def test_a_head_that_is_no_module_is_refused():
    net = model_zoo.efficientnet_lite0()
    before = net.fc
    with pytest.raises(TypeError, match=r"nn\.Linear\(1280"):
        net.fc = 5
    assert net.fc is before


def test_class_names_belong_to_their_head():
    net = model_zoo.efficientnet_lite0(pretrained=True)
    assert (len(net.classes), net.classes[0]) == (1000, "tench")
    net.fc = nn.Linear(1280, 2)
    assert net.classes is None
    net.classes = ["ant", "bee"]
    assert copy.deepcopy(net).classes == ["ant", "bee"]
    assert model_zoo.efficientnet_lite0(pretrained=True, num_classes=5).classes is None
    assert model_zoo.efficientnet_lite0().classes is None
