import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, ScheduledOptim, Trainer, schedules


class Players(Trainer):
    """A GAN whose discriminator, an average of its generator and a further optimizer are not in the model."""

    def __init__(self, discriminator: nn.Module, **options) -> None:
        generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = ScheduledOptim(torch.optim.Adam(generator.parameters(), lr=1e-3), schedules.Triangular(7))
        other = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
        super().__init__(
            generator,
            None,
            optimizer,
            other_optimizers={"discriminator": other},
            device="cpu",
            progress=False,
            **options,
        )
        self.discriminator = discriminator
        self.average = [copy.deepcopy(generator)]
        self.unnamed = {"temperature": torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1, momentum=0.9)}
        self.rates: list[tuple[float, float]] = []
        self.mean = torch.zeros(2)

    @property
    def temperature(self) -> nn.Parameter:
        return self.unnamed["temperature"].param_groups[0]["params"][0]

    def training_step(self, batch):
        (real,) = batch
        self.mean += real.mean(0)
        optimizer = self.other_optimizers["discriminator"]
        fake = self.model(torch.randn(len(real), 4))
        optimizer.zero_grad()
        loss = self.discriminator(fake.detach()).mean() - self.discriminator(real).mean() * self.temperature
        loss = nn.functional.softplus(loss)
        self.discriminator_loss = loss.detach()
        self.unnamed["temperature"].zero_grad()
        self.engine.backward(loss)
        self.engine.step(optimizer)
        self.unnamed["temperature"].step()
        for mean, parameter in zip(self.average[0].parameters(), self.model.parameters(), strict=True):
            mean.data.lerp_(parameter.data, 0.1)
        self.average[0](torch.randn(8, 4))  # moves its running statistics
        self.rates.append((self.optimizer.learning_rate, optimizer.learning_rate))
        return -self.discriminator(fake).mean()


@pytest.fixture
def players():
    def make(**options) -> Players:
        torch.manual_seed(0)
        discriminator = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        return Players(discriminator, **options)

    return make


@pytest.fixture
def points():
    return DataLoader(TensorDataset(torch.randn(96, 2)), batch_size=16, shuffle=True)


def everything(trainer: Players) -> list:
    """All values that a step changes, in order."""
    modules = [trainer.model, trainer.discriminator, *trainer.average]
    tensors = [value.clone() for module in modules for value in module.state_dict().values()]
    tensors += [trainer.temperature.detach().clone(), trainer.mean.clone(), list(trainer.rates), torch.get_rng_state()]
    for optimizer in (*trainer.optimizers, *trainer.unnamed.values()):
        content = copy.deepcopy(optimizer.state_dict())
        tensors += [repr(content["param_groups"]), repr(content.get("schedule")), repr(content["state"])]
    gradients = [parameter.grad for module in modules for parameter in module.parameters()]
    return tensors + [None if gradient is None else gradient.clone() for gradient in gradients]


def same(one: list, other: list) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


SWEEP = {"method": "sweep", "start_lr": 1e-5, "end_lr": 1.0, "num_steps": 20}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "in_mid_training"])
@pytest.mark.parametrize("choice", [None, "discriminator", "by_itself", "wrapped"])
def test_a_sweep_leaves_no_trace_in_any_player(players, points, choice, trained, precision):
    trainer = players(precision=precision)
    if trained:
        trainer.fit(points, epochs=2)
    discriminator = trainer.other_optimizers["discriminator"]
    before, attributes = everything(trainer), dict(vars(trainer))
    choice = {"by_itself": discriminator, "wrapped": discriminator.optimizer}.get(choice, choice)
    found = trainer.find_lr(points, optimizer=choice, **SWEEP)
    assert len(found.losses) > 2
    assert same(before, everything(trainer))
    assert dict(vars(trainer)) == attributes


def test_training_after_a_sweep_is_training_without_one(players, points):
    with_sweep, without = players(), players()
    with_sweep.find_lr(points, optimizer="discriminator", **SWEEP)
    for trainer in (with_sweep, without):
        torch.manual_seed(1)
        trainer.fit(points, epochs=2)
    assert same(everything(with_sweep), everything(without))


@pytest.mark.parametrize(("choice", "place"), [(None, 0), ("discriminator", 1)])
def test_only_the_swept_rate_changes(players, points, choice, place):
    trainer = players()
    trainer.rates = rates = Unrestored()
    found = trainer.find_lr(points, optimizer=choice, **SWEEP)
    seen = [pair[place] for pair in rates.kept]
    # The generator's step follows training_step, the discriminator's is in it: both see the rate of this step.
    assert seen[: len(found.rates)] == pytest.approx(found.rates)
    others = [pair[1 - place] for pair in rates.kept]
    if place == 0:
        assert set(others) == {2e-3}
    else:  # what its schedule says, one step late
        schedule = schedules.Triangular(7)
        assert others[1:] == pytest.approx([1e-3 * schedule(step) for step in range(len(others) - 1)])


KEPT: list = []


class Unrestored:
    """A list of this module, which find_lr does not put back."""

    def __init__(self) -> None:
        KEPT.clear()

    @property
    def kept(self) -> list:
        return KEPT

    def append(self, item) -> None:
        self.kept.append(item)


def test_watch_chooses_the_loss(players, points):
    trainer = players()
    watched: list[float] = []

    def watch() -> torch.Tensor:
        watched.append(float(trainer.discriminator_loss))
        return trainer.discriminator_loss

    found = trainer.find_lr(points, optimizer="discriminator", watch=watch, **SWEEP)
    assert list(found.losses) == watched[: len(found.losses)]
    as_number = trainer.find_lr(points, optimizer="discriminator", watch=lambda: 0.5, **SWEEP)
    assert set(as_number.losses) == {0.5}


def test_what_was_found_for_another_optimizer_is_not_taken_for_the_trainers_own(players, points):
    trainer = players()
    rates = [trainer.optimizer.learning_rate, trainer.other_optimizers["discriminator"].learning_rate]
    for choice in ("discriminator", trainer.other_optimizers["discriminator"]):
        found = trainer.find_lr(points, optimizer=choice, **SWEEP)
        assert found.optimizer_name == "discriminator"
        assert str(found).startswith("Learning rate of 'discriminator', ")
        with pytest.raises(ValueError, match=r"lr: .* found for the optimizer 'discriminator' of other_optimizers"):
            trainer.fit(points, lr=found)
    assert rates == [trainer.optimizer.learning_rate, trainer.other_optimizers["discriminator"].learning_rate]
    assert trainer.step == 0
    assert trainer.find_lr(points, **SWEEP).optimizer_name is None


def test_an_optimizer_that_steps_now_and_then(points):
    class Rarely(Players):
        def training_step(self, batch):
            (real,) = batch
            self.batch = getattr(self, "batch", 0) + 1
            if self.batch % 3 == 0:
                self.other_optimizers["discriminator"].zero_grad()
                self.discriminator(real).mean().backward()
                self.other_optimizers["discriminator"].step()
            return self.model(torch.randn(len(real), 4)).mean()

    trainer = Rarely(nn.Linear(2, 1))
    found = trainer.find_lr(points, optimizer="discriminator", **SWEEP)
    assert len(found.rates) == 20  # each step of the discriminator counts, not each batch


@pytest.mark.parametrize("method", ["trials", "sweep"])
@pytest.mark.parametrize("num_steps", [30, 150])
def test_an_optimizer_that_never_steps(make, net, loader, method, num_steps):
    trainer = make(net, other_optimizers={"idle": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)})
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(ValueError, match="training_step took no step with it"):
        trainer.find_lr(loader, optimizer="idle", method=method, num_steps=num_steps)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_what_is_no_optimizer_of_the_trainer(players, points):
    trainer = players()
    with pytest.raises(ValueError, match="'discrimnator'; did you mean 'discriminator'"):
        trainer.find_lr(points, optimizer="discrimnator")
    with pytest.raises(ValueError, match="got SGD, which the trainer does not know"):
        trainer.find_lr(points, optimizer=trainer.unnamed["temperature"])
    with pytest.raises(TypeError, match="watch: got 3"):
        trainer.find_lr(points, watch=3)


@pytest.mark.parametrize("others", [[1], {"a": 3}, {1: torch.optim.SGD([nn.Parameter(torch.ones(1))])}, 7])
def test_what_is_no_mapping_of_optimizers(make, net, others):
    with pytest.raises(TypeError, match="optimizer"):
        make(net, other_optimizers=others)


def test_parameters_of_other_optimizers_are_not_left_out():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model.values()]
    with pytest.warns(UserWarning, match=r"leaves out trainable parameters: two\.weight"):
        Trainer(model, None, optimizers[0], device="cpu", progress=False)
    Trainer(model, None, optimizers[0], other_optimizers={"two": optimizers[1]}, device="cpu", progress=False)


def test_saved_and_loaded(players, points, tmp_path):
    trainer, again = players(), players()
    trainer.fit(points, epochs=2)
    trainer.save(tmp_path / "players.pt")
    again.load(tmp_path / "players.pt")
    saved = trainer.other_optimizers["discriminator"].state_dict()
    loaded = again.other_optimizers["discriminator"].state_dict()
    assert loaded["schedule"] == saved["schedule"]
    assert repr(loaded["state"]) == repr(saved["state"])


def test_a_checkpoint_of_other_optimizers_changes_nothing(players, points, tmp_path, make, net):
    trainer = players()
    trainer.save(tmp_path / "players.pt")
    other = Players(nn.Linear(2, 1))
    other.fit(points, epochs=1)
    before = everything(other)
    with pytest.raises(ValueError, match="group"):  # the discriminator's, which comes second
        other.load(tmp_path / "players.pt")
    assert same(before, everything(other))
    other.other_optimizers.clear()
    with pytest.raises(ValueError, match=r"other_optimizers named \['discriminator'\], but the trainer has \[\]"):
        other.load(tmp_path / "players.pt")


def test_a_first_batch_that_fails_late_is_undone_everywhere(players, points):
    class Fails(Players):
        def training_step(self, batch):
            super().training_step(batch)
            raise KeyError("after the discriminator's step")

    trainer = Fails(nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)))
    before = everything(trainer)
    with pytest.raises(ValueError, match="could not take the first batch"):
        trainer.fit(points)
    assert same(before, everything(trainer))


def test_rates_of_all_are_logged(players, points):
    class Records(Callback):
        def on_log(self, trainer, record):
            self.record = dict(record)

    records = Records()
    players(callbacks=[records], log_every=1).fit(points)
    assert records.record["learning_rate/discriminator"] == 2e-3
