"""Checkpoints while training: written beside it, the newest and the best kept."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import threading
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mxtorch._checks import check_integer, closest, local_path
from mxtorch.checkpointing import sharded
from mxtorch.checkpointing.contents import read
from mxtorch.checkpointing.file import CheckpointError, FolderLock, link, packed, write
from mxtorch.engines.base import Engine
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.monitor import Direction, Mode, check_mode, direction
from mxtorch.training.trainer_view import TrainerView

_NAME = re.compile(r"step-(\d{8,})\.ckpt")
# A run that was told to end saves first, while the next one starts.
LOCK_SECONDS = 5.0
# Parameters. Packing a file takes the interpreter again and again. For a small one, handing it to and fro between the
# threads costs the training more than to pack it at once.
SMALL_MODEL = 100_000


class Checkpoint(Callback):
    """Saves all that `fit(resume=...)` needs, in files `step-00000100.ckpt` that are whole or not there.

    `last.ckpt` and `best.ckpt` point to the newest file and to that with the best monitored figure. Files are written
    by a thread beside the training, from a copy. A file that can't be written is an error at the next step, and the
    trainer stays as it is.

    Args:
        folder: Where; `<log_dir>/checkpoints` when left out. It belongs to one run: a second run is refused, also
            while the first one's files are there and `fit` is not told to resume.
        every: Optimizer steps between two checkpoints, or `"epoch"`. A run also saves at its end, after an epoch
            that is the best so far, and when SIGTERM or Ctrl-C ends it.
        keep: So many of the newest stay. The best is kept besides.
        monitor: The figure of the history that tells the best epoch; with the default, runs without validation have
            no best.
        mode: `"min"` or `"max"`: which is better; `"auto"` decides as `EarlyStopping` does.

    Raises:
        ValueError: An argument is off.
        TypeError: `every` or `keep` is no integer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import Checkpoint
        >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(6)]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> callback = Checkpoint("checkpoints", every=4)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[callback], progress=False)
        >>> history = trainer.fit(data, data, epochs=2)
        >>> from pathlib import Path
        >>> Path("checkpoints/step-00000012.ckpt").exists()
        True
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        every: int | Literal["epoch"] = "epoch",
        keep: int = 3,
        monitor: str = "val/loss",
        mode: Mode = "auto",
    ) -> None:
        if isinstance(every, str) and every != "epoch":
            raise ValueError(f"every: got {every!r}; give a number of steps, or 'epoch'")
        if every != "epoch":
            check_integer(every, "every")
        check_integer(keep, "keep")
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor: got {monitor!r}; give the name of a figure of the history, as 'val/loss'")
        self.folder = None if folder is None else local_path(folder, "folder")
        self.every, self.keep, self.monitor, self.mode = every, keep, monitor, check_mode(mode)
        self._direction: Direction = "min"  # settled when a run begins, and with it the metrics
        self.best: float | None = None
        self._best_name: str | None = None
        self._lock: FolderLock | None = None
        self._writing: _Writing | None = None
        self._owner: weakref.ref[TrainerView] | None = None  # weakly: the trainer holds its callbacks
        self._saved: tuple[int, int] | None = None  # the step and the epochs done of the newest file
        self._looks_for_newer = False
        self._begins_at: int | None = None  # the step at which the run begins, until its first step or file
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock of the folder and the thread that writes, which belong to this process."""
        return vars(self) | {"_lock": None, "_writing": None, "_engine": None, "_owner": self._trainer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        owner = state["_owner"]
        vars(self).update(state | {"_owner": None if owner is None else weakref.ref(owner)})

    def _trainer(self) -> TrainerView | None:
        """Whose run was the last."""
        return None if self._owner is None else self._owner()

    # ---------------------------------------------------------------- files that are there

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, newest first: by step, not by the clock, which may jump."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
        return sorted(found, key=_step_of, reverse=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, read; None where there is none. Damaged ones are told and set aside.

        Raises:
            CheckpointError: There are checkpoints, and all are damaged.
        """
        self._finish()
        if self._engine is not None and self._engine.world_size > 1:
            found = self._newest() if self._engine.is_main else None
            path = self._engine.broadcast(None if found is None else found[0])
            return found if found is not None or path is None else (path, read(path))
        return self._newest()

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        damaged: list[str] = []
        for path in self.paths():
            try:
                content = read(path)
            except (CheckpointError, OSError) as error:
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(f"Going on from {path}, the newest whole one: {'; '.join(damaged)}", stacklevel=2)
            return path, content
        if damaged:
            raise CheckpointError(f"no checkpoint in {self.folder} is whole: {'; '.join(damaged)}")
        return None

    # ---------------------------------------------------------------- hooks

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Take the folder."""
        if self.monitor.startswith("val/") and self.monitor != "val/loss" and not current_run(trainer).validates:
            raise ValueError(f"monitor: got {self.monitor!r}, but fit was given no val_data")
        self._direction = direction(self.monitor, self.mode, trainer.metrics, trainer.train_metrics)
        self.locate(trainer)
        assert self.folder is not None
        self._engine, self._begins_at = trainer.engine, None
        self._looks_for_newer = trainer.engine.is_main
        if not trainer.engine.is_main:  # it keeps count of what is saved; the main process has the folder
            self._owner, self._saved = weakref.ref(trainer), None
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.folder, LOCK_SECONDS)
        except OSError as error:
            raise ValueError(f"folder: {str(self.folder)!r} can't be written ({error}); give another folder") from error
        resumes = trainer.run is not None and trainer.run.resumes
        if not resumes and self._trainer() is not trainer and (files := self.paths()):
            lock.release()
            raise ValueError(
                f"folder: {str(self.folder)!r} has checkpoints of an earlier run, as {files[0].name}; "
                "fit(resume='auto') goes on from them; else give another folder, or delete them"
            )
        self._lock, self._owner, self._saved = lock, weakref.ref(trainer), None
        for left in self.folder.glob(".step-*.tmp"):  # of a process that was killed while it wrote
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Note where the run begins, now that a checkpoint may have been loaded."""
        if self._looks_for_newer:
            self._looks_for_newer, self._begins_at = False, trainer.step

    def on_step(self, trainer: TrainerView) -> None:
        """Save if it is time; with the first step, what is newer than its beginning is set aside."""
        if self._begins_at is not None:
            self._set_aside_newer()
        if self._writing is not None and not self._writing.is_alive():
            self._finish()
        if self.every != "epoch" and trainer.step % self.every == 0:
            self.save(trainer)

    def on_epoch_complete(self, trainer: TrainerView, row: Mapping[str, float]) -> None:
        """Save if it is time or the epoch is the best."""
        is_best = self._is_best(trainer, row)
        if is_best or self.every == "epoch":
            self.save(trainer, is_best=is_best)

    def on_validated(self, trainer: TrainerView, figures: Mapping[str, float]) -> None:
        """Save if the weights within the epoch are the best so far."""
        if current_run(trainer).figure(self.monitor) in figures and self._is_best(trainer, figures):
            self.save(trainer, is_best=True)

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Save, and wait for the file."""
        self.save(trainer)
        self._finish()

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Save the state of a run that came to its end; wait for the file; give the folder back."""
        try:
            run = trainer.run
            if run is not None and run.complete and run.ended:
                self._save_end(trainer)
            self._finish()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "best_name": self._best_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the best so far.

        Raises:
            ValueError: It is malformed.
        """
        best, name = state["best"], state["best_name"]
        if not isinstance(best, (float, type(None))) or not (name is None or _NAME.fullmatch(name)):
            raise ValueError(f"the best checkpoint is {name!r}, with {best!r}")
        self.best, self._best_name = best, name

    # ---------------------------------------------------------------- saving

    def locate(self, trainer: TrainerView) -> None:
        """Settle the folder.

        Raises:
            ValueError: None was given, and the trainer has no log_dir either.
        """
        if self.folder is None:
            if trainer.log_dir is None:
                raise ValueError("folder: Checkpoint was given none, and the Trainer has no log_dir; give one of them")
            self.folder = local_path(trainer.log_dir, "log_dir") / "checkpoints"

    def save(self, trainer: TrainerView, *, is_best: bool = False) -> None:
        """Copy the state now, and begin to write it."""
        assert self.folder is not None
        assert trainer.run is not None
        if self._begins_at is not None:
            self._set_aside_newer()
        place = (trainer.step, trainer.run.epochs_done)
        if place == self._saved and not is_best:
            return
        name = f"step-{trainer.step:08d}.ckpt"
        if is_best:
            self._best_name = name
        content = trainer.checkpoint_content()
        if trainer.engine.shards:
            self._finish()
            self._writing = _Writing(self.folder, name, content, self._best_name, self.keep, trainer.engine)
            self._saved = place
            return
        if not trainer.engine.is_main:
            self._saved = place
            return
        is_small = sum(parameter.numel() for parameter in trainer.model.parameters()) <= SMALL_MODEL
        ready = packed(content) if is_small else content
        self._finish()  # one file at a time, so that a slow disk holds the training back and not the memory
        self._writing = _Writing(self.folder, name, ready, self._best_name, self.keep)
        self._saved = place

    def _save_end(self, trainer: TrainerView) -> None:
        """Save the state of a run that is over, with the weights that it leaves in the model.

        The file of the last epoch is that of the end as well, unless a callback has put best weights back since. The
        best file keeps the weights that it is the best for.
        """
        if current_run(trainer).left_best and self._best_name != f"step-{trainer.step:08d}.ckpt":
            self._saved = None
        self.save(trainer)

    def _set_aside_newer(self) -> None:
        """Set aside files of later steps than the one at which the run began: damaged ones, or a way that was given up.

        That way is left by a resume from an older file, and by `Trainer.load` of one before a new run. As the newest
        files, they would be those that stay, and that the next resume takes.
        """
        assert self.folder is not None
        assert self._begins_at is not None
        begins_at, self._begins_at = self._begins_at, None
        newer = [path for path in self.paths() if _step_of(path) > begins_at]
        for path in newer:
            aside = path.with_name(path.name + ".aside")
            if aside.is_dir():  # of a sharded model; a folder does not replace one
                shutil.rmtree(aside)
            os.replace(path, aside)
        if newer:
            names = [path.name for path in self.paths()]
            for pointer, name in (("last.ckpt", names[0] if names else None), ("best.ckpt", self._best_name)):
                if name in names:
                    link(self.folder / pointer, name)
                else:
                    (self.folder / pointer).unlink(missing_ok=True)

    def _finish(self) -> None:
        """Wait for the file that is being written, and raise what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
            if writing.failure is not None:
                self._saved = None
                raise writing.failure

    def _is_best(self, trainer: TrainerView, row: Mapping[str, float]) -> bool:
        run = current_run(trainer)
        monitor = run.figure(self.monitor)
        if monitor not in row:
            if (self.monitor == "val/loss" and not run.validates) or run.leaves_out(monitor):
                return False
            raise ValueError(f"monitor: got {monitor!r}{closest(monitor, row)}")
        value = row[monitor]
        if math.isnan(value):
            return False
        if self.best is None or (value < self.best if self._direction == "min" else value > self.best):
            self.best = float(value)
            return True
        return False


class _Writing(threading.Thread):
    """Writes one checkpoint, then brings links and older files up to date."""

    def __init__(
        self,
        folder: Path,
        name: str,
        content: dict[str, Any] | bytes,
        best: str | None,
        keep: int,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(name=f"writes {name}")
        self.failure: BaseException | None = None
        self._engine = engine  # of a sharded model, which all processes write
        self._group = None if engine is None else engine.file_group()
        self._folder, self._file_name, self._content, self._best, self._keep = folder, name, content, best, keep
        self.start()

    def run(self) -> None:
        try:
            if self._engine is None:
                write(self._folder / self._file_name, self._content)
            else:
                is_main = self._engine.is_main
                plain, tensors = sharded.split(self._content)
                sharded.write(self._folder / self._file_name, plain, tensors, self._group, is_main=is_main)
                if not is_main:
                    return
            link(self._folder / "last.ckpt", self._file_name)
            if self._best is not None and (self._folder / self._best).exists():
                link(self._folder / "best.ckpt", self._best)
            self._delete_old()
        except BaseException as failure:  # told on the training thread
            self.failure = failure
        finally:
            self._content = {}

    def _delete_old(self) -> None:
        found = sorted((path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), key=_step_of)
        for path in found[: -self._keep]:
            if path.name not in (self._best, self._file_name):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])
