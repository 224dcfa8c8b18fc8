"""The promise of find_lr: `find_lr(); fit()` equals `fit()`, bit for bit."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mxtorch import ScheduledOptim, Trainer
from mxtorch.checkpointing.random_state import random_state, seed_everything, set_random_state


class Augmented(Dataset):
    """Samples with noise from each of the three global generators, as in random augmentation."""

    def __init__(self, count=96):
        self.inputs = torch.arange(count * 8, dtype=torch.float32).reshape(count, 8).sin()
        self.own = np.random.default_rng(7)
        self.uses_own = False

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        noise += self.own.random() if self.uses_own else 0.0
        return self.inputs[index] + 0.01 * noise, int(self.inputs[index].sum() > 0)


class Counting(nn.Module):
    """A module with state besides parameters: a counter, a replaced buffer, a tensor attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.calls = 0
        self.last = torch.zeros(1)
        self.seen = {"losses": [], "means": {}}
        self.seen["itself"] = self.seen
        self.recent = deque([0.0], maxlen=3)
        self.counts = np.zeros(2)
        self.noise = torch.Generator().manual_seed(2)

    def forward(self, inputs):
        self.calls += 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
            self.last.copy_(inputs.detach().mean())
            self.seen["losses"].append(float(self.last))
            self.seen["means"].setdefault("first", self.last.clone()).mul_(0.9)
            self.recent.append(float(self.last))
            self.counts += 1
        kept = sum(self.seen["losses"][-2:]) + sum(self.recent) + float(self.counts.sum())
        noise = torch.rand((), generator=self.noise)
        return inputs - self.mean + 1e-3 * (self.calls + kept + noise) + self.last


def make(kind, *, precision="fp32", accumulate=1, rate=0.05):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), Counting(), nn.Linear(16, 2))
    groups = [{"params": net[0].parameters(), "lr": rate}, {"params": net[1:].parameters(), "lr": rate / 10}]
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    return Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(kind(groups, **settings)),
        precision=precision,
        accumulate=accumulate,
        device="cpu",
        progress=False,
    )


def make_loader(**settings):
    return DataLoader(Augmented(), batch_size=16, shuffle=True, **settings)


def everything(trainer):
    """All numbers after training, as one list of tensors."""
    values = [tensor.clone() for tensor in trainer.model.state_dict().values()]
    counting = trainer.model[4]
    values += [torch.tensor(counting.calls), counting.last.clone(), counting.seen["means"]["first"].clone()]
    values += [torch.tensor(counting.seen["losses"]), torch.tensor(counting.recent), torch.from_numpy(counting.counts)]
    for entry in trainer.optimizer.state.values():
        values += [value.clone() for value in entry.values() if isinstance(value, torch.Tensor)]
    values += [torch.tensor(trainer.optimizer.learning_rates), torch.tensor(trainer.optimizer.current_steps)]
    values += [torch.get_rng_state(), torch.tensor(random.random()), torch.tensor(np.random.rand())]
    if trainer.engine.precision == "fp16":
        values.append(torch.tensor(trainer.engine.state_dict()["scale"]))
    return values


def run(trainer, loader, *, sweep, before=None, **fit):
    """Train; if `sweep` is given, run it before training."""
    seed_everything(5)
    if before is not None:
        before(trainer, loader)
    if sweep is not None:
        sweep(trainer, loader)
    trainer.fit(loader, epochs=2, **fit)
    return everything(trainer)


def assert_same(first, second):
    assert len(first) == len(second)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"value {index} differs"


def find(trainer, loader):
    found = trainer.find_lr(loader, method="sweep", start_lr=1e-4, end_lr=1, num_steps=12)
    assert len(found.losses) >= 5


def find_by_trials(trainer, loader):
    found = trainer.find_lr(loader, loader, schedule="one_cycle", training_steps=12, num_steps=36)
    assert len(found.trials) >= 5


def interrupted(error, search=find):
    def sweep(trainer, loader):
        step, calls = trainer.training_step, []

        def failing(batch):
            calls.append(1)
            if len(calls) == 7:
                raise error
            return step(batch)

        trainer.training_step = failing
        with pytest.raises(type(error)):
            search(trainer, loader)
        del trainer.training_step

    return sweep


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize(
    "sweep",
    [
        find,
        find_by_trials,
        interrupted(OSError("lost")),
        interrupted(KeyboardInterrupt()),
        interrupted(KeyboardInterrupt(), find_by_trials),
    ],
    ids=["whole", "trials", "error", "ctrl-c", "ctrl-c in trials"],
)
def test_no_trace(kind, sweep):
    assert_same(run(make(kind), make_loader(), sweep=None), run(make(kind), make_loader(), sweep=sweep))


@pytest.mark.parametrize(
    "sweep", [find, find_by_trials, interrupted(KeyboardInterrupt())], ids=["whole", "trials", "ctrl-c"]
)
@pytest.mark.parametrize("persistent", [False, True])
def test_no_trace_with_workers(persistent, sweep):
    def loader():
        return make_loader(num_workers=2, persistent_workers=persistent)

    def before(trainer, data):
        trainer.fit(data, epochs=1)

    kind = torch.optim.Adam
    first = run(make(kind), loader(), sweep=None, before=before)
    assert_same(first, run(make(kind), loader(), sweep=sweep, before=before))


@pytest.mark.parametrize(
    "sweep", [find, find_by_trials, interrupted(KeyboardInterrupt())], ids=["whole", "trials", "ctrl-c"]
)
@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"precision": "bf16"}, {"accumulate": 4}], ids=["fp16", "bf16", "accumulate"]
)
def test_no_trace_in_mid_training(options, sweep):
    def before(trainer, loader):
        trainer.fit(loader, epochs=1)

    kind = torch.optim.SGD
    first = run(make(kind, **options), make_loader(), sweep=None, before=before)
    assert_same(first, run(make(kind, **options), make_loader(), sweep=sweep, before=before))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_trace_of_a_sweep_that_ends_in_the_optimizers_step(precision):
    """With fp16, the scaler has already unscaled the gradients. This stage must be undone."""

    def before(trainer, loader):
        trainer.fit(loader, epochs=1)

    def sweep(trainer, loader):
        steps = []

        def interrupt(*_):
            steps.append(1)
            if len(steps) == 5:
                raise KeyboardInterrupt

        handle = trainer.optimizer.register_step_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            find(trainer, loader)
        handle.remove()

    def settings():
        return make(torch.optim.Adam, precision=precision), make_loader()

    first = run(*settings(), sweep=None, before=before)
    assert_same(first, run(*settings(), sweep=sweep, before=before))


@pytest.mark.parametrize(
    "sweep", [find, find_by_trials, interrupted(KeyboardInterrupt())], ids=["whole", "trials", "ctrl-c"]
)
def test_no_trace_with_a_schedule_and_with_a_torch_scheduler(sweep):
    def own(sweep):
        def before(trainer, loader):
            trainer.fit(loader, epochs=1, lr=0.1, schedule="triangular")

        return run(make(torch.optim.SGD), make_loader(), sweep=sweep, before=before)

    def torchs(sweep):
        trainer = make(torch.optim.SGD)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.9)
        return run(trainer, make_loader(), sweep=sweep, schedule=scheduler, schedule_every="step")

    assert_same(own(None), own(sweep))
    assert_same(torchs(None), torchs(sweep))


def test_no_trace_in_generators_of_the_loader():
    def loader():
        data = make_loader(generator=torch.Generator().manual_seed(11))
        data.dataset.uses_own = True
        return data

    kind = torch.optim.SGD
    for search in (find, find_by_trials):
        assert_same(run(make(kind), loader(), sweep=None), run(make(kind), loader(), sweep=search))


@pytest.mark.parametrize("search", [find, find_by_trials])
def test_gradients_modes_and_schedule_are_restored(search):
    trainer, loader = make(torch.optim.SGD), make_loader()
    trainer.model.eval()
    trainer.model[1].train()
    trainer.model(torch.ones(4, 8)).sum().backward()
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    parameters = list(trainer.model.parameters())
    search(trainer, loader)
    assert all(now is before for now, before in zip(trainer.model.parameters(), parameters, strict=True))
    for parameter, gradient, value in zip(parameters, gradients, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    assert [module.training for module in trainer.model] == [False, True, False, False, False, False]
    assert not trainer.optimizer.state
    assert trainer.optimizer.schedule is None


def test_random_state_round_trip(tmp_path):
    saved = random_state()
    torch.save(saved, tmp_path / "random.pt")
    first = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    again = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]
    assert first == again
