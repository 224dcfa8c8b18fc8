"""With the real packages: what their optimizers hold says what they do."""

import copy
import warnings

import dadaptation
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Callback, ScheduledOptim, Trainer, schedules
from mxtorch.optim.schedule_free import recognise

ESTIMATING = {
    "dadaptation.DAdaptAdam": dadaptation.DAdaptAdam,
    "dadaptation.DAdaptSGD": dadaptation.DAdaptSGD,
    "dadaptation.DAdaptLion": dadaptation.DAdaptLion,
    "dadaptation.DAdaptAdan": dadaptation.DAdaptAdan,
    "prodigyopt.Prodigy": prodigyopt.Prodigy,
    "pytorch_optimizer.Prodigy": pytorch_optimizer.Prodigy,
    "pytorch_optimizer.DAdaptAdam": pytorch_optimizer.DAdaptAdam,
    "pytorch_optimizer.DAdaptLion": pytorch_optimizer.DAdaptLion,
}
AVERAGING = {
    "schedulefree.AdamWScheduleFree": schedulefree.AdamWScheduleFree,
    "schedulefree.SGDScheduleFree": schedulefree.SGDScheduleFree,
    "schedulefree.RAdamScheduleFree": schedulefree.RAdamScheduleFree,
    "schedulefree.AdamWScheduleFreeReference": schedulefree.AdamWScheduleFreeReference,
    "pytorch_optimizer.ScheduleFreeAdamW": pytorch_optimizer.ScheduleFreeAdamW,
    "pytorch_optimizer.ScheduleFreeSGD": pytorch_optimizer.ScheduleFreeSGD,
    "pytorch_optimizer.ScheduleFreeWrapper": lambda parameters, lr: pytorch_optimizer.ScheduleFreeWrapper(
        torch.optim.SGD(parameters, lr=lr)
    ),
}


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


@pytest.fixture
def train(net):
    """Makes a trainer, quietly, of an optimizer by its class and rate."""

    def make(kind, lr: float, model: nn.Module = net, **options) -> Trainer:
        optimizer = kind(model.parameters(), lr=lr)
        return Trainer(model, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, **options)

    return make


def both(kinds):
    return pytest.mark.parametrize("kind", kinds.values(), ids=kinds)


# ---------------------------------------------------------------- recognised


@both(ESTIMATING | AVERAGING)
def test_what_an_optimizer_does_by_itself(kind, net):
    for optimizer in (kind(net.parameters(), lr=1.0), ScheduledOptim(kind(net.parameters(), lr=1.0))):
        known = recognise(optimizer)
        assert known.estimates_rate == (kind in ESTIMATING.values())
        assert known.averages_weights == (kind in AVERAGING.values())


def test_subclasses_and_wrapped_ones(net):
    class Mine(prodigyopt.Prodigy):
        pass

    assert recognise(Mine(net.parameters())) == ("Mine", True, False)
    lookahead = pytorch_optimizer.Lookahead(prodigyopt.Prodigy(net.parameters()))
    assert recognise(ScheduledOptim(lookahead)).name == "Prodigy"
    wrapper = pytorch_optimizer.ScheduleFreeWrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    assert recognise(wrapper) == ("ScheduleFreeWrapper", False, True)

    class Prepared(ScheduledOptim):  # as Accelerate's, it has these methods whatever it wraps
        def train(self):
            pass

        def eval(self):
            pass

    assert recognise(Prepared(torch.optim.SGD(net.parameters(), lr=0.1))) is None


def test_ordinary_ones(net):
    kinds = [
        kind for kind in vars(torch.optim).values() if isinstance(kind, type) and kind is not torch.optim.Optimizer
    ]
    kinds = [kind for kind in kinds if issubclass(kind, torch.optim.Optimizer)]
    assert len(kinds) > 10
    matrix = [nn.Parameter(torch.ones(2, 2))]
    for kind in kinds:
        assert recognise(kind(matrix, lr=0.1)) is None, kind
    for name in ("Lion", "AdaBelief", "Lamb", "AdEMAMix", "MADGRAD", "SPlus", "Ranger21"):
        settings = {"num_iterations": 10} if name == "Ranger21" else {}
        optimizer = getattr(pytorch_optimizer, name)(matrix, lr=0.1, **settings)
        assert recognise(optimizer) is None, name


# ---------------------------------------------------------------- warned of


@both(ESTIMATING)
def test_a_rate_for_one_that_estimates_it(kind, net):
    with pytest.warns(UserWarning, match=r"its lr only multiplies the estimate, and is 0\.001 here\. Leave it at 1\.0"):
        ScheduledOptim(kind(net.parameters(), lr=1e-3))
    optimizer = ScheduledOptim(kind(net.parameters(), lr=1.0), schedules.CosineAnnealing(10))  # no warning
    optimizer.set_learning_rate(1.0)
    with pytest.warns(UserWarning, match=r"is 0\.01 here"):
        optimizer.set_learning_rate(1e-2)
    with pytest.warns(UserWarning, match=r"is 0\.1 here"):
        optimizer.scale_learning_rate(10)


@both(AVERAGING)
def test_a_schedule_for_one_that_averages_instead(kind, net):
    optimizer = ScheduledOptim(kind(net.parameters(), lr=0.1))  # a real rate: no warning
    optimizer.set_learning_rate(0.01)
    optimizer.schedule = schedules.Constant()
    optimizer.schedule = None
    with pytest.warns(UserWarning, match="averages its weights instead of lowering the rate"):
        optimizer.schedule = schedules.CosineAnnealing(10)


def test_a_torch_scheduler_for_one_that_averages_instead(train, loader):
    trainer = train(schedulefree.SGDScheduleFree, 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 3)
    with pytest.warns(UserWarning, match="is Schedule-Free"):
        trainer.fit(loader, schedule=scheduler, schedule_every="epoch")


def test_the_warning_names_the_users_line(net):
    with pytest.warns(UserWarning, match="Prodigy estimates") as warned:
        ScheduledOptim(prodigyopt.Prodigy(net.parameters(), lr=0.1))
    assert warned[0].filename == __file__


def test_a_search(train, loader):
    with pytest.warns(UserWarning, match=r"find_lr: Prodigy estimates its learning rate.*leave lr at 1\.0"):
        train(prodigyopt.Prodigy, 1.0).find_lr(loader, num_steps=4)
    with pytest.warns(UserWarning, match="find_lr: SGDScheduleFree is Schedule-Free: its lr is a real rate"):
        train(schedulefree.SGDScheduleFree, 0.1).find_lr(loader, method="sweep", num_steps=4)
    train(schedulefree.SGDScheduleFree, 0.1).find_lr(loader, num_steps=36)  # warnings are errors


@both(AVERAGING)
def test_a_search_judges_the_weights_that_a_training_leaves(kind, train, net, loader):
    net[3] = nn.Identity()  # no dropout: the search and the training draw no numbers
    data = list(loader)
    val_data = [(torch.randn(64, 8), torch.randint(2, (64,)))]
    trainer = train(kind, 0.05)
    found = trainer.find_lr(data, val_data, num_steps=120, training_steps=30)
    trial = max(found.trials, key=lambda one: (one.steps, one.rate))
    trainer.fit(data, epochs=-(-trial.steps // len(data)), max_steps=trial.steps, lr=trial.rate)
    assert trainer.evaluate(val_data)["val/loss"] == pytest.approx(trial.loss, rel=1e-5)


def test_running_statistics_of_other_weights(train):
    normed = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="SGDScheduleFree is Schedule-Free, and the model has batch normalisation"):
        train(schedulefree.SGDScheduleFree, 0.1, normed)
    train(prodigyopt.Prodigy, 1.0, normed)
    train(torch.optim.SGD, 0.1, normed)


# ---------------------------------------------------------------- no trace


@both(ESTIMATING | AVERAGING)
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "in_mid_training"])
@pytest.mark.parametrize(("method", "num_steps"), [("sweep", 12), ("trials", 36)])
def test_find_lr_leaves_no_trace(kind, trained, method, num_steps, train, net, loader):
    trainer = train(kind, 1.0 if kind in ESTIMATING.values() else 0.05)
    if trained:
        trainer.fit(loader)

    def everything():
        optimizer = trainer.optimizer.optimizer
        inner = getattr(optimizer, "optimizer", None)
        attributes = {name: value for name, value in vars(optimizer).items() if isinstance(value, (int, float, dict))}
        held = [dict(optimizer.state), optimizer.param_groups, attributes, inner and inner.state_dict()]
        return copy.deepcopy(net.state_dict()), repr(held), torch.get_rng_state()

    before = everything()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trainer.find_lr(loader, method=method, start_lr=1e-4, end_lr=1.0, num_steps=num_steps)
    assert len(found.losses if method == "sweep" else found.trials) > 4
    weights, held, generator = everything()
    assert all(torch.equal(weights[name], value) for name, value in before[0].items())
    assert held == before[1]
    assert torch.equal(generator, before[2])
    trainer.fit(loader)


# ---------------------------------------------------------------- the two points of Schedule-Free


def by_hand(kind, lr: float, loader, epochs: int, evaluate=lambda net: None) -> nn.Module:
    """The loop of Schedule-Free's own documentation."""
    torch.manual_seed(0)
    net = nn.Linear(8, 2)
    optimizer, loss = kind(net.parameters(), lr=lr), nn.CrossEntropyLoss()
    for _ in range(epochs):
        optimizer.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss(net(inputs), labels).backward()
            optimizer.step()
        optimizer.eval()
        with torch.no_grad():
            evaluate(net)
    return net


@pytest.fixture
def steady(two_moons):
    return DataLoader(two_moons, batch_size=32)


@both(AVERAGING)
def test_training_is_that_of_the_authors_loop(kind, train, steady, two_moons):
    inputs, labels = two_moons.tensors
    losses: list[float] = []
    wanted = by_hand(
        kind, 0.05, steady, 3, lambda net: losses.append(float(nn.functional.cross_entropy(net(inputs), labels)))
    )
    torch.manual_seed(0)
    trainer = train(kind, 0.05, nn.Linear(8, 2))
    history = trainer.fit(steady, steady, epochs=3)
    assert [row["val/loss"] for row in history.rows] == pytest.approx(losses, rel=1e-5)
    # After fit the weights are the averaged ones.
    torch.testing.assert_close(trainer.model.weight, wanted.weight, rtol=1e-4, atol=1e-5)
    assert trainer.evaluate(steady)["val/loss"] == pytest.approx(losses[-1], rel=1e-5)
    outputs = trainer.predict(steady)
    torch.testing.assert_close(outputs, wanted(inputs).detach(), rtol=1e-4, atol=1e-4)


@both(AVERAGING)
def test_evaluating_changes_no_bit(kind, train, steady):
    weights = []
    for validation in (None, steady):
        torch.manual_seed(0)
        trainer = train(kind, 0.05, nn.Linear(8, 2))
        trainer.fit(steady, validation, epochs=3)
        weights.append(trainer.model.weight.detach().clone())
    assert torch.equal(*weights)


def test_evaluating_in_mid_epoch(train, steady):
    """What a callback evaluates are the averaged weights too, and training goes on where it was."""

    class Evaluates(Callback):
        def __init__(self) -> None:
            self.pairs = []

        def on_step(self, trainer):
            group = trainer.optimizer.param_groups[0]
            before = trainer.model.weight.detach().clone()
            trainer.evaluate(steady)
            trainer.predict(steady)
            assert torch.equal(trainer.model.weight, before)
            self.pairs.append(group["train_mode"])

    watch = Evaluates()
    train(schedulefree.AdamWScheduleFree, 0.05, nn.Linear(8, 2), callbacks=[watch]).fit(steady)
    assert watch.pairs == [True] * 8


def test_the_averaged_weights_are_there_after_an_error(train, steady):
    class Fails(Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                raise KeyError("stop here")

    trainer = train(schedulefree.SGDScheduleFree, 0.05, nn.Linear(8, 2), callbacks=[Fails()])
    with pytest.raises(KeyError):
        trainer.fit(steady)
    assert not trainer.optimizer.param_groups[0]["train_mode"]


def test_saved_and_resumed(train, steady, tmp_path):
    def trained(path=None):
        torch.manual_seed(0)
        trainer = train(schedulefree.AdamWScheduleFree, 0.05, nn.Linear(8, 2))
        trainer.fit(steady)
        if path is not None:
            trainer.save(path)
            torch.manual_seed(1)
            trainer = train(schedulefree.AdamWScheduleFree, 0.05, nn.Linear(8, 2))
            trainer.load(path)
        trainer.fit(steady)
        return trainer.model.weight

    assert torch.equal(trained(), trained(tmp_path / "run.pt"))


@pytest.mark.parametrize("kind", [prodigyopt.Prodigy, dadaptation.DAdaptAdam])
def test_an_estimated_rate_trains(kind, train, two_moons):
    loader = DataLoader(TensorDataset(*two_moons.tensors), batch_size=32, shuffle=True)
    history = train(kind, 1.0).fit(loader, epochs=30, lr=1.0, schedule="cosine_annealing")
    assert history.rows[-1]["train/loss"] < 0.7 * history.rows[0]["train/loss"]
