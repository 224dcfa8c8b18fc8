"""Disks, folders, files, workers, data, clocks and signals that fail: no run is lost, and what went wrong is said."""

from __future__ import annotations

import errno
import os
import random
import signal
import time

import faulty_run
import pytest
import torch
from torch.utils.data import DataLoader

from mxtorch import Callback
from mxtorch.callbacks import Checkpoint
from mxtorch.checkpointing.file import CheckpointError


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes that are started: sums of several threads differ in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def fit(folder, *, data=None, resume="auto", epochs=faulty_run.EPOCHS, every=1, callbacks=(), **options):
    trainer = faulty_run.build(folder, every=every, callbacks=callbacks, **options)
    train, val = faulty_run.loaders()
    trainer.fit(data or train, val, epochs=epochs, lr=0.05, schedule="one_cycle", resume=resume)
    return trainer


def checkpoint_of(trainer) -> Checkpoint:
    return next(callback for callback in trainer.callbacks.callbacks if isinstance(callback, Checkpoint))


def result(trainer, path):
    torch.save(faulty_run.everything(trainer), path)
    return path


class StopAt(Callback):
    """Ends the run with an error after a step."""

    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        if trainer.step == self.at:
            raise InterruptedError("the machine is gone")


@pytest.fixture
def broken(tmp_path, fast):
    """A folder with the checkpoints of step 15, the best, 17, 18 and 19, and the result of the run never broken."""
    whole = result(fit(tmp_path / "whole"), tmp_path / "whole.pt")
    with pytest.raises(InterruptedError):
        fit(tmp_path / "run", callbacks=[StopAt(20)])
    return tmp_path / "run", whole


DAMAGE = {
    "truncated": lambda content, chance: content[: chance.randrange(len(content))],
    "empty": lambda content, chance: b"",
    "one bit": lambda content, chance: flipped(content, chance, 1),
    "many bits": lambda content, chance: flipped(content, chance, 50),
    "zeros at the end": lambda content, chance: content[: len(content) // 2] + bytes(len(content) // 2),
    "another file": lambda content, chance: b"GIF89a" + content[6:],
}


def flipped(content, chance, count):
    """Bits of tensors and of the structure; those of the padding between records mean nothing."""
    changed = bytearray(content)
    start = content.index(b"data.pkl") + 100
    for _ in range(count):
        changed[chance.randrange(start, start + 2000)] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_last_good_one_taken(broken, kind, tmp_path):
    folder, whole = broken
    newest = folder / "step-00000019.ckpt"
    newest.write_bytes(DAMAGE[kind](newest.read_bytes(), random.Random(1)))
    with pytest.warns(UserWarning, match=r"Going on from .*step-00000018\.ckpt, the newest whole one: .*00000019"):
        trainer = fit(folder)
    assert faulty_run.same(result(trainer, tmp_path / "resumed.pt"), whole)
    assert (folder / "step-00000019.ckpt.aside").exists()


def test_when_all_are_damaged_it_is_told_and_nothing_begins(broken):
    folder, _ = broken
    for path in folder.glob("step-*"):
        path.write_bytes(path.read_bytes()[:1000])
    trainer = faulty_run.build(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        trainer.fit(*faulty_run.loaders(), resume="auto")
    assert trainer.step == 0


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_write_that_fails_names_its_cause_and_leaves_the_run_whole(tmp_path, monkeypatch, call, number, fast):
    whole = result(fit(tmp_path / "whole"), tmp_path / "whole.pt")
    folder = tmp_path / "run"
    original, calls = getattr(os, call), []

    def failing(*arguments, **named):
        calls.append(1)
        if len(calls) > 8:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        trainer = faulty_run.build(folder, every=1)
        with pytest.raises(OSError, match=os.strerror(number)):
            trainer.fit(*faulty_run.loaders(), epochs=faulty_run.EPOCHS, lr=0.05, schedule="one_cycle")
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    assert not list(folder.glob(".*.tmp"))
    resumed = fit(folder)
    assert faulty_run.same(result(resumed, tmp_path / "resumed.pt"), whole)


@pytest.mark.parametrize("small", [0, 10**6])
def test_a_full_disk(tmp_path, monkeypatch, fast, small):
    """A limit on the size of files: the system itself refuses to write, in the midst of a file."""
    monkeypatch.setattr("mxtorch.callbacks.checkpoint.SMALL_MODEL", small)
    resource = pytest.importorskip("resource")

    def limited(folder):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        trainer = faulty_run.build(folder, every=1)
        trainer.fit(*faulty_run.loaders(), epochs=1)  # as many files as there are steps
        size = max(path.stat().st_size for path in folder.glob("step-*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 5000, size - 5000))
        try:
            trainer.fit(*faulty_run.loaders(), epochs=1)
        except OSError as error:
            told = error.errno == errno.EFBIG and "while writing" in str(error) and "step-000000" in str(error)
            raise SystemExit(7 if told else 8) from None

    process = faulty_run.start(limited, tmp_path / "run")
    process.join(60)
    assert process.exitcode == 7
    assert not list((tmp_path / "run").glob(".*.tmp"))
    trainer = faulty_run.build(tmp_path / "run")
    assert checkpoint_of(trainer).newest()[1]["position"]["step"] == 15


def test_a_folder_that_can_not_be_written_is_told_before_training(tmp_path, monkeypatch):
    def read_only(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    trainer = faulty_run.build(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(ValueError, match=r"folder: .* can't be written \(.*Permission denied"):
            trainer.fit(*faulty_run.loaders())
    assert trainer.step == 0
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"folder: .* can't be written"):
        fit(tmp_path / "file")


def test_two_runs_in_one_folder(tmp_path, monkeypatch, fast):
    class Second(Callback):
        def on_step(self, trainer):
            if trainer.step == 3:
                fit(tmp_path, epochs=1)

    with pytest.raises(ValueError, match="another run writes its checkpoints"):
        fit(tmp_path, callbacks=[Second()])

    def hold(folder):
        class Wait(Callback):
            def on_step(self, trainer):
                (tmp_path / "holding").touch()
                time.sleep(60)

        fit(folder, callbacks=[Wait()])

    process = faulty_run.start(hold, tmp_path / "other")
    while not (tmp_path / "holding").exists():
        assert process.is_alive()
        time.sleep(0.05)
    monkeypatch.setattr("mxtorch.callbacks.checkpoint.LOCK_SECONDS", 0.2)
    try:
        with pytest.raises(ValueError, match="another run writes its checkpoints"):
            fit(tmp_path / "other")
    finally:
        process.kill()
        process.join()
    fit(tmp_path / "other", epochs=1)  # the dead one's lock is gone


def test_a_new_run_does_not_write_over_an_older_one(broken):
    folder, _ = broken
    with pytest.raises(
        ValueError, match=r"checkpoints of an earlier run, as step-00000019\.ckpt; fit\(resume='auto'\)"
    ):
        fit(folder, resume=None)
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert kept == [f"step-{step:08d}.ckpt" for step in (15, 17, 18, 19)]  # the best, and the newest three


class FailsOnce(faulty_run.Noisy):
    """Raises for one item in a thousand."""

    def __init__(self, at):
        super().__init__()
        self.left = at
        self.fails = True

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0 and self.fails:
            raise OSError("the file is gone")
        return super().__getitem__(index)


class Dies(faulty_run.Noisy):
    """Takes its worker process with it."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            os._exit(9)
        return super().__getitem__(index)


for _kind in (FailsOnce, Dies):
    _kind.__name__ = "Noisy"  # the data set is the same one, on a bad day


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_raises_once(tmp_path, workers, fast):
    def data(dataset):
        return DataLoader(dataset, 16, shuffle=True, num_workers=workers)

    whole = result(fit(tmp_path / "whole", data=data(faulty_run.Noisy())), tmp_path / "whole.pt")
    with pytest.raises(OSError, match="the file is gone"):
        fit(tmp_path / "run", data=data(FailsOnce(200 if workers else 500)))
    resumed = fit(tmp_path / "run", data=data(faulty_run.Noisy()))
    assert faulty_run.same(result(resumed, tmp_path / "resumed.pt"), whole)


def test_a_worker_that_dies(tmp_path, fast):
    def data(dataset):
        return DataLoader(dataset, 16, shuffle=True, num_workers=1)

    whole = result(fit(tmp_path / "whole", data=data(faulty_run.Noisy())), tmp_path / "whole.pt")
    process = faulty_run.start(fit, tmp_path / "run", data=data(Dies(150)))  # torch tells it wherever the process is
    process.join(60)
    assert process.exitcode == 1
    resumed = fit(tmp_path / "run", data=data(faulty_run.Noisy()))
    assert faulty_run.same(result(resumed, tmp_path / "resumed.pt"), whole)


def test_a_clock_that_jumps(broken, monkeypatch, tmp_path):
    """The newest file has the oldest date, and the time runs backwards meanwhile."""
    folder, whole = broken
    for index, path in enumerate(sorted(folder.glob("step-*"))):
        os.utime(path, (1e9 - index, 1e9 - index))
    now = [4e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    trainer = fit(folder)
    assert faulty_run.same(result(trainer, tmp_path / "resumed.pt"), whole)
    assert checkpoint_of(trainer).newest()[1]["position"]["step"] == faulty_run.STEPS
    assert all(row["seconds"] >= 0 for row in trainer.history.rows)


def test_signals_at_random_moments(tmp_path, request):
    trials = max(request.config.getoption("--kills") // 4, 5)
    chance = random.Random(trials)
    process = faulty_run.start(faulty_run.train, tmp_path / "whole", "plain", result=tmp_path / "whole.pt")
    began = time.monotonic()
    process.join(60)
    seconds = time.monotonic() - began
    ended = 0
    for trial in range(trials):
        folder, out = tmp_path / str(trial), tmp_path / f"{trial}.pt"
        number = chance.choice([signal.SIGTERM, signal.SIGINT])
        process = faulty_run.start(faulty_run.train, folder, "plain", result=out)
        process.join(chance.uniform(0.3, 1) * seconds)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode in (0, {signal.SIGTERM: 143, signal.SIGINT: 130}[number], -signal.SIGTERM)
        ended += process.exitcode != 0
        if process.exitcode != 0:
            process = faulty_run.start(faulty_run.train, folder, "plain", result=out)
            process.join(60)
        assert process.exitcode == 0
        assert faulty_run.same(out, tmp_path / "whole.pt")
    assert ended
