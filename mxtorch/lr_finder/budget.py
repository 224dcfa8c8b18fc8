"""How many steps a search may take, for how long a training, and around which rate it looks."""

from __future__ import annotations

import inspect
import math
from typing import Any

from mxtorch._checks import check_integer, length, positive_rate
from mxtorch.lr_finder.numbers import NUMBERS, USUAL_RATE_OF_OTHERS, USUAL_RATES
from mxtorch.training.epoch_lengths import Accumulations, EpochLengths


def training_length(
    data: Any,
    accumulations: Accumulations,
    epochs: int | None,
    steps_per_epoch: int | None,
    training_steps: int | None,
) -> tuple[int, bool]:
    """Optimizer steps of the training that a rate is for, and whether they are known.

    Args:
        data: The training data.
        accumulations: Pairs of an epoch, counted from 1, and the batches to a step from there on.
        epochs: As `fit` is given it, or None.
        steps_per_epoch: Likewise.
        training_steps: The length itself, or None.

    Raises:
        ValueError: An argument is wrong, or the length can't be told from those that were given.
    """
    most_steps = None if steps_per_epoch is None else check_integer(steps_per_epoch, "steps_per_epoch")
    if training_steps is not None:
        if epochs is not None:
            raise ValueError("training_steps: got epochs, too; give one of the two")
        return check_integer(training_steps, "training_steps"), True
    if epochs is None:
        return NUMBERS.assumed_training_steps, False
    epochs = check_integer(epochs, "epochs")
    steps = EpochLengths(data, accumulations, most_steps).total(epochs)
    if steps is None:
        raise ValueError("epochs: the data have no length; give steps_per_epoch, as for fit, or training_steps")
    return steps, True


def passes(
    data: Any, accumulations: Accumulations, training_steps: int, steps_per_epoch: int | None = None
) -> float | None:
    """How often a training reads its data; None where the data have no length."""
    batches = length(data)
    if not batches:
        return None
    return EpochLengths(data, accumulations, steps_per_epoch).batches_of(training_steps) / batches


def steps_of(num_steps: int | None, budget: float | None, training_steps: int, seconds_per_step: float | None) -> int:
    """Optimizer steps that a search may take.

    Args:
        num_steps: The steps themselves, or None.
        budget: A part of the training's steps, or None.
        training_steps: The length of the training.
        seconds_per_step: What a step takes, where the default has to be found.
    """
    if num_steps is not None:
        return num_steps
    if budget is not None:
        return max(round(budget * training_steps), 1)
    assert seconds_per_step is not None
    share = NUMBERS.share * training_steps
    return max(round(max(share, NUMBERS.seconds / max(seconds_per_step, 1e-6))), 1)


def checked_budget(num_steps: int | None, budget: float | None) -> tuple[int | None, float | None]:
    """Both arguments, or an error that says what is wrong with them."""
    if num_steps is not None and budget is not None:
        raise ValueError("budget: got num_steps, too; give one of the two")
    steps = None if num_steps is None else check_integer(num_steps, "num_steps", at_least=2)
    return steps, None if budget is None else positive_rate(budget, "budget")


def usual_rate(optimizer: object, is_constant: bool) -> float:
    """The rate that people use with an optimizer before they know better: 1e-3 for Adam's kind, 1e-2 for SGD's.

    Args:
        optimizer: The optimizer, not wrapped, or one of another library, whose class tells by its name.
        is_constant: False for a schedule that is at its peak for a short time, which bears three times as much.
    """
    named = next((USUAL_RATES[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in USUAL_RATES), None)
    if named is None:
        argument = inspect.signature(type(optimizer).__init__).parameters.get("lr")
        given = None if argument is None else argument.default
        named = given if isinstance(given, float) and 0 < given < math.inf else USUAL_RATE_OF_OTHERS
    return named if is_constant else named * NUMBERS.prior_peak_factor
