"""Optimizers whose step computes loss and gradients itself, and steps without a loss."""

from __future__ import annotations

import copy

import pytest
import torch
import torchmetrics
from torch import nn

from mxtorch import Callback, StepOutput, Trainer, schedules
from mxtorch.callbacks import Checkpoint
from mxtorch.training.closures import needs_closure


class SAM(torch.optim.Optimizer):
    """The reference implementation (Foret et al. 2021), in which `closure=None` passes and fails in the step."""

    def __init__(self, params, lr=0.1, rho=0.05):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad * group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


class Required(SAM):
    """Says by its signature that it needs a closure."""

    first_step = second_step = None

    @torch.no_grad()
    def step(self, closure):
        for _ in range(2):
            with torch.enable_grad():
                closure()
            self.base.step()


OPTIMIZERS = {
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.5),
    "LBFGS with a line search": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
    "SAM": SAM,
    "a closure that is required": Required,
}


def batches(count=24, size=8):
    torch.manual_seed(3)
    inputs = torch.randn(count, 4)
    return list(zip(inputs.split(size), (inputs[:, 0] > 0).long().split(size), strict=True))


def trainer_with(make_optimizer, net=None, kind=Trainer, **options):
    torch.manual_seed(1)
    net = nn.Linear(4, 2) if net is None else net
    return kind(net, nn.CrossEntropyLoss(), make_optimizer(net.parameters()), device="cpu", progress=False, **options)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_train_and_are_measured(name, accumulate):
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=2)
    trainer = trainer_with(OPTIMIZERS[name], train_metrics={"accuracy": metric}, accumulate=accumulate)
    history = trainer.fit(batches(), epochs=8 * accumulate)
    assert history["train/loss"][-1] < 0.8 * history["train/loss"][0]
    assert history["train/accuracy"][-1] > 0.6
    assert "gradient_norm" in history.records[-1]
    assert trainer.optimizer.current_steps == trainer.step == 8 * 3


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [{"clip_grad_norm": 1e-9}, {"clip_grad_value": 1e-9}])
def test_clipping_holds(name, accumulate, clip):
    trainer = trainer_with(OPTIMIZERS[name], **clip, accumulate=accumulate)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.fit(batches())
    assert all((value - before[key]).abs().max() < 1e-6 for key, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_window_equals_one_large_batch(name):
    moved = []
    for size, accumulate in ((24, 1), (8, 3), (7, 4)):
        net = nn.Linear(4, 2).double()
        torch.nn.init.constant_(net.weight, 0.1)
        trainer = trainer_with(OPTIMIZERS[name], net, accumulate=accumulate)
        torch.nn.init.zeros_(net.bias)
        trainer.fit([(x.double(), y) for x, y in batches(24, size)])
        moved.append(net.weight.detach().clone())
    assert torch.allclose(moved[0], moved[1], rtol=1e-6)
    assert torch.allclose(moved[0], moved[2], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_sets_the_rate(name):
    trainer = trainer_with(OPTIMIZERS[name])
    trainer.fit(batches(), epochs=2, lr=0.2, schedule=schedules.CosineAnnealing())
    assert trainer.optimizer.learning_rate < 0.05


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fp16_is_refused(name):
    trainer = trainer_with(OPTIMIZERS[name], precision="fp16")
    before = trainer.model.weight.detach().clone()
    with pytest.raises(ValueError, match="precision: 'fp16' scales gradients"):
        trainer.fit(batches())
    assert torch.equal(before, trainer.model.weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_loss_names_the_step(name):
    trainer = trainer_with(OPTIMIZERS[name])
    data = batches()
    data[1][0].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 2 \(batch 1 of the epoch\) is not finite"):
        trainer.fit(data)


class Breaks(nn.Module):
    """A loss or gradient that is bad for chosen inputs in chosen computations, counted from each input's first."""

    def __init__(self, bad, computation, of_gradient):
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout(0.3)
        self.bad, self.computation, self.of_gradient = bad, computation, of_gradient
        self.seen = 0

    def forward(self, inputs):
        outputs = self.dropout(self.norm(self.layer(inputs)))
        if inputs[0, 0].item() not in self.bad:
            return outputs
        self.seen += 1
        if self.seen < self.computation:
            return outputs
        if not self.of_gradient:
            return outputs * float("nan")
        outputs.register_hook(lambda gradient: gradient * float("inf"))
        return outputs


SKIPPED = {
    **OPTIMIZERS,
    "SAM with momentum": lambda p: SAMWithMomentum(p),
    "LBFGS with a short memory": lambda p: torch.optim.LBFGS(p, lr=0.5, history_size=2, max_iter=4),
}


@pytest.mark.parametrize("of_gradient", [False, True])
@pytest.mark.parametrize("computation", [1, 2])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("name", SKIPPED)
def test_a_bad_step_is_undone_and_counted(name, place, computation, of_gradient):
    """The run is that of data without the bad batch, bit for bit."""

    def run(data, bad):
        torch.manual_seed(5)
        net = Breaks(bad, computation, of_gradient)
        metric = torchmetrics.Accuracy(task="multiclass", num_classes=2)
        trainer = trainer_with(SKIPPED[name], net, on_nonfinite="skip", train_metrics={"accuracy": metric})
        history = trainer.fit(data, lr=0.1, schedule="constant")
        return trainer, history

    data = batches(40)
    trainer, history = run(data, {data[place][0][0, 0].item()})
    expected, rows = run([batch for index, batch in enumerate(data) if index != place], set())
    assert trainer.skipped_steps == 1
    assert (trainer.step, trainer.optimizer.current_steps) == (5, 4)
    torch.testing.assert_close(trainer.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    state, others = (one.optimizer.optimizer.state_dict() for one in (trainer, expected))
    torch.testing.assert_close(state["state"], others["state"], rtol=0, atol=0)
    assert history["train/accuracy"] == rows["train/accuracy"]


def test_too_many_bad_steps_in_a_row_are_an_error():
    data = batches(8) * 60
    net = Breaks({data[0][0][0, 0].item()}, 1, of_gradient=False)
    trainer = trainer_with(SAM, net, on_nonfinite="skip")
    before = net.layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="39 steps before it"):
        trainer.fit(data)
    assert torch.equal(net.layer.weight, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_gradient_does_not_reach_the_weights_unseen(name):
    data = batches()
    net = Breaks({data[1][0][0, 0].item()}, 2, of_gradient=True)
    with pytest.raises(FloatingPointError, match=r"step 2 .*gradient is not, in computation 2 .*on_nonfinite='skip'"):
        trainer_with(OPTIMIZERS[name], net).fit(data)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"])
def test_other_optimizers_need_none(name):
    assert not needs_closure(getattr(torch.optim, name)(nn.Linear(1, 1).parameters(), lr=0.1))


# ---------------------------------------------------------------- steps without a loss


class Passes(Trainer):
    """Passes over the batches whose numbers are given."""

    over: tuple[int, ...] = ()
    calls = 0

    def training_step(self, batch):
        self.calls += 1
        return None if self.calls - 1 in self.over else super().training_step(batch)


def passing(over, make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), **options):
    trainer = trainer_with(make_optimizer, kind=Passes, **options)
    trainer.over = over
    return trainer


@pytest.mark.parametrize("over", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("name", ["SGD", *OPTIMIZERS])
def test_none_passes_over_a_batch(over, name):
    make_optimizer = OPTIMIZERS.get(name, lambda p: torch.optim.SGD(p, lr=0.1))
    trainer, other = passing(over, make_optimizer), passing((), make_optimizer)
    if name != "SGD":  # they compute a batch several times, so calls are no batches
        trainer.over = ()
        bad = {batches()[index][0][0, 0].item() for index in over}
        step = type(trainer).training_step
        trainer.training_step = lambda batch: None if batch[0][0, 0].item() in bad else step(trainer, batch)
    history = trainer.fit(batches())
    expected = other.fit([batch for index, batch in enumerate(batches()) if index not in over])
    assert (trainer.step, trainer.skipped_steps) == (3, len(over))
    assert trainer.optimizer.current_steps == 3 - len(over)
    assert history["train/loss"] == expected["train/loss"]
    assert torch.equal(trainer.model.weight, other.model.weight)


@pytest.mark.parametrize("over", [(0,), (1, 2), (0, 1, 2)])
def test_none_within_a_window(over):
    trainer, other = passing(over, accumulate=3), passing((), accumulate=3)
    rest = [batch for index, batch in enumerate(batches()) if index not in over]
    if not rest:
        with pytest.raises(ValueError, match="training_step: it returned None for every batch"):
            trainer.fit(batches())
        return
    assert trainer.fit(batches())["train/loss"] == [pytest.approx(other.fit(rest)["train/loss"][0], rel=1e-6)]
    assert torch.allclose(trainer.model.weight, other.model.weight, rtol=1e-6)
    assert trainer.skipped_steps == 0


def test_a_step_that_forgets_to_return_is_an_error():
    class Forgets(Trainer):
        def training_step(self, batch):
            self.loss(self.model(batch[0]), batch[1])

    trainer = trainer_with(lambda p: torch.optim.SGD(p, lr=0.1), kind=Forgets)
    before = trainer.model.weight.detach().clone()
    with pytest.raises(ValueError, match="training_step: it returned None for every batch"):
        trainer.fit(batches(), epochs=3)
    assert torch.equal(before, trainer.model.weight)


def test_a_step_output_without_a_loss_is_an_error():
    class Empty(Trainer):
        def training_step(self, batch):
            return StepOutput(None, self.model(batch[0]), batch[1])

    with pytest.raises(ValueError, match="as the loss"):
        trainer_with(lambda p: torch.optim.SGD(p, lr=0.1), kind=Empty).fit(batches())


@pytest.mark.parametrize("name", ["LBFGS", "SAM", "a closure that is required"])
def test_find_lr_searches_their_rate_and_changes_nothing(name):
    trainer = trainer_with(OPTIMIZERS[name])
    trainer.fit(batches()[:1])
    before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]))
    found = trainer.find_lr(batches(), epochs=4, num_steps=60)
    assert found.trials or found.status == "already_trained"
    after = trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


class SAMWithMomentum(SAM):
    """The optimizer within has a state of its own, which the outer one's state_dict does not know."""

    def __init__(self, params, lr=0.1, rho=0.05):
        super().__init__(params, lr, rho)
        self.base = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base.param_groups


RESUMED = OPTIMIZERS | {
    "SAM with momentum": SAMWithMomentum,
    "the reference SAM": lambda p: pytest.importorskip("pytorch_optimizer").SAM(
        p, torch.optim.SGD, lr=0.1, momentum=0.9
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_bit_for_bit(name, tmp_path):
    class Kill(Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                raise KeyboardInterrupt

    def run(folder, *more, resume=None):
        trainer = trainer_with(RESUMED[name], callbacks=[*more, Checkpoint(folder, every=1)])
        trainer.fit(batches(), epochs=2, schedule="cosine_annealing", resume=resume)
        return trainer.model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Kill())
    torch.testing.assert_close(run(tmp_path / "parts", resume="auto"), whole, rtol=0, atol=0)


def test_the_sam_of_a_library():
    library = pytest.importorskip("pytorch_optimizer")
    trainer = trainer_with(lambda p: library.SAM(p, torch.optim.SGD, lr=0.1, momentum=0.9))
    history = trainer.fit(batches(), epochs=8)
    assert history["train/loss"][-1] < 0.8 * history["train/loss"][0]
