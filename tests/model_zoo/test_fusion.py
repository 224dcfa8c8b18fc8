from __future__ import annotations

import pytest
import torch
from torch import nn

import model_zoo


def lively(net):
    """Give a network unusual statistics, because those of a new network would hide errors."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet50", 0), ("efficientnet_lite0", 0), ("densenet121", 62), ("mobilenetv3_large", 0), ("vgg11_bn", 0)],
)
def test_fused_networks_agree(name, left):
    net = lively(model_zoo.create(name, num_classes=10))
    keys, head = list(net.state_dict()), net.fc
    fused = model_zoo.fuse(net)
    pictures = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = net(pictures)
        assert torch.allclose(fused(pictures), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert norms(fused) == left
    assert (list(net.state_dict()), net.fc) == (keys, head)
    assert norms(net) > left


def test_a_convolution_whose_output_has_another_use_is_not_folded():
    net = lively(model_zoo.resnet18(num_classes=2))

    class Peek(nn.Module):
        """Returns the output of the first convolution together with its own output."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, maps):
            return self.inner(maps) + 0 * maps

    net.bn1 = Peek(net.bn1)
    assert norms(model_zoo.fuse(net)) == 1


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_in_other_precisions(name, kind, tolerance):
    net = lively(model_zoo.create(name, num_classes=10)).to(kind)
    fused = model_zoo.fuse(net)
    assert norms(fused) == 0
    assert {parameter.dtype for parameter in fused.parameters()} == {kind}
    pictures = torch.randn(2, 3, 64, 64, dtype=kind)
    with torch.no_grad():
        expected = net(pictures)
        assert float((fused(pictures) - expected).abs().max() / expected.abs().max()) < tolerance
