from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import model_zoo
from mxtorch import Callback, Trainer, schedules
from mxtorch.fine_tuning import FeatureCache, fine_tune


class Rates(Callback):
    """The rates of all groups, and what is trained, at the start of each run."""

    def __init__(self) -> None:
        self.groups, self.trained, self.modes = [], [], []

    def on_fit_start(self, trainer):
        groups = trainer.optimizer.param_groups
        self.groups.append([(group.get("name"), group.get("base_lr", group["lr"])) for group in groups])
        self.trained.append([name for name, p in trainer.model.named_parameters() if p.requires_grad])

    def on_step(self, trainer):
        self.modes.append([module.training for module in trainer.model.modules()])


def test_two_phases_at_rates_that_are_found_and_told(net, make, train, val, capsys):
    rates = Rates()
    trainer = make(net, lr=0.05, callbacks=[rates], progress=True, channels_last=False)
    result = trainer.fine_tune(train, val, epochs=2, freeze_epochs=3, head="2")
    assert result is trainer.fine_tuning
    assert len(result.history) == 5
    assert rates.trained[0] == ["2.1.weight", "2.1.bias"]
    assert len(rates.trained[1]) == 6  # the batch normalisation keeps its statistics
    (names, first), (_, second) = (zip(*groups, strict=True) for groups in rates.groups)
    assert names == ("head", "high", "mid", "low")[: len(names)]
    for values in (first, second):
        assert all(later == pytest.approx(sooner * 0.3) for sooner, later in itertools.pairwise(values))
    assert first[0] == pytest.approx(result.rates["head"])
    assert second[0] == pytest.approx(result.rates["all layers"])
    assert result.found.keys() == {"head", "all layers"}
    printed = capsys.readouterr().out
    assert all(note in printed for note in result.notes)
    assert any("in memory" in note for note in result.notes)
    parts = [name for name, _ in result.timeline]
    assert parts[0] == "features of the frozen layers"
    assert parts[-1] == "all layers: 2 epochs"
    assert "together" in str(result)
    assert len(trainer.optimizer.param_groups) == 1  # as the user made them
    assert "forward" not in vars(net)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_network_of_the_zoo_with_and_without_the_cache(name, make):
    results = []
    pictures = torch.randn(12, 3, 64, 64)
    data = DataLoader([(picture, index % 3) for index, picture in enumerate(pictures)], 4, shuffle=True)
    for cache in (False, True):
        torch.manual_seed(0)
        net = model_zoo.create(name)
        net.fc = nn.Linear(net.fc.in_features, 3)
        trainer = make(net, channels_last=False)
        torch.manual_seed(1)
        history = trainer.fine_tune(data, data, epochs=1, freeze_epochs=2, lr=0.01, cache=cache).history
        results.append([*history["train/loss"], *history["val/loss"], float(torch.rand(1))])
    assert results[0] == pytest.approx(results[1], rel=2e-3)


@pytest.mark.parametrize(("train_norms", "freeze_epochs", "trained"), [(None, 1, 6), (True, 1, 10), (None, 0, 10)])
def test_batch_normalisation_in_the_second_phase(net, make, train, train_norms, freeze_epochs, trained):
    rates = Rates()
    before = net[0][1].running_mean.clone()
    make(net, callbacks=[rates]).fine_tune(
        train, epochs=1, freeze_epochs=freeze_epochs, lr=0.1, head="2", train_norms=train_norms
    )
    assert len(rates.trained[-1]) == trained
    assert torch.equal(net[0][1].running_mean, before) == (trained == 6)


def test_rates_that_are_given(net, make, train):
    rates = Rates()
    result = make(net, callbacks=[rates]).fine_tune(train, epochs=1, freeze_epochs=1, lr=(0.2, 0.01), head=net[2])
    assert result.rates == {"head": 0.2, "all layers": 0.01}
    assert not result.found
    assert [groups[0][1] for groups in rates.groups] == [0.2, 0.01]


def test_one_phase_alone(net, make, train):
    rates = Rates()
    trainer = make(net, callbacks=[rates])
    trainer.fine_tune(train, epochs=0, freeze_epochs=1, lr=0.1, head="2")
    trainer.fine_tune(train, epochs=1, freeze_epochs=0, lr=0.1, head="2")
    assert [len(trained) for trained in rates.trained] == [2, 10]


def learns_nothing(net):
    with torch.no_grad():
        net[2][1].weight.zero_()
    for parameter in net.parameters():
        parameter.register_hook(torch.zeros_like)
    net[2][0].p = 0.0


def constant_pictures(count):
    return DataLoader([(torch.ones(3, 8, 8), index % 2) for index in range(count)], 4)


def test_an_honest_fallback_where_no_rate_is_found(net, make):
    learns_nothing(net)
    result = make(net, lr=0.03).fine_tune(constant_pictures(32), epochs=0, head="2")
    assert result.found["head"].status == "no_signal"
    assert result.rates["head"] == 0.03
    assert any("no rate to suggest" in note and "the optimizer's own rate, 3.0e-02" in note for note in result.notes)


@pytest.mark.parametrize("epochs", [1, 40], ids=["too few steps to search", "nothing learnt in short trainings"])
def test_a_rule_of_thumb_is_called_none_that_was_found(net, make, epochs):
    learns_nothing(net)
    result = make(net).fine_tune(constant_pictures(16), epochs=epochs, freeze_epochs=epochs, head="2", cache=False)
    head, all_layers = result.rates["head"], result.rates["all layers"]
    assert result.found["head"].suggestion == head
    assert all_layers == pytest.approx(head / 10), "the optimizer's usual rate is none for a trained network"
    assert any(
        "head: " in note and f"show no rate. Going on with the optimizer's usual rate, {head:.1e}" in note
        for note in result.notes
    )
    assert any("all layers: " in note and "a tenth of the head's" in note for note in result.notes)


@pytest.mark.parametrize("epochs", [1, 20, 400])
def test_a_search_takes_fewer_steps_than_the_training(net, make, epochs, monkeypatch):
    trainer, searches = make(net), []
    monkeypatch.setattr(trainer, "find_lr", lambda data, **options: searches.append(options) or Found())
    monkeypatch.setattr(trainer, "fit", lambda *_, **__: None)
    trainer.fine_tune(constant_pictures(40), epochs=epochs, freeze_epochs=1, head="2", cache=False)
    last = searches[-1]
    assert last["training_steps"] == 10 * epochs
    assert 0.2 <= last["budget"] <= 0.5
    assert len(searches) == 2


def test_the_search_is_for_the_steps_of_accumulation_that_changes(net, make):
    trainer = make(net, accumulate={1: 4, 2: 1})
    result = trainer.fine_tune(constant_pictures(40), epochs=3, freeze_epochs=3, head="2", cache=False)
    assert {found.training_steps for found in result.found.values()} == {trainer.step // 2}


class Found:
    """A search that found a rate."""

    status, advice, interval, suggestion, is_rule_of_thumb = "ok", "", None, 0.1, False

    def suggestion_for(self, schedule):
        return 0.1


def test_an_optimizer_that_holds_the_head_alone_gets_the_rest(net, make, train):
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    before = net[0][0].weight.detach().clone()
    trainer.fine_tune(train, epochs=1, freeze_epochs=1, lr=0.1, head="2")
    assert not torch.equal(net[0][0].weight, before)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in net.parameters()}


def test_groups_and_their_settings(net, make, train):
    rates = Rates()
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in net.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=0.1
    )
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, callbacks=[rates])
    groups = {"first": ["0"], "second": net[1], "last": "2"}
    trainer.fine_tune(train, epochs=1, freeze_epochs=0, lr=0.1, groups=groups, decay=0.5)
    assert [name for name, _ in rates.groups[0]] == ["last", "last", "second", "second", "first", "first"]
    assert [rate for _, rate in rates.groups[0]] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_rates_of_the_users_own_stay(net, make, train):
    rates = Rates()
    groups = [
        {"params": net[2].parameters(), "lr": 0.1},
        {"params": [*net[0].parameters(), *net[1].parameters()], "lr": 0.001},
    ]
    optimizer = torch.optim.SGD(groups)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, callbacks=[rates])
    trainer.fine_tune(train, epochs=1, freeze_epochs=0, lr=0.2, head="2")
    assert [rate for _, rate in rates.groups[0]] == pytest.approx([0.2, 0.002])


def test_why_there_is_no_cache_is_told(net, make, pictures, val):
    pictures.transform = v2.RandomHorizontalFlip()
    data = DataLoader(pictures, 8)
    trainer = make(net)
    notes = trainer.fine_tune(data, val, epochs=0, lr=0.1, head="2").notes
    assert any("No feature cache for train_data: its items change" in note for note in notes)
    with pytest.raises(ValueError, match="train_data: no features can be kept"):
        trainer.fine_tune(data, val, epochs=0, lr=0.1, head="2", cache="memory")
    notes = trainer.fine_tune(data, val, epochs=0, lr=0.1, head="2", views=2).notes
    assert any("2 views of 32 samples" in note for note in notes)

    class Own(Trainer):
        def training_step(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0].flip(-1)), batch[1])

    own = Own(net, None, torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False)
    assert any("training_step of its own" in n for n in own.fine_tune(val, epochs=0, lr=0.1, head="2").notes)


def test_a_step_that_was_set_on_the_trainer_itself_is_seen(net, make, val):
    trainer = make(net)
    trainer.training_step = lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1])
    notes = trainer.fine_tune(val, epochs=0, lr=0.1, head="2").notes
    assert any("training_step of its own" in note for note in notes)


class JudgesMirroredPictures(Trainer):
    def evaluation_step(self, batch):
        return super().evaluation_step((batch[0].flip(-1) * 3, batch[1]))


class CountsChannels(Trainer):
    def count_samples(self, batch):
        return len(batch[0]) * batch[0].shape[1]


@pytest.mark.parametrize(
    ("kind", "told"),
    [(JudgesMirroredPictures, "an evaluation_step of its own"), (CountsChannels, "a count_samples of its own")],
)
def test_methods_of_ones_own_are_given_inputs_and_not_features(net, train, val, kind, told):
    results = []
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    for cache in ("auto", False):
        torch.manual_seed(1)
        net.load_state_dict(initial)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        trainer = kind(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, channels_last=False)
        tuned = trainer.fine_tune(train, val, epochs=0, freeze_epochs=1, lr=0.1, head="2", cache=cache)
        results.append((tuned.history["train/loss"], tuned.history["val/loss"]))
        assert any(told in note for note in tuned.notes) == (cache == "auto")
        assert tuned.history["val/loss"] == [trainer.evaluate(val)["val/loss"]]
    assert results[0] == results[1]


@pytest.mark.parametrize("own_rates", [False, True])
def test_an_error_before_the_first_step_leaves_everything_as_it_was(net, pictures, own_rates):
    pictures.transform = v2.RandomHorizontalFlip()  # of which no features can be kept
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    head = list(net[2].parameters())
    groups = [{"params": head, "lr": 0.3}]
    if own_rates:
        groups = [{"params": head[:1], "lr": 0.3}, {"params": head[1:], "lr": 0.07}]
    optimizer = torch.optim.SGD(groups)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    trainer.optimizer.schedule = schedules.OneCycle(10)
    before = [[group["params"], group["lr"], group["base_lr"]] for group in optimizer.param_groups]
    trained = [parameter.requires_grad for parameter in net.parameters()]
    with pytest.raises(ValueError, match="no features can be kept"):
        trainer.fine_tune(DataLoader(pictures, 8), epochs=1, head="2", cache="memory", lr=0.1)
    assert [parameter.requires_grad for parameter in net.parameters()] == trained
    assert [[group["params"], group["lr"], group["base_lr"]] for group in optimizer.param_groups] == before
    assert trainer.optimizer.schedule == schedules.OneCycle(10)
    assert trainer.step == 0


class Interrupts(Callback):
    def __init__(self, fit: int, step: int) -> None:
        self.place, self.fits = (fit, step), 0

    def on_fit_start(self, trainer):
        self.fits += 1
        self.interrupt(0)

    def on_step(self, trainer):
        self.interrupt(trainer.run.steps_done)

    def interrupt(self, step):
        if (self.fits, step) == self.place:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("fit", "step", "trained"), [(1, 0, 10), (1, 1, 2), (2, 0, 2), (2, 1, 6)])
def test_an_error_puts_back_what_a_phase_froze_until_its_first_step(net, make, train, fit, step, trained):
    trainer = make(net, callbacks=[Interrupts(fit, step)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fine_tune(train, epochs=1, freeze_epochs=1, lr=0.1, head="2")
    assert sum(parameter.requires_grad for parameter in net.parameters()) == trained


class Other:
    """Has of a trainer what `fine_tune` uses, and nothing else."""

    step = property(lambda self: self._step())

    def __init__(self, trainer) -> None:
        self._step = lambda: trainer.step
        for name in ("model", "optimizer", "engine", "history", "settings", "progress", "fit", "find_lr"):
            setattr(self, name, getattr(trainer, name))


def test_what_it_uses_of_a_trainer(net, make, train, val):
    results = []
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    for wrap in (Other, lambda trainer: trainer):
        net.load_state_dict(initial)
        torch.manual_seed(1)
        results.append(fine_tune(wrap(make(net)), train, val, epochs=1, freeze_epochs=2, head="2"))
    assert results[0].rates == results[1].rates
    assert results[0].history["train/loss"] == results[1].history["train/loss"]


def test_numbers_of_numpy(net, make, train):
    options = {"epochs": np.int64(1), "freeze_epochs": np.int32(2), "views": np.uint8(1), "lr": np.float32(0.5)}
    result = make(net).fine_tune(train, head="2", decay=np.float64(0.5), **options)
    assert len(result.history) == 3
    assert result.rates == {"head": 0.5, "all layers": 0.5}


def test_validation_data_that_change_are_run_whole(net, make, train):
    random = type(train.dataset)(v2.RandomHorizontalFlip())
    result = make(net, channels_last=False).fine_tune(train, DataLoader(random, 8), epochs=0, lr=0.1, head="2")
    assert any("No feature cache for val_data" in note for note in result.notes)
    assert result.history["val/loss"][0] > 0


def test_a_cache_of_ones_own_is_kept(net, make, train, val):
    trainer = make(net)
    cache = FeatureCache(trainer, tell=lambda sentence: None)
    trainer.fine_tune(train, val, epochs=0, lr=0.1, head="2", cache=cache)
    net.samples = 0
    trainer.fine_tune(train, val, epochs=0, lr=0.1, head="2", cache=cache)
    assert net.samples == 0
    cache.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "freeze_epochs": 0}, "nothing to train"),
        ({"epochs": -1}, "epochs: got -1"),
        ({"freeze_epochs": -1}, "freeze_epochs: got -1"),
        ({"lr": -1}, "lr: got -1"),
        ({"lr": (1, 2, 3)}, "got 3 rates"),
        ({"decay": 0}, "decay: got 0"),
        ({"views": 0}, "views: got 0"),
        ({"schedule": "one_cycel"}, "did you mean"),
        ({"cache": "nowhere"}, "cache: got 'nowhere'"),
        ({"head": None}, "was not built by the zoo; give head="),
        ({"head": "22"}, "head: got '22'"),
        ({"head": "2.0"}, "no parameters, so nothing is left to train"),
        ({"head": nn.Linear(2, 2)}, "a Linear that is not in the model"),
        ({"head": 3}, "head: got 3"),
        ({"head": None, "groups": ["0", "2"]}, "they leave out 1.0.weight"),
        ({"head": None, "groups": [["0", "1"], ["1", "2"]]}, "'1.0.bias' is in 'group1' and in a group before it"),
        ({"head": None, "groups": [["0", "1", "2"]]}, "one group alone"),
        ({"groups": ["2", "1", "0"]}, "it is not the last of groups"),
        ({"head": None, "groups": "2"}, "groups: got '2'"),
    ],
)
def test_arguments_that_are_off(net, make, train, options, message):
    trainer = make(net)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fine_tune(train, **{"epochs": 1, "head": "2", **options})
    assert trainer.step == 0
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert len(trainer.optimizer.param_groups) == 1


def test_everything_as_the_head(net, make, train):
    with pytest.raises(ValueError, match="all the model's parameters"):
        make(nn.Sequential(net)).fine_tune(train, epochs=1, head="0")
