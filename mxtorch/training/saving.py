"""The parts of a checkpoint of a trainer: how they are collected and written, loaded, and resumed from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mxtorch._checks import level_of_user, local_path
from mxtorch.checkpointing import contents, file, sharded
from mxtorch.checkpointing.contents import Contents
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.checkpointing.resume import CheckpointFolder, compare, fingerprint_of, newest_of, ordinal_of, place_in
from mxtorch.checkpointing.serialization import Attributes, frozen
from mxtorch.optim import schedule_free
from mxtorch.training.callback import CallbackList, put
from mxtorch.training.context import Context
from mxtorch.training.history import History
from mxtorch.training.restart import for_process, own_parts
from mxtorch.training.run import Position, Run
from mxtorch.training.step import StepSettings


@dataclass(frozen=True)
class Saving:
    """The parts of a trainer that a checkpoint holds, and the ways into a checkpoint and back.

    Attributes:
        context: Model, loss, optimizers, engine.
        callbacks: The callbacks, whose states are saved.
        history: The figures of all runs.
        position: The counts of steps and epochs.
        attributes: What steps change in modules besides parameters and buffers.
        train_metrics: The metrics of training, whose state within an epoch is saved with the run.
    """

    context: Context
    callbacks: CallbackList
    history: History
    position: Position
    attributes: Attributes
    train_metrics: Any

    def content(self, run: Run | None) -> dict[str, Any]:
        """Everything that a checkpoint holds, copied: later steps do not change it.

        Raises:
            TypeError: A callback, scheduler or loader has a state that no file can hold; its place is named.
        """
        with self.callbacks.judged_weights() as trained:
            content = self._parts().collect()
            if run is None:
                return self._with_processes(content | {"run": None})
            place = run.state_dict() | {"trained_weights": trained}
            fingerprint = place.pop("fingerprint")  # plain, and the same all through the run: it needs no copy
            content["run"] = {**frozen(place, "run"), "fingerprint": fingerprint}
        return self._with_processes(content)

    def _with_processes(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content; of several processes, with the parts that each process has of its own."""
        engine = self.context.engine
        if engine.world_size > 1:
            content["processes"] = engine.gather_values(own_parts(content))
        return content

    def write(self, path: str | Path, run: Run | None) -> None:
        """Write the content into a file, or into a folder if the model is sharded.

        Raises:
            OSError: The file can't be written; an older file at `path` is untouched.
        """
        path, engine = local_path(path, "path"), self.context.engine
        content = self.content(run)
        if engine.shards:
            plain, tensors = sharded.split(content)
            sharded.write(path, plain, tensors, engine.file_group(), is_main=engine.is_main)
        elif engine.is_main:
            file.write(path, content)

    def load(self, path: str | Path) -> None:
        """Restore everything except the position in a run.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is not a checkpoint, is damaged, or is of another model or optimizer; nothing has
                changed then.
        """
        path = local_path(path, "path")
        self._apply(contents.read(path), path, None)
        self.position.broken_off = False  # the next call of fit is a new run

    def resume(self, run: Run, saved: dict[str, Any], path: str | Path) -> None:
        """Restore everything, and the position of the run.

        Args:
            run: The run that continues.
            saved: The content of the checkpoint.
            path: The file, for messages.

        Raises:
            CheckpointError: The checkpoint is of another model, optimizer or schedule, or of other data; nothing has
                changed then.
        """
        changed = self._apply(saved, path, run)
        self.callbacks.call("on_resume")
        if changed:
            warnings.warn(
                f"The run goes on, but not bit for bit as it would have: {'; '.join(changed)}.",
                stacklevel=level_of_user(),
            )

    def go_on(self, run: Run, path: str | Path, checkpoints: Sequence[CheckpointFolder]) -> Path | None:
        """Take a run to the position of its checkpoint; returns the file, or None if the run begins at its start.

        Args:
            run: The run, before its start.
            path: The checkpoint, or `"auto"` for the newest one.
            checkpoints: The folders in which `"auto"` looks.

        Raises:
            CheckpointError: The checkpoint is damaged, or of another run; nothing has changed then.
        """
        if path != "auto":
            found = local_path(path, "resume")
            saved = contents.read(found)
        else:
            newest = newest_of(checkpoints)
            if newest is None:
                return None
            found, saved = newest
            ordinal = ordinal_of(saved, found)
            if ordinal < run.ordinal:  # the file is of an earlier call of fit: this call had not saved yet
                return None
            if ordinal > run.ordinal:  # the file is of a later call of fit, which will load it
                run.pass_over()
                return None
        self.resume(run, saved, found)
        return found

    def _parts(self) -> Contents:
        """All parts except the run, which `fit` must make before its state can be loaded."""
        context = self.context
        parts: dict[str, contents.Stateful] = {"model": contents.module_part(context.model, "model")}
        if isinstance(context.loss, nn.Module) and context.loss.state_dict():
            parts["loss"] = contents.module_part(context.loss, "loss")
        return Contents(
            parts
            | {
                "trainable": contents.trainable_part(context.model),
                "attributes": self.attributes,
                "optimizer": contents.optimizer_part(context.optimizer),
                "other_optimizers": contents.optimizers_part(context.other_optimizers),
                "engine": context.engine,
                "callbacks": self.callbacks,
                "position": self.position,
                "random": contents.random_part(),
                "history": self.history,
            }
        )

    def _apply(self, saved: dict[str, Any], path: str | Path, run: Run | None) -> list[str]:
        """Restore everything, with the position of the run if there is one, or nothing.

        Returns:
            The settings in which the run differs from the saved one, in words.
        """
        engine = self.context.engine
        parameter = next(self.context.model.parameters())
        if sharded.is_sharded(path):
            saved = sharded.fill(saved, Path(path), parameter)
        elif engine.shards:
            raise CheckpointError(
                f"{path} is of a model that was not sharded; load it in a run with strategy='ddp', or load its weights "
                "into the model before the Trainer is made"
            )
        place = saved["run"] if isinstance(saved["run"], dict) else {}
        size = None if run is None else run.fingerprint["batch_size"]
        sizes = (place.get("fingerprint", {}).get("batch_size"), size)
        other_processes: list[str]
        saved, other_processes = for_process(saved, engine.rank, engine.world_size, sizes)
        parts = self._parts()
        undone: list[contents.Stateful] = [parts.parts["callbacks"], parts.parts["trainable"]]
        objects: list[object] = [self.position, self.history, *self.callbacks.of_run]
        if run is not None:
            objects += [run, run.scheduler]
            undone.append(run.scheduler)
        changed: list[str] = []
        with contents.all_or_nothing(path, self.context.capture(), undone, objects):
            if run is None:
                left_over = parts.apply(saved)["callbacks"]
            else:
                place = place_in(saved, path)
                changed = compare(run.fingerprint, place["fingerprint"])
                left_over = parts.apply(saved)["callbacks"]
                self._load_trained_weights(place.get("trained_weights", {}))
                run.load_state_dict(place, self.train_metrics, self.context.engine.device)
        if other_processes and engine.rank:
            seed_everything(torch.initial_seed() + engine.rank)
        return (
            other_processes * (run is not None)
            + changed
            # TensorBoard is the main process's alone.
            + [
                f"{name} has a state in the checkpoint and is not among the callbacks"
                for name in left_over * (not engine.rank)
            ]
        )

    def _load_trained_weights(self, values: dict[str, Any]) -> None:
        """Replace the weights that are judged, which a checkpoint holds as its model, by those that are trained.

        Raises:
            ValueError: An entry does not belong to this model.
        """
        model = self.context.model
        live = model.state_dict()
        for name, value in values.items():
            if name not in live or getattr(value, "shape", None) != getattr(live[name], "shape", None):
                raise ValueError(f"its trained weights have a {name!r} that the model does not have")
        if values:
            schedule_free.set_training_point(self.context.optimizers)
            put(model, values)


def fingerprint(run: Run, context: Context, settings: StepSettings, lr: Any, schedule: Any) -> dict[str, Any]:
    """The settings at the start of a run, which are compared when the run is resumed.

    Args:
        run: The run, before its start.
        context: Model, optimizers and engine; the rate and the schedule of the run are in force.
        settings: How a step is taken.
        lr: The argument `lr` of `fit`.
        schedule: The argument `schedule` of `fit`.
    """
    found = fingerprint_of(
        context.optimizer,
        run.feed.data,
        scheduler=run.scheduler,
        lr=lr,
        given_schedule=schedule,
        precision=context.engine.precision,
        accumulate=str(dict(settings.accumulations)) if settings.accumulate_from else settings.accumulate,
        accumulations=[list(pair) for pair in settings.accumulations],
        steps_per_epoch=run.steps_per_epoch,
        epochs=run.epochs,
        validate_every=run.limits.validate_every,
        val_batches=run.limits.val_batches,
        validation=run.validates if set(run.validation) <= {"val"} else list(run.validation),
        clip_grad_norm=settings.clip_grad_norm,
        device=context.engine.device.type,
        processes=context.engine.world_size,
    )
    # A checkpoint has those of the main process, and where each process reads data of its own, they differ.
    return found | {"samples": context.engine.broadcast(found["samples"])}
