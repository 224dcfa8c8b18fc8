"""Fine-tuning in two phases: the head on a frozen backbone, then everything, each at a rate found for it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mxtorch import schedules
from mxtorch._validation import positive_rate
from mxtorch.checks import check_data, check_integer, length
from mxtorch.fine_tuning import grouping
from mxtorch.fine_tuning.dataset_fingerprint import CacheError
from mxtorch.fine_tuning.feature_cache import FeatureCache
from mxtorch.fine_tuning.split_point import CutError
from mxtorch.history import History
from mxtorch.lr_finder.result import LRFinderResult

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

Cache = Literal["auto", "memory", "file"] | bool | str | Path | FeatureCache

HEAD, ALL = "head", "all layers"
OWN = "the optimizer's own rate"
# A trained head hardly improves in a sweep of all layers, so that there may be no rate to be read off. Then this part
# of the head's rate: small, safe steps.
CAREFUL_PART = 0.1
# On features a step costs next to nothing: enough of them for find_lr to train short heats at several rates.
STEPS_ON_FEATURES = 400
# The sweep of all layers costs a step of all layers for each rate: no more of them than this part of the training.
SWEEP_PART = 0.5
FEWEST_SWEEP_STEPS, MOST_SWEEP_STEPS = 30, 100
# Around the head's rate, in which the best rate of all layers is looked for.
SWEEP_BELOW, SWEEP_ABOVE = 1e-3, 30.0


@dataclass
class FineTuning:
    """What `fine_tune` did. Printing it gives the time line.

    Attributes:
        history: The figures of every epoch.
        rates: The rate of the head in each phase, `head` and `all layers`.
        found: What `find_lr` returned in each phase where it was asked.
        notes: What was told on the way: rates, features, what was left out and why.
        timeline: Parts of the run with their seconds, in order.
    """

    history: History
    rates: dict[str, float] = field(default_factory=dict)
    found: dict[str, LRFinderResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    timeline: list[tuple[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(seconds for _, seconds in self.timeline)
        width = max((len(name) for name, _ in self.timeline), default=0)
        lines = [
            f"{name:<{width}}  {seconds:6.1f} s  {'#' * round(40 * seconds / max(total, 1e-9))}"
            for name, seconds in self.timeline
        ]
        return "\n".join([*lines, f"{'together':<{width}}  {total:6.1f} s"])

    __repr__ = __str__


def fine_tune(
    trainer: Trainer,
    train_data: Any,
    val_data: Any,
    *,
    epochs: int,
    freeze_epochs: int,
    lr: float | Sequence[float] | None,
    head: str | nn.Module | None,
    groups: Mapping[str, Any] | Sequence[Any] | None,
    decay: float,
    train_norms: bool | None,
    schedule: str | schedules.Schedule,
    cache: Cache,
    views: int,
    half: bool,
) -> FineTuning:
    """See `Trainer.fine_tune`."""
    check_integer(epochs, "epochs", at_least=0)
    check_integer(freeze_epochs, "freeze_epochs", at_least=0)
    check_integer(views, "views")
    if epochs + freeze_epochs == 0:
        raise ValueError("epochs: got 0, and freeze_epochs is 0, too: there is nothing to train")
    check_data(train_data, "train_data", passes=2)
    if val_data is not None:
        check_data(val_data, "val_data", passes=2)
    given = _given_rates(lr)
    grouping.check_decay(decay)
    schedule = schedules.get(schedule)
    parts = grouping.layer_groups(trainer.model, head, groups)
    run = _Run(trainer, FineTuning(trainer.history), schedule)
    with grouping.rates_by_layer(trainer.optimizer, parts, decay):
        if freeze_epochs:
            grouping.freeze_all_but_last(trainer.model, parts)
            with _features(run, train_data, val_data, cache, views, half) as (train, val):
                sweep = _training_steps(train_data, trainer.accumulate, freeze_epochs)
                if train is train_data:
                    sweep |= _short_sweep(train_data, trainer.accumulate, freeze_epochs)
                else:
                    sweep["num_steps"] = STEPS_ON_FEATURES
                own = trainer.optimizer.base_learning_rate
                run.fit(HEAD, train, val, freeze_epochs, given[0] or run.find(HEAD, train, sweep, own, OWN))
        if epochs:
            grouping.unfreeze(
                trainer.model, parts, train_norms=not freeze_epochs if train_norms is None else train_norms
            )
            own = run.result.rates.get(HEAD, trainer.optimizer.base_learning_rate)
            sweep = _short_sweep(train_data, trainer.accumulate, epochs)
            sweep |= _training_steps(train_data, trainer.accumulate, epochs)
            careful, why = own, OWN
            if freeze_epochs:
                sweep |= {"start_lr": own * SWEEP_BELOW, "end_lr": own * SWEEP_ABOVE}
                careful, why = own * CAREFUL_PART, "a tenth of the head's"
            run.fit(ALL, train_data, val_data, epochs, given[1] or run.find(ALL, train_data, sweep, careful, why))
    return run.result


class _Run:
    """The steps of a fine-tuning, timed and told."""

    def __init__(self, trainer: Trainer, result: FineTuning, schedule: schedules.Schedule) -> None:
        self.trainer = trainer
        self.result = result
        self.schedule = schedule

    def tell(self, sentence: str) -> None:
        self.result.notes.append(sentence)
        if self.trainer.progress:
            print(sentence)

    def find(self, phase: str, data: Any, sweep: dict[str, Any], otherwise: float, what: str) -> float:
        """The rate of a phase; where none can be found, a careful one, and that is told."""
        with self.timed(f"{phase}: rate search"):
            found = self.trainer.find_lr(data, schedule=self.schedule, **sweep)
        self.result.found[phase] = found
        try:
            rate = found.suggestion_for(self.schedule)
        except ValueError as error:
            self.tell(f"{phase}: {error} Going on with {what}, {otherwise:.1e}; lr= sets another.")
            return otherwise
        likely = "" if found.interval is None else f" (likely {found.interval[0]:.1e} to {found.interval[1]:.1e})"
        self.tell(f"{phase}: found a rate of {rate:.1e}{likely}.")
        return rate

    def fit(self, phase: str, train: Any, val: Any, epochs: int, rate: float) -> None:
        self.result.rates[phase] = rate
        with self.timed(f"{phase}: {epochs} epoch{'s' if epochs > 1 else ''}"):
            self.trainer.fit(train, val, epochs=epochs, lr=rate, schedule=self.schedule)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.result.timeline.append((name, time.perf_counter() - started))


@contextlib.contextmanager
def _features(
    run: _Run, train_data: Any, val_data: Any, cache: Cache, views: int, half: bool
) -> Iterator[tuple[Any, Any]]:
    """Loaders of features in place of those of inputs, where that can be, with the network taking them."""
    if cache is False:
        yield train_data, val_data
        return
    own = not isinstance(cache, FeatureCache)
    where = "auto" if isinstance(cache, (bool, FeatureCache)) else cache
    features = FeatureCache(run.trainer, where=where, half=half, tell=run.tell) if own else cache
    assert isinstance(features, FeatureCache)
    asked_for = cache != "auto"
    try:
        with run.timed("features of the frozen layers"):
            train = _loader(run, features, train_data, "train_data", views, asked_for)
            val = (
                None
                if val_data is None or train is None
                else _loader(run, features, val_data, "val_data", 1, asked_for)
            )
        if train is None:
            yield train_data, val_data
        else:
            with features.in_force():
                yield train, val_data if val is None else val
    finally:
        if own:
            features.close()


def _loader(run: _Run, features: FeatureCache, data: Any, argument: str, views: int, asked_for: bool) -> Any:
    """A loader of features; None where there can't be one and the cache was not asked for."""
    from mxtorch.trainer import Trainer  # which imports this module

    kind = type(run.trainer)
    if not asked_for and kind.training_step is not Trainer.training_step:
        run.tell(f"No feature cache: {kind.__name__} has a training_step of its own, which may look at the inputs.")
        return None
    try:
        return features.loader(data, views=views)
    except (CacheError, CutError) as error:
        if asked_for:
            raise type(error)(f"{argument}: no features can be kept: {error}") from error
        run.tell(f"No feature cache for {argument}: {error}.")
        return None


def _short_sweep(data: Any, accumulate: int, epochs: int) -> dict[str, Any]:
    """How finely rates are tried: in proportion to the training that follows."""
    count = length(data)
    steps = MOST_SWEEP_STEPS if count is None else int(SWEEP_PART * epochs * count / accumulate)
    return {"num_steps": max(FEWEST_SWEEP_STEPS, min(MOST_SWEEP_STEPS, steps))}


def _training_steps(data: Any, accumulate: int, epochs: int) -> dict[str, Any]:
    """How long the training will be that a rate is looked for; empty where that is not known."""
    count = length(data)
    return {} if count is None else {"training_steps": max(1, math.ceil(count / accumulate) * epochs)}


def _given_rates(lr: float | Sequence[float] | None) -> tuple[float | None, float | None]:
    if lr is None:
        return None, None
    if isinstance(lr, Sequence):
        if len(lr) != 2:
            raise ValueError(f"lr: got {len(lr)} rates; give one, or two: for the head, and for all layers")
        return positive_rate(lr[0], "lr"), positive_rate(lr[1], "lr")
    return positive_rate(lr, "lr"), positive_rate(lr, "lr")
