"""From short trainings to a learning rate: a pure function of their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mxtorch.lr_finder.numbers import INTERVALS, NUMBERS, SearchNumbers
from mxtorch.lr_finder.trials import Plan, Trial, choose, has_moved, is_saturated

Status = Literal[
    "ok", "guess", "no_signal", "noise", "already_trained", "range_too_short", "too_few_steps", "not_finite"
]

ALREADY_TRAINED = (
    "The network has learnt this already, and no rate makes its loss fall. To go on training, set a rate by hand, well "
    "below the one where the loss rises."
)
_CHECK = "mxtorch.init.check(net, batch) tells whether signals vanish or explode."


@dataclass(frozen=True)
class Reading:
    """What a search says.

    Attributes:
        status: `ok`: whole trainings were compared, and two other rates are nearly as good; 281 of 288 such rates of
            the recordings are as good as the best by a tenth of what a training gains. `guess`: there is a rate,
            without that promise; `advice` says why. Or why there is none: `no_signal` (nothing learns), `noise`,
            `already_trained`, `range_too_short`, `too_few_steps`, `not_finite`.
        advice: What the rate rests on and what to do, in a sentence or two.
        suggestion: The rate; None where the evidence carries none.
        interval: Rates between which the best one lies in 80 of 100 cases.
        edge: The rate from which the loss of a range test breaks away; None where it does not, and for trials.
        smoothed: The running median of the losses of a range test.

    Example:
        >>> Reading("guess", "Short trainings only.", 0.01, (0.001, 0.03)).suggestion
        0.01
    """

    status: Status
    advice: str
    suggestion: float | None = None
    interval: tuple[float, float] | None = None
    edge: float | None = None
    smoothed: tuple[float, ...] = ()


def rule_of_thumb(plan: Plan) -> Reading:
    """The usual rate of the optimizer, where there are no steps to try any."""
    rate = min(max(plan.usual, plan.lowest), plan.highest)
    advice = (
        f"A rule of thumb for the optimizer: {plan.steps} steps are too few to try rates. Give num_steps, or budget, "
        "for more."
    )
    return Reading("guess", advice, rate, (rate / 100, rate * 30))


def read_trials(
    trials: Sequence[Trial],
    plan: Plan,
    *,
    is_constant: bool,
    is_held_out: bool,
    length_is_known: bool = True,
    passes: float | None = None,
    knows_something: bool = False,
    numbers: SearchNumbers = NUMBERS,
) -> Reading:
    """Read a learning rate off short trainings.

    Args:
        trials: All of a search.
        plan: How their steps were planned.
        is_constant: Whether they ran at a constant rate.
        is_held_out: Whether they were judged by samples that they did not train on.
        length_is_known: Whether the length of the training was given, and not assumed.
        passes: How often the training reads its data; None where it is not known, or each sample is read once.
        knows_something: Whether the network did much better at the start than it would with exchanged targets.
        numbers: The settings.
    """
    last = [trial for trial in trials if trial.rung == max(one.rung for one in trials)]
    steps = last[0].steps
    part = steps / plan.training_steps
    if not any(math.isfinite(trial.loss) for trial in trials):
        return Reading("not_finite", "Every training ended in numbers that are not finite: look at data and model.")
    if not has_moved(last, numbers):
        return _unmoved(last, plan, part, knows_something, numbers)
    chosen = choose(last, numbers)
    rate = chosen.rate
    low, high = _interval(rate, part, is_constant)
    reasons = _doubts(chosen, last, plan, is_held_out, numbers)
    compared = f"{len(last)} trainings of {steps} steps"
    if part < numbers.whole:
        reasons.append(
            f"{compared}, {100 * part:.0f}% of the training, were compared; budget={_more(part)} compares longer ones"
        )
        if passes is not None and passes >= numbers.passes_to_overfit and is_saturated(trials, numbers):
            rate = max(rate * part, plan.lowest)
            low = min(low, _interval(rate, part, is_constant)[0])
            reasons.append(
                f"longer trainings hardly lower the held-out loss, which is how overfitting begins, so the rate is "
                f"that of the short ones ({chosen.rate:.1e}) times {part:.2g}, their part of the training"
            )
    elif not length_is_known:
        reasons.append(f"the length of the training was assumed to be {plan.training_steps} steps; give epochs")
    if reasons:
        return Reading("guess", f"A guess: {'; '.join(reasons)}.", rate, (low, high))
    return Reading("ok", f"{compared}, the whole length, were compared.", chosen.rate, (low, high))


def _doubts(chosen: Trial, last: Sequence[Trial], plan: Plan, is_held_out: bool, numbers: SearchNumbers) -> list[str]:
    """Why a rate is a guess, apart from the length of the trainings."""
    doubts = []
    if not is_held_out:
        doubts.append("no held-out samples could be judged, only training losses")
    if chosen.rate <= plan.lowest * 1.01 or chosen.rate >= plan.highest / 1.01:
        doubts.append("the rate is at the end of the range; widen start_lr and end_lr")
    elif len(last) < 2:
        doubts.append("no other rate was tried as long; give more steps")
    near = [trial for trial in last if trial is not chosen and trial.fall >= numbers.nearly_as_good * chosen.fall]
    if len(near) < numbers.rates_nearly_as_good:
        found = "one other rate is" if near else "no other rate is"
        doubts.append(
            f"{found} nearly as good, where {numbers.rates_nearly_as_good} are wanted, so it may be luck; repeat the "
            "search with another seed"
        )
    return doubts


def _unmoved(last: Sequence[Trial], plan: Plan, part: float, knows_something: bool, numbers: SearchNumbers) -> Reading:
    """What is said where no training has learnt anything."""
    if knows_something:
        return Reading("already_trained", ALREADY_TRAINED)
    if part >= numbers.whole:
        return Reading("no_signal", f"No training made the loss fall, at none of {len(last)} rates. {_CHECK}")
    rate = min(max(plan.usual, plan.lowest), plan.highest)
    advice = (
        f"A rule of thumb for the optimizer: no training of {last[0].steps} steps made the loss fall; "
        f"budget={_more(part)} tries longer ones. {_CHECK}"
    )
    return Reading("guess", advice, rate, (rate / 100, rate * 100))


def _interval(rate: float, part: float, is_constant: bool) -> tuple[float, float]:
    """Rates between which the best one lies in 80 of 100 cases."""
    table = INTERVALS["constant" if is_constant else "one_cycle"]
    _, low, high = next(row for row in table if part <= row[0])
    return rate * 10**low, rate * 10**high


def _more(part: float) -> str:
    """A budget, as a part of the training, whose last trainings are about three times as long."""
    return f"{min(max(part * 18, 0.5), 9):.1g}"
