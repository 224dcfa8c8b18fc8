"""Networks that depend on the order of elements in memory train as with plain torch."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mxtorch import ScheduledOptim, Trainer


class Tail(nn.Module):
    """Convolution, normalisation, dropout; a subclass says what follows."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3))
        self.fc = nn.Linear(4 * 6 * 6, 2)

    def forward(self, pictures):
        return self.fc(self.body(pictures).flatten(1))


class ViewAfterConvolution(Tail):
    def forward(self, pictures):
        maps = self.body(pictures)
        return self.fc(maps.view(maps.size(0), -1))


class ViewOfTheInput(Tail):
    def forward(self, pictures):
        scale = pictures.view(pictures.size(0), -1).mean(1)
        return super().forward(pictures) * scale[:, None]


class ViewOfAParameter(Tail):
    def forward(self, pictures):
        kernels = self.body[0].weight
        return super().forward(pictures) + kernels.view(kernels.size(0), -1).std(1).sum()


class ViewAfterTransposedConvolution(Tail):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 1)

    def forward(self, pictures):
        maps = self.up(self.body(pictures))
        return self.fc(maps.view(maps.size(0), -1))


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return maps.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(gradient.size(0), -1).view(gradient.shape)


class ViewInBackward(Tail):
    def forward(self, pictures):
        maps = self.body[0](pictures)
        return self.fc(self.body[2](self.body[1](_Contiguous.apply(maps))).flatten(1))


class AssertsContiguous(Tail):
    def forward(self, pictures):
        maps = self.body(pictures)
        assert maps.is_contiguous(), "a kernel of one's own"
        return self.fc(maps.flatten(1))


class ViewInEvaluation(Tail):
    def forward(self, pictures):
        maps = self.body(pictures)
        return self.fc(maps.flatten(1) if self.training else maps.view(maps.size(0), -1))


class ViewOnceTrained(Tail):
    """Fails in the middle of a run, where the first batches worked."""

    steps = 0

    def forward(self, pictures):
        maps = self.body(pictures)
        self.steps += self.training
        return self.fc(maps.flatten(1) if self.steps < 3 else maps.view(maps.size(0), -1))


class TwoAndThreeDimensions(Tail):
    def __init__(self):
        super().__init__()
        self.volume = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, pictures):
        return super().forward(self.volume(pictures[:, None])[:, 0])


FALLS_BACK = [
    ViewAfterConvolution, ViewOfTheInput, ViewOfAParameter, ViewAfterTransposedConvolution, ViewInBackward,
    AssertsContiguous, ViewInEvaluation,
]  # fmt: skip
STAYS = [Tail, TwoAndThreeDimensions]


@pytest.fixture
def batches():
    return [(torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 0, 1])) for _ in range(6)]


def trained(net, batches, make, **options):
    """The figures and weights of a run, and its trainer."""
    torch.manual_seed(1)
    trainer = make(copy.deepcopy(net), **options)
    trainer.model(batches[0][0])
    history = trainer.fit(batches, batches, epochs=2)
    figures = history["train/loss"], history["val/loss"], trainer.predict(batches).tolist()
    return figures, trainer.model.state_dict(), trainer


@pytest.mark.parametrize("kind", FALLS_BACK)
def test_a_network_that_can_not_take_the_format_trains_as_without(kind, batches, make, caplog):
    net = kind()
    if kind is ViewInEvaluation:
        net.body[2].p = 0.0  # dropout draws in the order of elements in memory, and this one trains in channels-last
    expected, weights, _ = trained(net, batches, make, channels_last=False)
    with caplog.at_level(logging.WARNING, "mxtorch"):
        figures, found, trainer = trained(net, batches, make)
    if kind is ViewInEvaluation:
        assert figures[1] == pytest.approx(expected[1], rel=1e-4)
    else:
        assert figures == expected
        assert all(torch.equal(weights[name], tensor) for name, tensor in found.items())
    assert trainer.engine.memory_format is None
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert len(caplog.records) == 1
    assert "channels_last=False" in caplog.text


@pytest.mark.parametrize("kind", STAYS)
def test_a_network_that_can_take_the_format_keeps_it(kind, batches, make, caplog):
    net = kind()
    net.body[2].p = 0.0  # dropout draws in the order of elements in memory
    expected, _, _ = trained(net, batches, make, channels_last=False)
    figures, _, trainer = trained(net, batches, make)
    for ours, theirs in zip(figures[:2], expected[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert trainer.engine.memory_format is torch.channels_last
    assert not caplog.records


@pytest.mark.parametrize("use", ["evaluate", "predict", "find_lr", "optimizer_step"])
def test_every_use_falls_back(use, batches, make):
    trainer = make(ViewAfterConvolution())
    if use == "find_lr":
        trainer.find_lr(batches, num_steps=20)
    elif use == "optimizer_step":
        from mxtorch.training.data import window_of

        trainer.optimizer_step(window_of(batches[:1]))
    else:
        getattr(trainer, use)(batches)
    assert trainer.engine.memory_format is None
    trainer.fit(batches)


@pytest.mark.parametrize(
    "options", [{"accumulate": 3}, {"precision": "bf16"}, {"compile": {"backend": "eager"}}, {"on_nonfinite": "skip"}]
)
def test_with_other_settings(options, batches, make):
    trainer = make(ViewAfterConvolution(), **options)
    trainer.fit(batches, batches)
    assert trainer.engine.memory_format is None


def test_with_lbfgs(batches):
    net = ViewAfterConvolution().eval()
    Trainer(net, nn.CrossEntropyLoss(), torch.optim.LBFGS(net.parameters()), device="cpu", progress=False).fit(batches)


def test_a_later_batch_is_repeated(batches, make, caplog):
    trainer = make(ViewOnceTrained())
    trainer.fit(batches)
    assert trainer.step == 6
    assert trainer.engine.memory_format is None
    assert len(caplog.records) == 1


def test_other_optimizers_step_once(batches):
    """What a step did before it failed is undone."""

    class TwoPlayers(Trainer):
        def training_step(self, batch):
            inputs, targets = batch
            other = self.other_optimizers["other"]
            other.zero_grad()
            self.other_player(inputs).square().mean().backward()
            other.step()
            return self.loss(self.model(inputs), targets)

    def weights(**options):
        torch.manual_seed(2)
        net, player = ViewAfterConvolution(), nn.Conv2d(3, 1, 1)
        other = ScheduledOptim(torch.optim.SGD(player.parameters(), lr=0.1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        options |= {"device": "cpu", "progress": False, "other_optimizers": {"other": other}}
        trainer = TwoPlayers(net, F.cross_entropy, optimizer, **options)
        trainer.other_player = player
        trainer.fit(batches)
        return other.current_steps, player.weight

    found, expected = weights(), weights(channels_last=False)
    assert found[0] == expected[0] == len(batches)
    assert torch.equal(found[1], expected[1])


def test_a_format_that_the_user_chose_is_an_error(batches, make):
    trainer = make(ViewAfterConvolution(), channels_last=True)
    for use in (trainer.fit, trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=r"channels_last: got True, but the network can't take .* Give 'auto'"):
            use(batches)


def test_a_bad_batch_says_nothing_of_the_format(batches, make, caplog):
    """And the format is not given up for it."""
    trainer = make(Tail())
    for use in (trainer.fit, trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="could not take the first batch"):
            use([(torch.randn(4, 1, 6, 6), torch.zeros(4).long())])
    assert not caplog.records
    trainer.fit(batches)
    assert trainer.engine.memory_format is torch.channels_last


def test_a_buffer_that_is_a_view_of_a_parameter_stays_one(batches, make):
    net = Tail()
    net.register_buffer("kernels", net.body[0].weight.data[:2])
    make(net).fit(batches)
    assert torch.equal(net.kernels, net.body[0].weight[:2])
    assert not torch.equal(net.kernels, Tail().body[0].weight[:2])


def test_a_buffer_without_gradients_of_its_own(batches, make):
    """Tensors of inference mode can't be changed, and need not be."""
    net = Tail()
    with torch.inference_mode():
        net.register_buffer("table", torch.ones(1, 1, 2, 2), persistent=False)
    make(net, channels_last=True)
