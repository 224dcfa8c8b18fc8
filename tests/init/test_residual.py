import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from mxtorch import init


@pytest.mark.parametrize(("make", "block", "last"), [(resnet18, BasicBlock, "bn2"), (resnet50, "Bottleneck", "bn3")])
def test_the_last_norm_of_every_block_starts_at_zero(make, block, last):
    net = make()
    init.initialize(net, "kaiming_normal", overrides=init.last_norms(net, block))
    expected = make(zero_init_residual=True)
    zero = {name for name, parameter in net.named_parameters() if name.endswith("weight") and not parameter.any()}
    assert zero == {n for n, p in expected.named_parameters() if n.endswith("weight") and not p.any()}
    assert all(name.split(".")[-2] == last for name in zero)


def test_a_block_starts_as_the_identity():
    block = BasicBlock(4, 4)
    init.initialize(block, overrides=init.last_norms(block, BasicBlock))
    batch = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(batch), batch)


def test_errors():
    with pytest.raises(ValueError, match="'BasicBlok', which is not in the network; did you mean 'BasicBlock'"):
        init.last_norms(resnet18(), "BasicBlok")
    with pytest.raises(ValueError, match="got Linear, which has no norm"):
        init.last_norms(nn.Sequential(nn.Linear(2, 2)), nn.Linear)
    with pytest.raises(TypeError, match="block: got 3"):
        init.last_norms(resnet18(), 3)
    assert init.last_norms(resnet18(), (BasicBlock, Bottleneck))


def test_fixup_keeps_a_plain_residual_network_near_the_scale_of_its_input():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, batch):
            return batch + self.last(torch.relu(self.inner(batch)))

    net = nn.Sequential(*[Block() for _ in range(30)])
    batch = torch.randn(16, 64)
    init.initialize(net, init.Fixup(blocks=30), overrides={"*.last.weight": "zeros"})
    assert torch.equal(net(batch), batch)
    inner = torch.cat([block.inner.weight.flatten() for block in net])
    assert inner.std().item() == pytest.approx((2 / 64) ** 0.5 * 30**-0.5, rel=0.02)
