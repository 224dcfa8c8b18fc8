import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import ScheduledOptim, Trainer, schedules
from mxtorch.lr_finder import LRFinderResult
from mxtorch.lr_finder.range_test import Sweep
from mxtorch.lr_finder.trials import Heat


def make(net, lr=0.1, **options):
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9))
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, **options)


@pytest.fixture
def found(net, loader):
    return make(net).find_lr(loader, start_lr=1e-5)


def test_the_whole_result(found, tmp_path):
    assert found.status == "ok"
    assert found.stop_reason in ("diverged", "completed")
    assert found.suggestion == found.suggestion_for("constant") < found.suggestion_for(schedules.OneCycle())
    assert found.interval[0] <= found.suggestion <= found.interval[1]
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert f"{found.suggestion:.2e}" in str(found)
    assert repr(found) == str(found), "short, at a prompt too"
    found.to_csv(tmp_path / "curve.csv")
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == len(found.rates) + 1
    content = json.loads(found.to_json(tmp_path / "curve.json"))
    assert content == json.loads((tmp_path / "curve.json").read_text())
    assert content["suggestion"] == found.suggestion
    assert content["losses"] == list(found.losses)
    axes = found.plot()
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"training loss", "held-out loss", f"suggestion {found.suggestion:.1e}"} <= set(labels)
    bottom, top = axes.get_ylim()
    assert all(bottom < loss < top for rate, loss in found.held_out if rate < found.suggestion)
    assert "data:image/png;base64" in found._repr_html_()


def test_heats_are_in_all_of_it(net, loader):
    found = make(net).find_lr(loader, loader, num_steps=300)
    assert [heat.use for heat in found.heats] == ["one_cycle"] * 6 + ["constant"]
    content = json.loads(found.to_json())
    assert content["heats"] == [vars(heat) for heat in found.heats]
    assert content["held_out"] == [list(point) for point in found.held_out]
    assert f"7 short trainings, {sum(heat.steps for heat in found.heats)} steps" in str(found)
    axes = found.plot()
    drawn = [tuple(place) for points in axes.collections for place in points.get_offsets()]
    for heat in found.heats:
        assert any(place == pytest.approx((heat.rate, heat.loss)) for place in drawn), heat
    assert axes.get_ylim()[0] < min(heat.loss for heat in found.heats)


def test_json_has_no_numbers_that_it_does_not_know():
    sweep = Sweep([0.1 * index for index in range(1, 31)], [1.0] * 30, "diverged", [(0.1, 1.0), (0.2, math.inf)])
    found = LRFinderResult.of(sweep, "constant", [Heat("one_cycle", 0.1, 5, math.inf, 1.0)])

    def refuse(word):
        raise AssertionError(word)

    content = json.loads(found.to_json(), parse_constant=refuse)
    assert content["held_out"] == [[0.1, 1.0], [0.2, None]]
    assert content["heats"][0]["loss"] is None
    assert found.plot().get_legend() is not None


@pytest.mark.parametrize("losses", [[], [math.nan] * 30, [-5.0] * 30, [0.0] * 30, [1e30, *[1.0] * 29]])
@pytest.mark.parametrize("stop_reason", ["completed", "diverged", "non_finite", "overflow"])
def test_any_result_can_be_looked_at(losses, stop_reason):
    rates = [10 ** (-index / 5) for index in range(len(losses), 0, -1)]
    found = LRFinderResult.of(Sweep(rates, losses, stop_reason, []), "one_cycle")
    assert found.status in str(found)
    assert "data:image/png" in found._repr_html_()
    assert json.loads(found.to_json())["suggestion"] == found.suggestion


def test_a_rate_that_was_not_found_is_not_trained_with(net, loader):
    trainer = make(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    found = trainer.find_lr(loader, start_lr=1e-9, end_lr=1e-7, num_steps=30)
    assert found.suggestion is None
    assert found.status == "no_signal"
    with pytest.raises(ValueError, match="no rate to suggest"):
        trainer.fit(loader, lr=found)
    assert trainer.step == 0
    assert found.plot().get_title(loc="left").endswith("no signal")


def test_ratios_between_groups_are_kept_in_the_sweep(net, loader):
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[1:].parameters(), "lr": 0.01}]
    seen = []

    class Watching(Trainer):
        def training_step(self, batch):
            seen.append(self.optimizer.learning_rates)
            return super().training_step(batch)

    trainer = Watching(net, nn.CrossEntropyLoss(), torch.optim.SGD(groups), device="cpu", progress=False)
    found = trainer.find_lr(loader, num_steps=20)
    assert [first for first, _ in seen] == pytest.approx(found.rates)
    assert [second / first for first, second in seen] == pytest.approx([0.1] * len(seen))


def test_one_optimizer_step_a_rate_with_accumulation(net, two_moons):
    calls = []

    class Watching(Trainer):
        def training_step(self, batch):
            calls.append(self.optimizer.learning_rate)
            return super().training_step(batch)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Watching(net, nn.CrossEntropyLoss(), optimizer, accumulate=4, device="cpu", progress=False)
    found = trainer.find_lr(DataLoader(two_moons, 16), end_lr=1e-3, num_steps=30)
    assert len(found.rates) == 30
    assert calls == pytest.approx([rate for rate in found.rates for _ in range(4)])


def test_a_step_that_fp16_skips_is_tried_again(net, loader):
    trainer = make(net, precision="fp16")
    trainer.engine.load_state_dict({**trainer.engine.state_dict(), "scale": 2.0**40})
    found = trainer.find_lr(loader, start_lr=1e-5, end_lr=1e-3, num_steps=30)
    assert len(found.rates) == 30
    assert trainer.engine.state_dict()["scale"] == 2.0**40


def test_a_loss_that_is_not_finite_ends_the_sweep(net, loader):
    losses = iter([*[1.0] * 25, float("nan")])

    class Breaking(Trainer):
        def training_step(self, batch):
            return super().training_step(batch).loss * next(losses)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Breaking(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = trainer.find_lr(loader, end_lr=1e-3, num_steps=60)
    assert found.stop_reason == "non_finite"
    assert len(found.losses) == len(found.rates) == 25


def test_no_file_is_written(net, loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    make(net).find_lr(loader, num_steps=20)
    assert not list(tmp_path.iterdir())
