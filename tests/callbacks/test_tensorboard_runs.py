"""What is in the event files: runs that are resumed, repeated, searched and forgotten."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import time
import types
from collections import Counter

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import Callback, ScheduledOptim, Trainer
from mxtorch.callbacks import Checkpoint, TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


@pytest.fixture(autouse=True)
def _seconds_between_files(monkeypatch):
    """Event files are read in the order of their names, which begin with the second: as if none began in the same."""
    later = itertools.count()
    clock = types.SimpleNamespace(time=lambda: time.time() + next(later))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)


def trainer_of(log_dir, *callbacks, **options):
    torch.manual_seed(0)
    net = nn.Linear(8, 2)
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1))
    options = {"device": "cpu", "progress": False, "log_every": 1, "callbacks": callbacks} | options
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, log_dir=log_dir, **options)


def scalars(folder):
    """The steps of each tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def runs(log_dir):
    return {str(path.parent.relative_to(log_dir)) for path in log_dir.rglob("events.out.tfevents.*")}


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.step == self.step:
            raise MemoryError("killed")


@pytest.mark.parametrize("every", [3, "epoch"])
@pytest.mark.parametrize("killed", [2, 5, 13, 23])
@pytest.mark.parametrize("explicit", [False, True])
def test_no_step_is_drawn_twice_after_a_resume(loader, tmp_path, every, killed, explicit):
    log_dir = tmp_path / "log"
    with pytest.raises(MemoryError):
        trainer_of(log_dir, Checkpoint(every=every), Kill(killed)).fit(loader, loader, epochs=3, resume="auto")
    if not (log_dir / "checkpoints" / "last.ckpt").exists():
        return
    resume = log_dir / "checkpoints" / "last.ckpt" if explicit else "auto"
    trainer = trainer_of(log_dir, Checkpoint(every=every))
    trainer.fit(loader, loader, epochs=3, resume=resume)
    trainer.close()
    assert runs(log_dir) == {"."}
    found = scalars(log_dir)
    assert found["train/loss"] == list(range(1, 25))
    assert found["val/loss"] == [8, 16, 24]


def test_no_step_is_drawn_twice_after_a_rollback(two_moons, tmp_path):
    bad = iter([False] * 13 + [True] + [False] * 100)

    class Loss(nn.Module):
        def forward(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets) * (
                float("nan") if outputs.requires_grad and next(bad) else 1
            )

    net = nn.Linear(8, 2)
    trainer = Trainer(
        net,
        Loss(),
        torch.optim.SGD(net.parameters(), lr=0.1),
        log_dir=tmp_path / "log",
        callbacks=[Checkpoint(every=4)],
        on_nonfinite="rollback",
        device="cpu",
        progress=False,
        log_every=1,
    )
    with pytest.warns(UserWarning, match="Rolled back"):
        trainer.fit(DataLoader(two_moons, 32), epochs=2)
    trainer.close()
    assert scalars(tmp_path / "log")["train/loss"] == list(range(1, 17))


@pytest.mark.parametrize("number", [2, 3])
def test_each_search_has_an_axis_of_its_own(loader, tmp_path, number):
    trainer = trainer_of(tmp_path)
    lengths = [len(trainer.find_lr(loader, num_steps=20 + 5 * index, method="sweep").rates) for index in range(number)]
    trainer.fit(loader)
    trainer.close()
    names = ["lr_finder", "lr_finder-2", "lr_finder-3"][:number]
    assert runs(tmp_path) == {".", *names}
    assert [len(scalars(tmp_path / name)["lr_finder_loss_over_1000_log10_rate/training"]) for name in names] == lengths
    assert not any(tag.startswith("lr_finder") for tag in scalars(tmp_path))


def test_a_search_in_another_process_has_an_axis_of_its_own_too(loader, tmp_path):
    for _ in range(2):
        trainer_of(tmp_path).find_lr(loader, num_steps=20, method="sweep")
    assert runs(tmp_path) == {"lr_finder", "lr_finder-2"}


def test_a_second_run_gets_a_folder_of_its_own(loader, tmp_path, capsys):
    for epochs in (1, 2, 3):
        trainer = trainer_of(tmp_path, progress=True)
        trainer.fit(loader, epochs=epochs)
        trainer.close()
    assert runs(tmp_path) == {".", "run-2", "run-3"}
    assert [len(scalars(tmp_path / name)["train/loss"]) for name in (".", "run-2", "run-3")] == [8, 16, 24]
    assert "has events of another run; this one is written to" in capsys.readouterr().out


def test_two_runs_at_the_same_time(loader, tmp_path):
    first, second = trainer_of(tmp_path), trainer_of(tmp_path)
    for _ in range(2):
        first.fit(loader)
        second.fit(loader)
    first.close()
    second.close()
    assert runs(tmp_path) == {".", "run-2"}
    assert scalars(tmp_path)["train/loss"] == scalars(tmp_path / "run-2")["train/loss"] == list(range(1, 17))


def test_a_second_run_that_is_resumed_goes_on_in_its_own_folder(loader, tmp_path):
    log, checkpoints = tmp_path / "log", tmp_path / "checkpoints"
    trainer_of(log).fit(loader)
    for epochs in (1, 3):
        trainer = trainer_of(log, Checkpoint(checkpoints))
        trainer.fit(loader, epochs=epochs, resume="auto")
        trainer.close()
    assert runs(log) == {".", "run-2"}
    assert scalars(log / "run-2")["train/loss"] == list(range(1, 25))


def test_a_finished_script_that_is_started_again_writes_nothing_anew(loader, tmp_path):
    for _ in range(2):
        trainer = trainer_of(tmp_path, Checkpoint())
        for _ in range(2):
            trainer.fit(loader, loader, resume="auto")
        trainer.close()
    assert runs(tmp_path) == {"."}
    assert max(Counter(scalars(tmp_path)["train/loss"]).values()) == 1


def test_a_second_fit_and_a_closed_trainer_go_on_in_the_same_run(loader, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.fit(loader)
    trainer.close()
    trainer.fit(loader)
    trainer.close()
    assert runs(tmp_path) == {"."}
    assert scalars(tmp_path)["train/loss"] == list(range(1, 17))


def test_no_thread_is_left_by_trainers_that_nobody_closes(loader, tmp_path):
    gc.collect()  # those of other tests
    before = set(threading.enumerate())
    trainers = [trainer_of(tmp_path / str(index)) for index in range(5)]
    assert set(threading.enumerate()) <= before, "a trainer that has nothing to write has no thread"
    trainers[0].fit(loader)
    assert not set(threading.enumerate()) <= before
    del trainers
    gc.collect()
    assert set(threading.enumerate()) <= before
    assert scalars(tmp_path / "0")["train/loss"] == list(range(1, 9))


def test_a_run_that_is_resumed_with_another_log_dir_leaves_what_is_there(loader, tmp_path):
    trainer_of(tmp_path / "other").fit(loader)
    trainer = trainer_of(tmp_path / "log", Checkpoint(tmp_path / "c"))
    trainer.fit(loader, epochs=1)
    trainer = trainer_of(tmp_path / "other", Checkpoint(tmp_path / "c"))
    trainer.fit(loader, epochs=2, resume="auto")
    trainer.close()
    assert scalars(tmp_path / "other")["train/loss"] == list(range(1, 9))
    assert scalars(tmp_path / "other" / "run-2")["train/loss"] == list(range(9, 17))


def test_a_run_that_was_killed_between_two_logs(loader, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(MemoryError):
        trainer_of(log, Checkpoint(every=3), Kill(6), log_every=5).fit(loader, epochs=2, resume="auto")
    (log / "checkpoints" / "step-00000006.ckpt").unlink(missing_ok=True)
    trainer = trainer_of(log, Checkpoint(every=3), log_every=5)
    trainer.fit(loader, epochs=2, resume="auto")
    trainer.close()
    assert runs(log) == {"."}
    assert scalars(log)["train/loss"] == [5, 8, 10, 15, 16]


def test_what_is_loaded_goes_on_without_drawing_twice(loader, tmp_path):
    trainer = trainer_of(tmp_path / "log")
    trainer.fit(loader)
    trainer.save(tmp_path / "x.ckpt")
    trainer.fit(loader)
    trainer.load(tmp_path / "x.ckpt")
    trainer.fit(loader)
    trainer.close()
    assert runs(tmp_path / "log") == {"."}
    assert scalars(tmp_path / "log")["train/loss"] == list(range(1, 17))


def test_a_copy_is_a_run_of_its_own(loader, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.fit(loader)
    twin = copy.deepcopy(trainer)
    twin.fit(loader)
    trainer.fit(loader)
    for one in (trainer, twin):
        one.close()
    assert runs(tmp_path) == {".", "run-2"}
    assert scalars(tmp_path)["train/loss"] == list(range(1, 17))


def test_a_folder_that_can_not_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"log_dir: .* can't be written"):
        TensorBoard(tmp_path / "file" / "log")
