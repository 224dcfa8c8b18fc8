from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.engines.nonfinite import mark_bad_gradients


class Spoilt(nn.Module):
    """Returns NaN for samples that start with 99, and has a NaN gradient for samples that start with -99."""

    def forward(self, inputs):
        bad = inputs[:, :1]
        outputs = torch.where(bad == 99, inputs * math.nan, inputs)
        return outputs + torch.where(bad == -99, (inputs - inputs.detach()).abs().sqrt(), torch.zeros(()))


def data(**bad):
    """Ten batches of four; `bad={batch: value}` sets a sample of a batch to a bad value."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 8, generator=generator)
    for batch, value in bad.get("bad", {}).items():
        inputs[4 * batch + 1, 0] = value
    return DataLoader(TensorDataset(inputs, torch.arange(40) % 2), 4)


def build(make, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(8), Spoilt(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].weight.requires_grad_(False)
    net[0] = nn.Identity()
    return make(net, **options)


def test_a_bad_loss_names_step_batch_and_layer(make):
    trainer = build(make)
    with pytest.raises(
        FloatingPointError,
        match=r"step 4 .*3 of the epoch\) is not finite: the loss is nan; .*layer is 1 \(Spoilt\)",
    ):
        trainer.fit(data(bad={3: 99}))
    assert trainer.step == 3


def test_a_bad_gradient_names_its_parameter_and_changes_no_weight(make):
    trainer = build(make)
    trainer.model[0] = nn.Linear(8, 8)
    nn.init.eye_(trainer.model[0].weight)
    nn.init.zeros_(trainer.model[0].bias)
    trainer.optimizer.add_param_group({"params": trainer.model[0].parameters(), "lr": 1e-12})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"step 1 .*its gradient is not; the first bad gradient.* is that of 0\.(weight|bias)"
    ):
        trainer.fit(data(bad={0: -99}))
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), before, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_bad_steps_are_skipped_and_counted(make, clip):
    """A run with skipped steps equals a run without those batches."""
    torch.manual_seed(1)

    def net():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    bad = data()
    inputs, labels = bad.dataset.tensors
    poisoned = inputs.clone()
    poisoned[13, 2] = math.nan
    poisoned[30, 0] = math.inf
    skipping = make(net(), on_nonfinite="skip", clip_grad_norm=clip)
    history = skipping.fit(DataLoader(TensorDataset(poisoned, labels), 4), schedule="constant")
    clean = make(net(), clip_grad_norm=clip)
    kept = [i for i in range(40) if i // 4 not in (3, 7)]
    expected = clean.fit(DataLoader(TensorDataset(inputs[kept], labels[kept]), 4), schedule="constant")
    for (name, a), b in zip(skipping.model.state_dict().items(), clean.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert skipping.skipped_steps == 2
    assert skipping.step == 10
    assert skipping.optimizer.current_steps == 8
    assert history["train/loss"] == expected["train/loss"]


class Root(nn.Module):
    """Its outputs are finite, and the gradient of its first weight, which is 0, is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return inputs * self.root.sqrt() + inputs * self.weight


@pytest.mark.parametrize("clips", [{}, {"clip_grad_value": 1.0}, {"clip_grad_value": 1.0, "clip_grad_norm": 1.0}])
@pytest.mark.parametrize("log_every", [1, 50])  # the norm is measured, or not
def test_an_infinite_gradient_is_found_before_it_is_clipped(make, clips, log_every):
    one = [(torch.ones(2, 1), torch.full((2, 1), 2.0))]
    trainer = make(Root(), nn.L1Loss(), log_every=log_every, **clips)
    with pytest.raises(FloatingPointError, match=r"is that of root.*whose derivative is infinite") as told:
        trainer.fit(one)
    assert "set clip_grad_norm" not in str(told.value)
    assert trainer.model.root == 0
    skipping = make(Root(), nn.L1Loss(), log_every=log_every, on_nonfinite="skip", **clips)
    skipping.fit(one, epochs=3)
    assert skipping.skipped_steps == 3
    assert (skipping.model.root, skipping.model.weight) == (0, 1)


@pytest.mark.parametrize("clips", [{"clip_grad_value": 0.01}, {"clip_grad_value": 0.01, "clip_grad_norm": 0.02}])
def test_looking_for_bad_gradients_changes_no_finite_ones(make, clips):
    def build_net():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    trainer = make(build_net(), **clips)
    trainer.fit(data(), schedule="constant", lr=0.1)
    net = build_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in data():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        nn.utils.clip_grad_value_(net.parameters(), clips["clip_grad_value"])
        if "clip_grad_norm" in clips:
            nn.utils.clip_grad_norm_(net.parameters(), clips["clip_grad_norm"])
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(trainer.model.parameters(), net.parameters(), strict=True))


def test_the_number_of_skips_in_a_row_is_limited(make):
    trainer = build(make, on_nonfinite="skip")
    with torch.no_grad():
        trainer.model[2].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"39 steps before it; the parameter 2\.weight was not finite"):
        trainer.fit(data(), epochs=10)


def test_the_error_names_the_batch_of_an_accumulated_step(make):
    trainer = build(make, accumulate=4)
    with pytest.raises(FloatingPointError, match=r"batches 4 to 7 of the epoch.*in batch 2 of the 4"):
        trainer.fit(data(bad={5: 99}))


def test_a_bad_loss_of_finite_outputs(make):
    trainer = make(nn.Linear(8, 2), lambda outputs, targets: (outputs.sum() - outputs.sum()).log())
    with pytest.raises(FloatingPointError, match="all layers' outputs are finite, the loss made of them is not"):
        trainer.fit(data())


def test_the_diagnosis_leaves_no_trace(make):
    trainer = build(make)
    trainer.fit(data())
    random = torch.get_rng_state()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 11 "):
        trainer.fit(data(bad={0: 99}))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert not any(module._forward_hooks for module in trainer.model.modules())
    del random


def test_rollback_continues_at_half_the_rate(make, tmp_path):
    class Diverging(Trainer):
        def training_step(self, batch):
            output = super().training_step(batch)
            if self.step == 5 and self.optimizer.learning_rate > 0.03:
                output = output._replace(loss=output.loss * math.inf)
            return output

    trainer = build(make, callbacks=[Checkpoint(tmp_path, every=2)], on_nonfinite="rollback")
    trainer.__class__ = Diverging
    with pytest.warns(UserWarning, match=r"step-00000004.ckpt, with the rate times 0\.(5|25)") as told:
        history = trainer.fit(data(), lr=0.1)
    assert len(told) == 2
    assert trainer.optimizer.base_learning_rate == pytest.approx(0.025)
    assert trainer.step == 10
    assert len(history) == 1


def test_the_number_of_rollbacks_is_limited(make, tmp_path):
    trainer = build(make, callbacks=[Checkpoint(tmp_path, every=2)], on_nonfinite="rollback")
    with pytest.warns(UserWarning, match="Rolled back"), pytest.raises(FloatingPointError, match="step 6 "):
        trainer.fit(data(bad={5: 99}))


@pytest.mark.parametrize("folders", [1, 2])
def test_rollback_takes_a_checkpoint_of_its_own_run(make, tmp_path, folders):
    """One of the call of fit before would end the run where that call ended, untrained."""

    class BadOnce(Trainer):
        bad_at = None

        def training_step(self, batch):
            output = super().training_step(batch)
            if self.step == self.bad_at:
                self.bad_at = None
                output = output._replace(loss=output.loss * math.nan)
            return output

    callbacks = [Checkpoint(tmp_path / str(number), every=(1000, 6)[number]) for number in range(folders)]
    trainer = build(make, callbacks=callbacks, on_nonfinite="rollback")
    trainer.__class__ = BadOnce
    trainer.fit(data(), epochs=2)
    trainer.bad_at = 21
    with pytest.raises(FloatingPointError, match=r"step 22 .*There is no checkpoint of this run yet.*every="):
        trainer.fit(data(), epochs=2)
    assert trainer.step == 21
    if folders == 2:  # the second folder, which saves more often, has one
        trainer.bad_at = 27
        with pytest.warns(UserWarning, match=r"step-00000024.ckpt"):
            trainer.fit(data(), epochs=2)
        assert trainer.step == 41


def test_rollback_needs_a_checkpoint(make, tmp_path):
    with pytest.raises(ValueError, match="needs a Checkpoint"):
        build(make, on_nonfinite="rollback").fit(data())
    with pytest.raises(ValueError, match="did you mean 'skip'"):
        build(make, on_nonfinite="skipp")


def test_gradients_of_every_kind_are_checked():
    found = torch.zeros(1)
    good = [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.complex64)]
    good.append(torch.sparse_coo_tensor([[0]], [1.0], (4,), check_invariants=True))
    mark_bad_gradients(good, found)
    assert not found
    for index in range(len(good)):
        bad = [gradient.clone() for gradient in good]
        bad[index] = bad[index] * math.inf
        found.zero_()
        mark_bad_gradients(bad, found)
        assert found


def on_accelerator(net, optimizer, **options):
    """A trainer that treats the CPU as an accelerator, whose numbers are not read in every step."""
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, log_every=4, **options)
    trainer.engine.asynchronous = True
    return trainer


OPTIMIZERS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "not fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "without state": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "counts in its groups": lambda parameters: CountingSGD(parameters, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("clips", [{"clip_grad_value": 1.0}, {"clip_grad_value": 1.0, "clip_grad_norm": 1.0}])
@pytest.mark.parametrize("name", ["fused", "not fused", "momentum"])
def test_on_an_accelerator_too_a_gradient_is_looked_at_before_it_is_clipped(name, clips):
    samples = DataLoader(TensorDataset(torch.ones(8, 1), torch.full((8, 1), 2.0)), 2)
    for policy in ("raise", "skip"):
        net = Root()
        trainer = on_accelerator(net, OPTIMIZERS[name](net.parameters()), on_nonfinite=policy, **clips)
        trainer.loss = nn.L1Loss()
        if policy == "skip":
            trainer.fit(samples)
            assert trainer.skipped_steps == 4
        else:
            words = "is that of root" if name == "fused" else "overwritten before the device was read"
            with pytest.raises(FloatingPointError, match=rf"step 1 .* its gradient is not.*{words}"):
                trainer.fit(samples)
        if policy == "skip" or name == "fused":
            assert (net.root, net.weight) == (0, 1)


class CountingSGD(torch.optim.SGD):
    """An optimizer that keeps a state that is no tensor, outside `state`."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_an_accelerator_skipped_steps_change_nothing(optimizer):
    def train(kept, **options):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        trainer = on_accelerator(net, OPTIMIZERS[optimizer](net.parameters()), **options)
        inputs, labels = data().dataset.tensors
        poisoned = inputs.clone()
        poisoned[[1, 17, 38], 2] = math.nan
        trainer.fit(DataLoader(TensorDataset(poisoned[kept], labels[kept]), 4), schedule="constant")
        return trainer

    skipping = train(range(40), on_nonfinite="skip")
    clean = train([index for index in range(40) if index // 4 not in (0, 4, 9)])
    for name, value in clean.model.state_dict().items():
        assert torch.equal(skipping.model.state_dict()[name], value), name
    assert skipping.skipped_steps == 3
    assert skipping.optimizer.current_steps == clean.optimizer.current_steps == 7
    assert [group.get("count") for group in skipping.optimizer.param_groups] == [
        group.get("count") for group in clean.optimizer.param_groups
    ]


def test_on_an_accelerator_a_fused_optimizer_keeps_the_weights_and_the_layer_is_named():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 8), Spoilt(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8)), net[0].bias.zero_()
    net[0].requires_grad_(False)
    trainer = on_accelerator(net, OPTIMIZERS["fused"](net[2].parameters()))
    with pytest.raises(
        FloatingPointError, match=r"step 4 .*3 of the epoch\) is not finite: the loss is nan; .*1 \(Spoilt\)"
    ):
        trainer.fit(data(bad={3: 99}))
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def spoil_the_gradient(module, inputs, outputs):
    if outputs.requires_grad and (inputs[0] == -99).any():
        outputs.register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("value", [math.nan, -99], ids=["a bad batch", "a bad gradient"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_bad_step_does_not_change_the_statistics_of_batch_normalisation(make, policy, value, accumulate):
    def statistics(**bad):
        torch.manual_seed(0)
        net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
        trainer = make(net, accumulate=accumulate, on_nonfinite=policy)
        whole = list(data(**bad))
        net[0].register_forward_hook(spoil_the_gradient)
        if not bad:
            trainer.fit(whole[: 2 * accumulate])
        elif policy == "raise":
            with pytest.raises(FloatingPointError):
                trainer.fit(whole)
        else:
            trainer.fit(whole[: 3 * accumulate])
        return trainer.step - trainer.skipped_steps, {
            name: value.clone() for name, value in net[0].state_dict().items()
        }

    steps, expected = statistics()
    bad_steps, found = statistics(bad={2 * accumulate + accumulate // 2: value})
    assert steps == bad_steps == 2
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
