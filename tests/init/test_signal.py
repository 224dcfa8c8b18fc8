import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mxtorch import init


def plain_mlp(activation, depth=50, width=64):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def circles(samples=256, width=64):
    """Points around two centres in a space of many dimensions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (samples,), generator=generator)
    centres = torch.randn(10, width, generator=generator)
    return centres[labels] + 0.3 * torch.randn(samples, width, generator=generator), labels


def loss_after_training(net, steps=100):
    inputs, labels = circles()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return min(losses[-20:])  # the loss of such a deep network without shortcuts has spikes


@pytest.mark.parametrize(("activation", "initializer"), [(nn.Tanh, init.Orthogonal(1.1)), (nn.ReLU, "kaiming_normal")])
def test_fifty_plain_layers_train_only_with_the_right_initialiser(activation, initializer):
    net = plain_mlp(activation)
    batch = circles()
    before = init.check(net, batch, nn.functional.cross_entropy)
    assert before.status == "vanishing"
    assert before.rows[0].gradient_mark == "vanishing"
    assert loss_after_training(net) > 0.95 * math.log(10)
    init.initialize(net, initializer, seed=0)
    after = init.check(net, batch, nn.functional.cross_entropy)
    assert after.status == "ok", after
    assert loss_after_training(net) < 0.4 * math.log(10)


def test_exploding_and_not_finite():
    net = plain_mlp(nn.ReLU, depth=20)
    init.initialize(net, init.Normal(std=0.5), seed=0)
    signal = init.check(net, torch.randn(8, 64))
    assert signal.status == "exploding"
    assert "gradient exploding" in str(signal)
    init.initialize(net, init.Normal(std=1e30), seed=0)
    assert init.check(net, torch.randn(8, 64)).status == "not finite"


def test_the_figures_equal_those_of_one_manual_pass():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    batch, targets = torch.randn(5, 3), torch.randn(5, 2)
    signal = init.check(net, (batch, targets), nn.functional.mse_loss)
    hidden = net[0](batch)
    output = net[2](net[1](hidden))
    gradients = torch.autograd.grad(
        nn.functional.mse_loss(output, targets), [hidden, output, net[0].weight, net[0].bias]
    )
    first, last = signal
    assert (first.name, first.kind, last.name) == ("0", "Linear", "2")
    assert first.activation == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert first.gradient == pytest.approx(gradients[0].norm().item(), rel=1e-5)
    assert last.gradient == pytest.approx(gradients[1].norm().item(), rel=1e-5)
    assert first.weight_gradient == pytest.approx(
        torch.cat([g.flatten() for g in gradients[2:]]).norm().item(), rel=1e-5
    )


def test_check_changes_nothing():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 2))
    net[0].weight.grad = torch.ones(8, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    init.check(net, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net[0].weight.grad.unique().item() == 1
    assert all(parameter.grad is None for parameter in net[1:].parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_removed_if_the_network_fails():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 8))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        init.check(net, torch.randn(2, 4))
    assert not any(module._forward_hooks for module in net.modules())


def test_frozen_layers_have_no_gradient_and_no_mark():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    first, last = init.check(net, torch.randn(2, 4))
    assert math.isnan(first.gradient)
    assert math.isnan(first.weight_gradient)
    assert (first.gradient_mark, last.gradient_mark) == ("", "")


def test_recurrent_mappings_and_blocks_that_start_at_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(9, 4), nn.LSTM(4, 5)

        def forward(self, tokens):
            return {"states": self.lstm(self.embedding(tokens))[0], "tokens": tokens}

    signal = init.check(Net(), {"tokens": torch.randint(9, (3, 2))})
    assert [row.name for row in signal] == ["embedding", "lstm"]
    assert signal.status == "ok"
    net = resnet18(zero_init_residual=True)
    assert init.check(net, torch.randn(2, 3, 64, 64)).status == "ok"


def test_the_picture_and_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = plain_mlp(nn.Tanh, depth=12)
    with SummaryWriter(str(tmp_path)) as writer:
        signal = init.check(net, torch.randn(4, 64), writer=writer, step=7)
    axes = signal.plot().axes[0]
    assert axes.get_yscale() == "log"
    assert list(axes.get_lines()[0].get_ydata()) == [row.activation for row in signal]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["init/signal"]
    assert events.Images("init/signal")[0].step == 7


@pytest.mark.parametrize(
    ("net", "batch", "loss", "error", "says"),
    [
        (3, torch.zeros(2, 3), None, TypeError, "net: got int"),
        (nn.Linear(3, 2), torch.zeros(2, 3), 3, TypeError, "loss: got 3"),
        (nn.Linear(3, 2), torch.zeros(2, 3), nn.MSELoss(), ValueError, "batch: got Tensor with a loss"),
        (nn.LazyLinear(2), torch.zeros(2, 3), None, ValueError, "weight has no values yet"),
        (nn.Linear(3, 2, device="meta"), torch.zeros(2, 3), None, ValueError, "weight has no values yet"),
        (nn.ReLU(), torch.zeros(2, 3), None, ValueError, "no parameter requires a gradient"),
        (
            nn.Linear(3, 2).requires_grad_(False),
            torch.zeros(2, 3),
            None,
            ValueError,
            "no parameter requires a gradient",
        ),
    ],
)
def test_bad_arguments(net, batch, loss, error, says):
    with pytest.raises(error, match=says):
        init.check(net, batch, loss)
