"""Fine-tuning in two phases: the head on a frozen backbone, then all layers, each at a rate that is found for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mxtorch import schedules
from mxtorch._checks import check_data, check_integer, positive_rate
from mxtorch.fine_tuning import grouping, storage
from mxtorch.fine_tuning.cut import CutError
from mxtorch.fine_tuning.dataset_fingerprint import CacheError
from mxtorch.fine_tuning.feature_cache import FeatureCache
from mxtorch.training.epoch_lengths import EpochLengths
from mxtorch.training.trainer_view import TrainerView

if TYPE_CHECKING:
    from mxtorch.lr_finder import LRFinderResult
    from mxtorch.training.history import History

Cache = Literal["auto", "memory", "file"] | bool | str | Path | FeatureCache

# The methods of a trainer that `fit` and `find_lr` give batches to. One that a user wrote may need the inputs.
GIVEN_BATCHES = ("training_step", "evaluation_step", "count_samples")
# The names of the phases.
HEAD, ALL_LAYERS = "head", "all layers"
OWN_RATE = "the optimizer's own rate"
# The loss of a trained head hardly falls in short trainings of all layers, so these may show no rate. All layers are
# then trained at this part of the head's rate: small, safe steps.
CAREFUL_PART = 0.1
# A step on features costs next to nothing, so find_lr gets enough of them to try trainings of whole length.
STEPS_ON_FEATURES = 1000
# Elsewhere a search takes so many steps, but no more than the larger and no less than the smaller part of the training.
# With what judging costs, it then costs no more than the training. It depends on no clock, so that it can be repeated.
SEARCH_STEPS, SMALLEST_PART, LARGEST_PART = 200, 0.2, 0.5
# The steps where the length of the training is not known.
STEPS_WITHOUT_LENGTH = 100
# The range in which the best rate of all layers is searched, as multiples of the head's rate.
RANGE_BELOW, RANGE_ABOVE = 1e-3, 30.0


@dataclass
class FineTuning:
    """What `fine_tune` did. Printing it shows the time line.

    Attributes:
        history: The figures of every epoch.
        rates: The learning rate of the head in each phase, by `"head"` and `"all layers"`.
        found: What `find_lr` returned in each phase in which it ran.
        notes: What was reported on the way: rates, features, what was left out and why.
        timeline: The parts of the run in order, each with its seconds.

    Example:
        >>> from mxtorch import History
        >>> print(FineTuning(History(), timeline=[("features", 3.0), ("head: 10 epochs", 1.0)]))
        features            3.0 s  ##############################
        head: 10 epochs     1.0 s  ##########
        together            4.0 s
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
    trainer: TrainerView,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None = None,
    *,
    epochs: int,
    freeze_epochs: int = 1,
    lr: float | Sequence[float | None] | None = None,
    head: str | nn.Module | None = None,
    groups: Mapping[str, Any] | Sequence[Any] | None = None,
    decay: float = grouping.DEFAULT_DECAY,
    train_norms: bool | None = None,
    schedule: str | schedules.Schedule = "one_cycle",
    cache: Cache = "auto",
    views: int = 1,
    half: bool = False,
    exact: bool = False,
) -> FineTuning:
    """Train the head on the frozen network, then all layers, at rates found for each; see docs/how-to/fine-tuning.md.

    While the network is frozen, its features at the head are computed once for each sample and kept, where the data
    allow it. Order of the data and random numbers are the same as without, and losses but for rounding. Rates fall from
    the head to the input.

        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> from mxtorch import Trainer
        >>> from mxtorch.fine_tuning import fine_tune
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), nn.Linear(16, 2))
        >>> data = DataLoader([(torch.randn(4), n % 2) for n in range(32)], 8, shuffle=True)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
        >>> tuned = fine_tune(trainer, data, epochs=1, freeze_epochs=2, lr=(0.1, 0.01), head="1")
        >>> len(tuned.history), tuned.rates
        (3, {'head': 0.1, 'all layers': 0.01})
        >>> print(tuned.notes[0])  # doctest: +ELLIPSIS
        Features, the input of '1': 32 x 16 float32, 2.0 kB in memory (free: ...).

    Args:
        trainer: A `mxtorch.Trainer`, whose optimizer should hold all parameters.
        train_data: As for `fit`. A DataLoader without random augmentation lets features be kept.
        val_data: The same.
        epochs: Passes with all layers, after the first phase; 0 trains the head alone.
        freeze_epochs: Passes with the head alone; 0 trains all layers from the start.
        lr: The head's rate: one for both phases, or one for each. Where it is None, it is searched and reported.
        head: The new module, or its name, where the model is not of the zoo.
        groups: Layer groups from the input to the head, by their modules or the names of these; in place of `head`.
        decay: The rate of a layer group divided by that of the next. An optimizer whose groups have different rates
            keeps them.
        train_norms: Whether the second phase trains the batch normalisation before the head, with its running
            statistics. By default it does so only if there was no first phase: the statistics of a few small batches
            are worse than those of the data that the network was trained on.
        schedule: The schedule of each phase, or its name.
        cache: `"auto"` keeps features in up to a third of the free memory, otherwise in a temporary file. It reports
            why if it can't, as where the trainer has a `training_step` or an `evaluation_step` of its own. `"memory"`,
            `"file"`, a folder or True ask for features: if they can't be kept, that is an error. False computes none. A
            `FeatureCache` is used and stays open.
        views: How many readings of each sample are kept, for data with random augmentation.
        half: Whether features are kept in float16.
        exact: Whether features are to the last bit those of the network as it is: without folding batch normalisation
            and without decoding large JPEG files at a reduced scale.

    Returns:
        Rates, notes, and the time line, with the history.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument has a wrong value; nothing can be frozen, or is left to train; groups leave parameters
            out; features were asked for and can't be kept. Nothing has changed then. After any other error before the
            first step of a phase, the same layers are frozen as before that phase.
    """
    epochs = check_integer(epochs, "epochs", at_least=0)
    freeze_epochs = check_integer(freeze_epochs, "freeze_epochs", at_least=0)
    views = check_integer(views, "views")
    if epochs + freeze_epochs == 0:
        raise ValueError("epochs: got 0, and freeze_epochs is 0, too: there is nothing to train")
    check_data(train_data, "train_data", passes=2)
    if val_data is not None:
        check_data(val_data, "val_data", passes=2)
    train_data, val_data = trainer.engine.share(train_data), trainer.engine.share(val_data)
    head_lr, lr_of_all = _given_rates(lr)
    grouping.check_decay(decay)
    run = _Run(trainer, train_data, val_data, schedules.get(schedule))
    features = _feature_cache(run, cache, half, exact)
    layers = grouping.layer_groups(trainer.model, head, groups)
    with grouping.rates_by_layer(trainer.optimizer, layers, decay, run.counted_steps()):
        if freeze_epochs:
            with grouping.phase(trainer.model, run.counted_steps()):
                grouping.train_head(trainer.model, layers)
                with _loaders(run, features, cache, views) as (train, val):
                    run.train_head(train, val, freeze_epochs, head_lr)
        if epochs:
            with grouping.phase(trainer.model, run.counted_steps()):
                norms = not freeze_epochs if train_norms is None else train_norms
                grouping.train_all(trainer.model, layers, norms=norms)
                run.train_all(epochs, lr_of_all)
    return run.result


class _Run:
    """The steps of a fine-tuning, timed and reported."""

    def __init__(self, trainer: TrainerView, train_data: Any, val_data: Any, schedule: schedules.Schedule) -> None:
        self.trainer = trainer
        self.train_data = train_data
        self.val_data = val_data
        self.schedule = schedule
        self.result = FineTuning(trainer.history)

    def counted_steps(self) -> Callable[[], bool]:
        """Return a function that says whether the trainer has taken a step since now."""
        trainer, before = self.trainer, self.trainer.step
        return lambda: trainer.step != before

    def report(self, sentence: str) -> None:
        """Keep a note, and print it where progress is shown."""
        self.result.notes.append(sentence)
        if self.trainer.progress:
            print(sentence)

    def train_head(self, train: Any, val: Any, epochs: int, lr: float | None) -> None:
        """The first phase, on features or on inputs."""
        if lr is None:
            options = self._search_options(epochs)
            if train is not self.train_data:
                options = {**options, "budget": None, "num_steps": STEPS_ON_FEATURES}
            lr = self._find(HEAD, train, options, self.trainer.optimizer.base_learning_rate, OWN_RATE)
        self._fit(HEAD, train, val, epochs, lr)

    def train_all(self, epochs: int, lr: float | None) -> None:
        """The second phase."""
        if lr is None:
            options = self._search_options(epochs)
            fallback, name = self.trainer.optimizer.base_learning_rate, OWN_RATE
            if HEAD in self.result.rates:
                rate = self.result.rates[HEAD]
                options |= {"start_lr": rate * RANGE_BELOW, "end_lr": rate * RANGE_ABOVE}
                fallback, name = rate * CAREFUL_PART, "a tenth of the head's"
            lr = self._find(ALL_LAYERS, self.train_data, options, fallback, name)
        self._fit(ALL_LAYERS, self.train_data, self.val_data, epochs, lr)

    def _search_options(self, epochs: int) -> dict[str, Any]:
        """How long the training will be, where that is known, and what part of it the search may take."""
        steps = EpochLengths(self.train_data, self.trainer.settings.accumulations).total(epochs)
        if steps is None:
            return {"num_steps": STEPS_WITHOUT_LENGTH}
        return {"training_steps": steps, "budget": min(max(SEARCH_STEPS / steps, SMALLEST_PART), LARGEST_PART)}

    def _find(self, phase: str, data: Any, options: dict[str, Any], fallback: float, name: str) -> float:
        """The rate of a phase. Where none can be found it is the fallback, and a note says so."""
        with self.timed(f"{phase}: rate search"):
            found = self.trainer.find_lr(data, schedule=self.schedule, **options)
        self.result.found[phase] = found
        try:
            rate: float = found.suggestion_for(self.schedule)
        except ValueError as error:
            self.report(f"{phase}: {error} Going on with {name}, {fallback:.1e}; lr= sets another.")
            return fallback
        if found.is_rule_of_thumb:
            if HEAD in self.result.rates:  # which knows nothing of a network that is trained already
                rate, name = fallback, f"{name}, {fallback:.1e}"
            else:
                name = f"the optimizer's usual rate, {rate:.1e}"
            self.report(
                f"{phase}: {found.num_steps} steps of a search show no rate. Going on with {name}; lr= sets another."
            )
            return rate
        likely = "" if found.interval is None else f" (likely {found.interval[0]:.1e} to {found.interval[1]:.1e})"
        doubt = "" if found.status == "ok" else f" {found.advice}"
        self.report(f"{phase}: found a rate of {rate:.1e}{likely}.{doubt}")
        return rate

    def _fit(self, phase: str, train: Any, val: Any, epochs: int, lr: float) -> None:
        self.result.rates[phase] = lr
        with self.timed(f"{phase}: {epochs} epoch{'s' if epochs > 1 else ''}"):
            self.trainer.fit(train, val, epochs=epochs, lr=lr, schedule=self.schedule)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Enter the seconds of the block into the time line."""
        started = time.perf_counter()
        yield
        self.result.timeline.append((name, time.perf_counter() - started))


def _feature_cache(run: _Run, cache: Cache, half: bool, exact: bool) -> FeatureCache | None:
    """The cache to use: the user's own, a new one, or none."""
    if isinstance(cache, FeatureCache) or cache is False:
        return cache or None
    where = "auto" if cache is True else cache
    storage.check_where(where, "cache")
    return FeatureCache(run.trainer, where=where, half=half, exact=exact, tell=run.report)


@contextlib.contextmanager
def _loaders(run: _Run, features: FeatureCache | None, cache: Cache, views: int) -> Iterator[tuple[Any, Any]]:
    """The loaders of the first phase: of features, which the network takes in this block, or else of inputs."""
    if features is None:
        yield run.train_data, run.val_data
        return
    asked_for = cache != "auto"
    try:
        val = None
        with run.timed("features of the frozen layers"):
            train = _feature_loader(run, features, run.train_data, "train_data", views, asked_for)
            if run.val_data is not None and train is not None:
                val = _feature_loader(run, features, run.val_data, "val_data", 1, asked_for)
        if train is None:
            yield run.train_data, run.val_data
        else:
            with features.in_force():
                yield train, run.val_data if val is None else val
    finally:
        if features is not cache:
            features.close()


def _feature_loader(run: _Run, features: FeatureCache, data: Any, argument: str, views: int, asked_for: bool) -> Any:
    """A loader of features; None where there can't be one and the cache was not asked for."""
    if not asked_for and (own := _own_step(run.trainer)) is not None:
        article = "an" if own.startswith("e") else "a"
        kind = type(run.trainer).__name__
        run.report(f"No feature cache: {kind} has {article} {own} of its own, which may look at the inputs.")
        return None
    try:
        return features.loader(data, views=views)
    except (CacheError, CutError) as error:
        if asked_for:
            raise type(error)(f"{argument}: no features can be kept: {error}") from error
        run.report(f"No feature cache for {argument}: {error}.")
        return None


def _own_step(trainer: object) -> str | None:
    """The first method that is given batches and was overridden; None if none was.

    A method was overridden if a second class defines it, or the trainer itself.
    """
    definitions = [vars(trainer), *map(vars, type(trainer).__mro__)]
    return next((name for name in GIVEN_BATCHES if sum(name in names for names in definitions) > 1), None)


def _given_rates(lr: float | Sequence[float | None] | None) -> list[float | None]:
    rates = lr if isinstance(lr, Sequence) else (lr, lr)
    if len(rates) != 2:
        raise ValueError(f"lr: got {len(rates)} rates; give one, or two: for the head, and for all layers")
    return [None if rate is None else positive_rate(rate, "lr") for rate in rates]
