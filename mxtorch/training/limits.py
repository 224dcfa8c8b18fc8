"""Where a run ends before its epochs are over, and how often and on how much it validates."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mxtorch._checks import check_data, check_integer, number
from mxtorch.data.sharding import marked
from mxtorch.training.epoch_lengths import EpochLengths

ValidateEvery = int | float | Literal["epoch"]


@dataclass(frozen=True)
class Limits:
    """The limits of a run; see `Trainer.fit` for the meaning of each.

    Attributes:
        max_steps: Optimizer steps; None for no limit.
        max_seconds: Seconds of the wall clock, those before a resume included; None for no limit.
        validate_every: Optimizer steps between two validations, or a part of the epoch below 1; None for validation at
            the end of each epoch alone.
        val_batches: Batches of a validation; None for all.
        steps_alone: Whether `max_steps` alone ends the run, however many epochs that takes.
        over_epochs: Whether the steps of `validate_every` are counted over epochs, whose ends are then not validated;
            `of_run` settles it. None until an epoch is found to be shorter, where their length is not known.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    validate_every: int | float | None = None
    val_batches: int | None = None
    steps_alone: bool = False
    over_epochs: bool | None = False

    @classmethod
    def checked(
        cls,
        epochs: Any,
        max_steps: Any,
        max_time: Any,
        validate_every: Any,
        val_batches: Any,
        *,
        validates: bool,
    ) -> Limits:
        """The limits that arguments of `fit` mean.

        Args:
            epochs: An argument of `fit`, like the next four.
            max_steps: Likewise.
            max_time: Seconds, or a `datetime.timedelta`.
            validate_every: Likewise.
            val_batches: Likewise.
            validates: Whether there are validation data.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: It is out of range, or is for a validation that there is not.
        """
        for argument, given in (("validate_every", validate_every != "epoch"), ("val_batches", val_batches)):
            if given and not validates:
                raise ValueError(f"{argument}: fit was given no val_data; give it, or leave {argument} out")
        return cls(
            None if max_steps is None else check_integer(max_steps, "max_steps"),
            None if max_time is None else _seconds(max_time),
            None if validate_every == "epoch" else _interval(validate_every),
            None if val_batches is None else check_integer(val_batches, "val_batches"),
            epochs is None and max_steps is not None,
        )

    def epochs(self, epochs: int | None, lengths: EpochLengths) -> int:
        """The epochs of the run: as given, else as many as `max_steps` needs, else one.

        Args:
            epochs: As of `fit`.
            lengths: The steps of each epoch; one at least where they are not known.
        """
        if epochs is not None:
            return check_integer(epochs, "epochs")
        return 1 if self.max_steps is None else lengths.epochs_of(self.max_steps)

    def of_run(self, epochs: int, lengths: EpochLengths, *, watches: bool) -> Limits:
        """The limits of a run of so many epochs: one that is shorter than `validate_every` has it counted over epochs.

        Where the length is not known, `after_epoch` settles that; but a scheduler that watches a figure gets it from
        each epoch.

        Args:
            epochs: Its epochs.
            lengths: The steps of each epoch.
            watches: Whether a scheduler is given a figure of each epoch's validation.

        Raises:
            ValueError: A scheduler watches a figure that not every epoch will have.
        """
        every = self.validate_every
        if not isinstance(every, int):
            return self
        shortest = lengths.shortest(epochs)  # it is settled for all epochs how their steps are counted
        if shortest is None:
            return self if watches else dataclasses.replace(self, over_epochs=None)
        if every <= shortest:
            return self
        if watches:
            raise ValueError(
                f"validate_every: got {every}, and an epoch has {shortest} steps, so that there are epochs without a "
                "validation; but the schedule watches a figure of each epoch. Give 'epoch', or another schedule"
            )
        return dataclasses.replace(self, over_epochs=True)

    def after_epoch(self, steps: int) -> Limits:
        """The limits after an epoch of so many steps that the data ended, which may be the first one known."""
        if self.over_epochs is None and self.validate_every is not None and steps < self.validate_every:
            return dataclasses.replace(self, over_epochs=True)
        return self

    def total_steps(self, epochs: int, lengths: EpochLengths) -> int | None:
        """Optimizer steps of the run, as far as they are known.

        Args:
            epochs: Its epochs.
            lengths: The steps of each epoch.

        Raises:
            ValueError: `validate_every` is a part of an epoch whose length is not known.
        """
        self.validation_interval(lengths(0))
        total = None if self.steps_alone else lengths.total(epochs)
        if total is None or self.max_steps is None:
            return self.max_steps if total is None else total
        return min(total, self.max_steps)

    def validation_interval(self, steps_per_epoch: int | None) -> int | None:
        """Optimizer steps between two validations within an epoch; None for none.

        Args:
            steps_per_epoch: Steps of the epoch; None where the data have no length.

        Raises:
            ValueError: The interval is a part of an epoch whose length is not known.
        """
        every = self.validate_every
        if isinstance(every, float):
            if steps_per_epoch is None:
                raise ValueError(
                    f"validate_every: got {every:g}, a part of an epoch whose length is not known; give a number of "
                    "steps, or fit steps_per_epoch"
                )
            return max(round(every * steps_per_epoch), 1)
        return every


NO_LIMITS = Limits()


class FirstBatches:
    """The first batches of data, for a look at a part of them.

    Example:
        >>> list(FirstBatches([1, 2, 3], 2))
        [1, 2]
    """

    def __init__(self, data: Iterable[Any], count: int) -> None:
        self._data = data
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(marked(self._data), self._count)


def validation_sets(val_data: Any, *, passes: int) -> dict[str, Iterable[Any]]:
    """Validation data by the prefix of their figures: one set is `val`, several are `val/<name>`; none for None.

    Args:
        val_data: One set, or several by name.
        passes: How often each is read.

    Raises:
        TypeError: A set can't be iterated over, or a name is no text.
        ValueError: There is no set, a set is empty, or a name is empty or has a slash.
    """
    if val_data is None:
        return {}
    if not isinstance(val_data, Mapping):
        check_data(val_data, "val_data", passes=passes)
        return {"val": val_data}
    if not val_data:
        raise ValueError("val_data: got no set; give at least one by name, or None")
    for name, data in val_data.items():
        if not isinstance(name, str):
            raise TypeError(f"val_data: got {name!r} as the name of a set; give a text")
        if not name or "/" in name:
            raise ValueError(f"val_data: got {name!r} as the name of a set; give a name without a slash")
        check_data(data, f"val_data[{name!r}]", passes=passes)
    return {f"val/{name}": data for name, data in val_data.items()}


def first_set(val_data: Any) -> Any:
    """The first of several validation sets; one set as it is."""
    return next(iter(val_data.values()), None) if isinstance(val_data, Mapping) else val_data


def figure_of(monitor: str, prefixes: Iterable[str]) -> str:
    """The name in the rows of a figure that is watched: with several validation sets that of the first one.

    Args:
        monitor: As `val/loss`, or with the name of a set, `val/<name>/loss`.
        prefixes: Of the validation sets.

    Example:
        >>> figure_of("val/loss", ["val/clean", "val/noisy"]), figure_of("val/noisy/loss", ["val/clean", "val/noisy"])
        ('val/clean/loss', 'val/noisy/loss')
    """
    sets = list(prefixes)
    if not monitor.startswith("val/") or not sets or any(monitor.startswith(f"{prefix}/") for prefix in sets):
        return monitor
    return f"{sets[0]}/{monitor.removeprefix('val/')}"


def without_set(monitor: str, prefixes: Iterable[str]) -> str:
    """The name that a figure would have with one validation set.

    Example:
        >>> without_set("val/noisy/loss", ["val/clean", "val/noisy"])
        'val/loss'
    """
    found = next((prefix for prefix in prefixes if monitor.startswith(f"{prefix}/")), None)
    return monitor if found is None else f"val/{monitor.removeprefix(f'{found}/')}"


def _seconds(max_time: Any) -> float:
    seconds = max_time.total_seconds() if isinstance(max_time, datetime.timedelta) else number(max_time)
    if seconds is None:
        raise TypeError(f"max_time: got {max_time!r}; give seconds, or a datetime.timedelta")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"max_time: got {max_time!r}; give a finite positive number of seconds")
    return float(seconds)


def _interval(validate_every: Any) -> int | float:
    if isinstance(validate_every, float):
        if not 0 < validate_every < 1:
            raise ValueError(
                f"validate_every: got {validate_every!r}; give a number of steps as an integer, a part of an epoch "
                "between 0 and 1, or 'epoch'"
            )
        return validate_every
    if isinstance(validate_every, str):
        raise ValueError(f"validate_every: got {validate_every!r}; give a number of steps, a part, or 'epoch'")
    return check_integer(validate_every, "validate_every")
