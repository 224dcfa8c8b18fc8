"""The search in Hugging Face transformers: a function of a `Trainer`, and a callback that sets the rate it finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from mxtorch.checkpointing.random_state import raw_random_state, set_raw_random_state
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.integrations.rates import schedule_in_force, set_base_rate
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find

if TYPE_CHECKING:
    from typing_extensions import Unpack


def find_lr(trainer: Trainer, *, schedule: Schedule | None = None, **options: Unpack[SearchOptions]) -> LRFinderResult:
    """Find a learning rate for a `transformers.Trainer`.

    The steps are the trainer's own (`training_step`, so also an overridden `compute_loss`), with its optimizer,
    precision, clipping and accumulation, on its data; the evaluation data are the held-out samples. The schedule is
    known: the one that its arguments ask for, linear with warm-up by default. No callback is called, nothing is logged
    or saved. Afterwards the trainer, its model, the data and the random generators are bit for bit what they were, and
    it has no optimizer, if it had none.

    Args:
        trainer: A Trainer for a single process. Its `args` say the length.
        schedule: Another schedule than the trainer's.
        **options: As for `mxtorch.find_lr`.

    Returns:
        The suggestion, for `trainer.args.learning_rate`, with its interval and its status, and the data behind them.

    Raises:
        ValueError: The trainer trains in several processes, or its scheduler does not tell its multipliers.

    Example:
        >>> found = find_lr(trainer)  # doctest: +SKIP
        >>> trainer.args.learning_rate = found.suggestion  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """
    _check(trainer)
    finder = _OnlyFinder(trainer, raw_random_state(), schedule=schedule, **options)
    before = TrainingState([trainer.model], None, others={"trainer": trainer}, before_first_step=True)
    try:
        trainer.callback_handler.callbacks = [finder]
        with contextlib.suppress(_SearchEnded):
            trainer.train()
    finally:
        before.restore()
    if finder.found is None:
        raise ValueError("trainer: training ended before its first step; look at max_steps and num_train_epochs")
    return finder.found


class LearningRateFinder(TrainerCallback):
    """Finds a learning rate as training begins, and trains with it.

    The training that follows is bit for bit the one that `args.learning_rate` of this rate would have begun. A training
    that is resumed keeps its rate.

    Args:
        trainer: The one whose callback this is.
        schedule: Another schedule than the trainer's.
        **options: As for `mxtorch.find_lr`.

    Attributes:
        found: What the search found; None before. Where it has no suggestion the rate is left as it is.

    Example:
        >>> trainer.add_callback(LearningRateFinder(trainer))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(self, trainer: Trainer, *, schedule: Schedule | None = None, **options: Unpack[SearchOptions]) -> None:
        _check(trainer)
        self.found: LRFinderResult | None = None
        self._trainer = trainer
        self._schedule = schedule
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Search, and set the rate."""
        if state.global_step > 0:
            return
        self.found = self._search(parts["train_dataloader"], state.max_steps)
        if self.found.suggestion is not None:
            set_base_rate(self._trainer.optimizer, [self._trainer.lr_scheduler], self.found.suggestion)
            args.learning_rate = self.found.suggestion

    def _search(self, train_data: Any, training_steps: int) -> LRFinderResult:
        trainer = self._trainer
        schedule = self._schedule
        if schedule is None:
            schedule = schedule_in_force(trainer.optimizer, [trainer.lr_scheduler])
        options = self._options
        if options.get("epochs") is None and options.get("training_steps") is None:
            options = options | {"training_steps": training_steps}
        steps = _Steps(trainer)
        with _without_callbacks(trainer):
            return find(
                steps.step,
                trainer.optimizer,
                train_data,
                state=(trainer.model_wrapped, trainer),
                evaluate=steps.evaluate,
                val_data=_evaluation_data(trainer),
                schedule=schedule,
                accumulate=trainer.args.gradient_accumulation_steps,
                **options,
            )


class _SearchEnded(Exception):  # noqa: N818 - it is no error
    """Ends a `train` that was for the search alone."""


class _OnlyFinder(LearningRateFinder):
    """Finds a rate and ends the training there.

    Args:
        trainer: The one whose callback this is.
        random_state: Of the generators when the search was called for, before anything was drawn from them.
        **options: As for `LearningRateFinder`.
    """

    def __init__(self, trainer: Trainer, random_state: dict[str, Any], **options: Any) -> None:
        super().__init__(trainer, **options)
        self._random_state = random_state

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Search."""
        set_raw_random_state(self._random_state)
        self.found = self._search(parts["train_dataloader"], state.max_steps)
        raise _SearchEnded


class _Steps:
    """What the trainer's loop does with the batches of a step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def step(self, batches: Any) -> Tensor:
        """One step of the optimizer, from a batch or a list of those that are accumulated."""
        trainer = self._trainer
        args, model = trainer.args, trainer.model_wrapped
        window = batches if args.gradient_accumulation_steps > 1 else [batches]
        window, items = trainer.get_batch_samples(iter(window), len(window), args.device)
        trainer.current_gradient_accumulation_steps = len(window)
        losses: list[Tensor] = []
        for place, inputs in enumerate(window):
            trainer.accelerator.gradient_state._set_sync_gradients(place == len(window) - 1)
            losses.append(trainer.training_step(model, inputs, items))
        if args.max_grad_norm is not None and args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        trainer.optimizer.step()
        model.zero_grad()
        return sum(losses[1:], start=losses[0])  # each was divided by their number, or by that of their targets

    def evaluate(self, batch: Any) -> Tensor | None:
        """The loss of a batch of evaluation data."""
        loss: Tensor | None = self._trainer.prediction_step(self._trainer.model_wrapped, batch, True)[0]
        return loss


def _check(trainer: Trainer) -> None:
    """Raise where steps of one process do not tell what training does.

    Raises:
        ValueError: Several processes or devices train.
    """
    if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
        count = max(trainer.args.world_size, trainer.args.n_gpu)
        raise ValueError(f"trainer: it trains on {count} devices; find the rate on one, then train")


@contextlib.contextmanager
def _without_callbacks(trainer: Trainer) -> Iterator[None]:
    """In the block no callback is called, and none is looked through for what a step may change."""
    handler = trainer.callback_handler
    callbacks, handler.callbacks = handler.callbacks, []
    try:
        yield
    finally:
        handler.callbacks = callbacks


def _evaluation_data(trainer: Trainer) -> Any:
    """The loader of the evaluation data; of several data sets, of the first."""
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, Mapping):
        return trainer.get_eval_dataloader(next(iter(trainer.eval_dataset)))
    return trainer.get_eval_dataloader()
