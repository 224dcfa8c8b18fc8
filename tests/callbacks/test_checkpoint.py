from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from mxtorch import Callback
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing.file import CheckpointError


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Figures(Callback):
    """Puts a figure of its own into each epoch's row."""

    def __init__(self, *values):
        self.values = list(values)

    def on_epoch_complete(self, trainer, row):
        row["val/figure"] = self.values.pop(0)


def steps(folder):
    return sorted(int(path.name[5:13]) for path in folder.glob("step-*.ckpt"))


def test_every_so_many_steps_and_at_the_end(make, net, loader, tmp_path):
    make(net, callbacks=[Checkpoint(tmp_path, every=3, keep=100)]).fit(loader, epochs=2)
    assert steps(tmp_path) == [3, 6, 9, 12, 15, 16]


def test_every_epoch(make, net, loader, tmp_path):
    make(net, callbacks=[Checkpoint(tmp_path)]).fit(loader, epochs=3)
    assert steps(tmp_path) == [8, 16, 24]


@pytest.mark.parametrize(
    ("mode", "figures", "best"), [("min", [3, 1, 2, 5, 4], 2), ("max", [3, float("nan"), 5, 1, 2], 3)]
)
def test_the_newest_and_the_best_stay(make, net, loader, tmp_path, mode, figures, best):
    callback = Checkpoint(tmp_path, keep=2, monitor="val/figure", mode=mode)
    make(net, callbacks=[callback, Figures(*map(float, figures))]).fit(loader, loader, epochs=5)
    assert steps(tmp_path) == sorted({8 * best, 32, 40})
    assert os.readlink(tmp_path / "best.ckpt") == f"step-{8 * best:08d}.ckpt"
    assert os.readlink(tmp_path / "last.ckpt") == "step-00000040.ckpt"
    assert callback.best == figures[best - 1]


@pytest.mark.parametrize("small", [0, 10**6])
def test_any_file_is_whole_by_itself(make, net, loader, tmp_path, monkeypatch, small):
    monkeypatch.setattr("mxtorch.callbacks.checkpoint.SMALL_MODEL", small)
    trainer = make(net, callbacks=[Checkpoint(tmp_path)])
    trainer.fit(loader, loader, epochs=2)
    again = make(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)))
    again.load(tmp_path / "best.ckpt")
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert {"model", "optimizer", "random", "history", "run", "versions", "callbacks"} <= content.keys()


def test_the_folder_is_in_log_dir_unless_it_is_given(make, net, loader, tmp_path):
    with pytest.raises(ValueError, match="folder: Checkpoint was given none"):
        make(net, callbacks=[Checkpoint()]).fit(loader)
    trainer = make(net, callbacks=[Checkpoint()], log_dir=tmp_path / "run")
    trainer.fit(loader)
    trainer.close()
    assert steps(tmp_path / "run" / "checkpoints") == [8]


def test_two_fits_of_one_trainer_share_the_folder(make, net, loader, tmp_path):
    trainer = make(net, callbacks=[Checkpoint(tmp_path)])
    trainer.fit(loader)
    trainer.fit(loader)
    assert steps(tmp_path) == [8, 16]


def test_it_comes_after_the_other_callbacks(make, net, loader, tmp_path):
    class Count(Callback):
        count = 0

        def on_step(self, trainer):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

    make(net, callbacks=[Checkpoint(tmp_path, every=5), Count()]).fit(loader)
    assert ["Count", {"count": 5}] in torch.load(tmp_path / "step-00000005.ckpt", weights_only=True)["callbacks"]


def test_links_are_copies_where_there_are_no_links(make, net, loader, tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError("no privilege")

    monkeypatch.setattr("os.symlink", none)
    make(net, callbacks=[Checkpoint(tmp_path)]).fit(loader, epochs=2)
    assert (tmp_path / "last.ckpt").read_bytes() == (tmp_path / "step-00000016.ckpt").read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))


def test_planted_symlinks_are_not_followed(make, net, loader, tmp_path):
    """Not for the file, the link to the last one, or the lock."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    for name in ("last.ckpt", "best.ckpt", "step-00000008.ckpt"):
        (folder / name).symlink_to(victim)
    make(net, callbacks=[Checkpoint(folder)]).fit(loader, loader)
    assert victim.read_text() == "precious"
    assert os.readlink(folder / "last.ckpt") == "step-00000008.ckpt"
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").symlink_to(victim)
    with pytest.raises(ValueError, match="can't be written"):
        make(net, callbacks=[Checkpoint(other)]).fit(loader)
    assert victim.read_text() == "precious"


def test_what_a_killed_process_left_is_cleared_away(make, net, loader, tmp_path):
    (tmp_path / ".step-00000003.ckpt.0123.tmp").touch()
    (tmp_path / ".theirs.tmp").touch()
    make(net, callbacks=[Checkpoint(tmp_path)]).fit(loader)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".lock", ".theirs.tmp"]


def test_a_state_that_no_file_can_hold_is_named(make, net, loader, tmp_path):
    class Bad(Callback):
        def state_dict(self):
            return {"model": {"function": print}}

    with pytest.raises(TypeError, match=r"\['model'\]\['function'\] is a builtin_function_or_method"):
        make(net, callbacks=[Bad(), Checkpoint(tmp_path)]).fit(loader)
    assert steps(tmp_path) == []


def test_going_back_sets_the_newer_files_aside(make, net, loader, tmp_path):
    make(net, callbacks=[Checkpoint(tmp_path, every=4)]).fit(loader, epochs=2)
    make(net, callbacks=[Checkpoint(tmp_path, every=4)]).fit(loader, epochs=2, resume=tmp_path / "step-00000008.ckpt")
    assert steps(tmp_path) == [8, 12, 16]
    assert len(list(tmp_path.glob("*.aside"))) == 2


def test_a_new_run_after_load_sets_the_way_that_was_given_up_aside(make, net, loader, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "kept.ckpt"
    trainer = make(net, callbacks=[Checkpoint(folder, every=4, keep=2)])
    trainer.fit(loader, loader)
    trainer.save(file)
    trainer.fit(loader, loader, epochs=3)
    assert steps(folder)[-2:] == [28, 32]
    trainer.load(file)
    with pytest.raises(ValueError, match="the first batch"):
        trainer.fit([(torch.ones(2, 3), torch.ones(2))])
    assert steps(folder)[-2:] == [28, 32], "nothing was trained, nothing is set aside"
    trainer.fit(loader, epochs=2)
    assert trainer.step == 24
    assert steps(folder)[-2:] == [20, 24]
    assert (folder / "last.ckpt").resolve().name == "step-00000024.ckpt"
    assert Checkpoint(folder).newest()[1]["position"]["step"] == 24
    assert {"step-00000028.ckpt.aside", "step-00000032.ckpt.aside"} <= {path.name for path in folder.iterdir()}


def test_links_do_not_point_to_what_was_set_aside(make, net, loader, tmp_path):
    trainer = make(net, callbacks=[Checkpoint(tmp_path / "run", every=4, keep=9)])
    trainer.save(tmp_path / "kept.ckpt")
    trainer.fit(loader, loader)
    trainer.load(tmp_path / "kept.ckpt")
    seen = []

    class Look(Callback):
        def on_step(self, trainer):
            seen.append([(tmp_path / "run" / name).is_symlink() for name in ("last.ckpt", "best.ckpt")])

    trainer.callbacks.callbacks.append(Look())
    trainer.fit(loader)
    assert seen[0] == [False, False]


def test_an_unknown_figure_is_told(make, net, loader, tmp_path):
    with pytest.raises(ValueError, match="fit was given no val_data"):
        make(net, callbacks=[Checkpoint(tmp_path, monitor="val/accuracy")]).fit(loader)
    with pytest.raises(ValueError, match="did you mean 'val/loss'"):
        make(net, callbacks=[Checkpoint(tmp_path, monitor="val/los")]).fit(loader, loader)


def test_there_is_none(tmp_path):
    assert Checkpoint(tmp_path / "absent").newest() is None
    (tmp_path / "step-00000001.ckpt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpoint(tmp_path).newest()
