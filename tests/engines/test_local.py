from __future__ import annotations

import pytest
import torch
from torch import nn

from mxtorch import Trainer
from mxtorch.engines import Engine, LocalEngine


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(net, loader, precision, make):
    history = make(net, precision=precision).fit(loader, epochs=4)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_channels_last_for_convolutions(two_moons, make):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    seen = []

    class Watching(Trainer):
        def training_step(self, batch):
            seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
            return super().training_step(batch)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Watching(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    trainer.fit([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))])
    assert seen == [True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert make(nn.Linear(8, 2)).engine.memory_format is None


def test_compile_keeps_names(loader, net, make):
    names = list(net.state_dict())
    make(net, compile={"backend": "eager"}).fit(loader)
    assert list(net.state_dict()) == names


def test_auto_chooses_an_available_device(make, net):
    trainer = make(net, device="auto")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert trainer.engine.device.type == expected


@pytest.mark.parametrize(
    ("device", "message"),
    [("cudda", "did you mean 'cuda'"), ("gpu", "There are: auto, cpu"), ("cuda:99", "CUDA devices"), (7.5, "device")],
)
def test_devices_that_are_not_available(make, net, device, message):
    with pytest.raises(ValueError, match=message):
        make(net, device=device)


def test_the_norm_is_of_all_gradients_together(make, two_moons):
    net = nn.Linear(8, 2)
    trainer = make(net, log_every=1)
    trainer.fit([two_moons.tensors])
    gradients = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
    assert trainer.history.records[0]["gradient_norm"] == pytest.approx(float(gradients.norm()), rel=1e-5)


def test_existing_optimizer_state_is_moved_to_the_device(make, net, loader):
    first = make(net)
    first.fit(loader)
    again = Trainer(net, nn.CrossEntropyLoss(), first.optimizer, device="cpu", progress=False)
    momentum = [entry["momentum_buffer"].clone() for entry in again.optimizer.state.values()]
    assert len(momentum) == 6
    assert all(float(buffer.abs().sum()) > 0 for buffer in momentum)


def test_parameters_that_were_added_later_are_clipped_too(make, two_moons):
    net = nn.Linear(8, 2)
    net.bias.requires_grad_(False)
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD([net.weight], lr=1.0),
        clip_grad_norm=0.01,
        device="cpu",
        progress=False,
    )
    net.bias.requires_grad_(True)
    trainer.optimizer.add_param_group({"params": [net.bias]})
    trainer.fit([two_moons.tensors])
    norm = torch.cat([net.weight.grad.flatten(), net.bias.grad]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_move_converts_images_to_the_memory_format():
    engine = LocalEngine("cpu", channels_last=True)
    engine.prepare(nn.Conv2d(3, 4, 3), None)
    moved = engine.move({"images": torch.ones(2, 3, 4, 4), "rows": torch.ones(3, 2), "name": "a"})
    assert moved["images"].is_contiguous(memory_format=torch.channels_last)
    assert (moved["rows"].shape, moved["name"]) == ((3, 2), "a")


def test_a_trainer_takes_any_engine_of_the_protocol(net, loader):
    class Counting(LocalEngine):
        asked = 0

        def agree_soon(self, flag):
            type(self).asked += 1
            return flag

    engine = Counting("cpu")
    assert isinstance(engine, Engine)
    trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), engine=engine, progress=False)
    trainer.fit(loader)
    assert trainer.engine is engine
    assert Counting.asked == trainer.step  # each step asks all processes once
    with pytest.raises(ValueError, match="engine: it was given together with precision"):
        Trainer(net, None, torch.optim.SGD(net.parameters(), 0.1), engine=engine, precision="bf16")
    with pytest.raises(TypeError, match=r"engine: got .*methods of mxtorch.engines.Engine"):
        Trainer(net, None, torch.optim.SGD(net.parameters(), 0.1), engine="ddp")
