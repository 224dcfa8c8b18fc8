from __future__ import annotations

import contextlib
import copy
import os
import time
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import Trainer, schedules
from mxtorch.checkpointing.file import CheckpointError, atomic_file, packed, read, write


def test_training_after_save_and_load_is_bit_identical(two_moons, tmp_path, make, weights):
    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 2))
        return make(net, precision="fp16"), DataLoader(two_moons, 32, shuffle=True)

    trainer, loader = build()
    trainer.fit(loader, epochs=2, lr=0.1, schedule=schedules.OneCycle(40))
    trainer.save(tmp_path / "model.pt")
    trainer.fit(loader, epochs=1)
    again, loader = build()
    again.load(tmp_path / "model.pt")
    again.fit(loader, epochs=1)
    for a, b in zip(weights(again.model), weights(trainer.model), strict=True):
        assert torch.equal(a, b)
    assert again.step == trainer.step
    assert again.history["train/loss"] == trainer.history["train/loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_files_that_are_no_checkpoints_of_this_model_are_refused(net, tmp_path, make, weights):
    make(nn.Linear(8, 3)).save(tmp_path / "other.pt")
    before = weights(net)
    with pytest.raises(ValueError, match="another model"):
        make(net).load(tmp_path / "other.pt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        make(net).load(tmp_path / "plain.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))


def test_a_checkpoint_of_another_optimizer_changes_nothing(make, net, loader, tmp_path, weights):
    groups = [{"params": net[0].parameters()}, {"params": net[1:].parameters()}]
    two = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(groups, lr=0.1), device="cpu", progress=False)
    two.save(tmp_path / "two.pt")
    one = make(net)
    one.fit(loader)
    before = weights(net)
    with pytest.raises(ValueError, match="parameter group"):
        one.load(tmp_path / "two.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))
    assert one.step == 8


def test_a_file_that_can_not_be_written_leaves_the_old_one(make, net, tmp_path, monkeypatch):
    trainer = make(net)
    trainer.save(tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_other_formats_and_missing_parts_are_refused(make, net, loader, tmp_path, weights):
    trainer = make(net)
    trainer.fit(loader)
    trainer.save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    again = make(copy.deepcopy(net))
    before = weights(again.model)
    torch.save({**content, "format_version": 2}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="format version 2, which was never released"):
        again.load(tmp_path / "old.pt")
    for name in ("model", "optimizer", "callbacks", "random", "history"):
        torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "lacking.pt")
        with pytest.raises(CheckpointError, match=f"it has no {name}"):
            again.load(tmp_path / "lacking.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), before, strict=True))
    assert (again.step, again.epoch, len(again.history)) == (0, 0, 0)


def test_a_newer_format_is_named_in_the_error(make, net, tmp_path):
    trainer = make(net)
    trainer.save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**content, "format_version": 99}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="format version 99"):
        trainer.load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError):
        trainer.load(tmp_path / "absent.pt")


def test_an_atomic_file_is_complete_or_missing(tmp_path):
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with contextlib.suppress(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.is_symlink()
    with atomic_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert victim.read_bytes() == b"precious"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "victim"]
    with pytest.raises(FileNotFoundError, match=r"while writing.*absent"), atomic_file(tmp_path / "absent" / "file"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize(("age", "swept"), [(0, False), (3600, True)])
def test_temporary_files_of_killed_processes_are_removed(tmp_path, kind, age, swept):
    path, left = tmp_path / "last.ckpt", tmp_path / f".last.ckpt.{'0' * 16}.tmp"
    other = tmp_path / f".other.ckpt.{'0' * 16}.tmp"
    other.touch()
    if kind == "file":
        left.touch()
    else:
        left.symlink_to("nothing")
    for each in (left, other):
        os.utime(each, (time.time() - age,) * 2, follow_symlinks=False)
    with atomic_file(path) as file:
        file.write(b"whole")
    assert os.path.lexists(left) is not swept
    assert other.exists()


def test_a_file_that_is_being_written_is_not_removed(tmp_path):
    with atomic_file(tmp_path / "file") as first:
        os.utime(first.name, (0, 0))
        with atomic_file(tmp_path / "file") as second:
            second.write(b"second")
        first.write(b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_expanded_tensors_are_written_in_full(tmp_path):
    """A file must not state larger tensors than it holds, so expanded tensors are copied before they are written."""
    expanded = torch.arange(3.0)[:, None].expand(3, 100_000)
    state = OrderedDict(a=expanded)
    state._metadata = {"": {"version": 2}}
    write(tmp_path / "model.ckpt", {"model": state, "again": [expanded, {"x": (expanded, 1)}]})
    content = read(tmp_path / "model.ckpt")
    assert torch.equal(content["model"]["a"], expanded)
    assert content["model"]._metadata == {"": {"version": 2}}
    assert torch.equal(content["again"][1]["x"][0], expanded)
    assert content["again"][1]["x"][0].data_ptr() == content["again"][0].data_ptr()


@pytest.mark.parametrize("way", ["write", "packed"])
def test_saving_more_small_values_than_can_be_read_is_refused(tmp_path, way):
    content = {"values": [[number] for number in range(400_000)]}
    with pytest.raises(ValueError, match=r"can't be written: .* keep many numbers in tensors"):
        write(tmp_path / "model.ckpt", content if way == "write" else packed(content))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["history", "finder", "finder as JSON", "interpretation"])
def test_tables_are_not_written_through_a_planted_link(make, loader, net, tmp_path, writer):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    trainer = make(net)
    path = tmp_path / ("per_class.csv" if writer == "interpretation" else "table")
    path.symlink_to(victim)
    if writer == "interpretation":
        trainer.interpret(loader).to_csv(tmp_path)
    elif writer == "history":
        trainer.fit(loader, epochs=1).to_csv(path)
    else:
        found = trainer.find_lr(loader, training_steps=12, num_steps=36)
        (found.to_csv if writer == "finder" else found.to_json)(path)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert len(path.read_text().splitlines()) > 1
