"""Short trainings from one snapshot, the better rates trained longer: successive halving.

Jamieson and Talwalkar (2016, arXiv 1502.07943) give the method. The range test places the first rates, from half of
its stability edge down; each heat starts from the same weights and sees the same batches, and is judged by the loss
on samples that none of them trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Below so many steps in all, the range test is given every one of them.
FEWEST_STEPS_FOR_HEATS = 250
# Of the steps of the whole search; a longer range test moves its edge by little.
SWEEP_STEPS = 80
FIRST_RATES = 6
FIRST_SHARE = 0.36  # of the steps
SECOND_RATES = 4
# The step between neighbouring rates, in decades. Six rates span 2.5 of them.
SPACING = 0.5
# Where the first round begins, in decades below the edge.
BELOW_EDGE = 0.3
# Batches to judge a heat by: the first round only has to tell the hopeful from the hopeless.
FIRST_BATCHES = 3
SECOND_BATCHES = 7
# A held-out loss that changed by less than this share has not moved.
MOVEMENT = 0.01
# Where nothing moves: of the highest stable rate.
STABLE_SHARE = 0.5
HORIZON_POWER = 0.5


@dataclass(frozen=True)
class Heat:
    """One short training.

    Attributes:
        round: 1 or 2.
        rate: Its constant learning rate.
        steps: Optimizer steps.
        loss: The held-out loss after them; infinite where it is no number.
    """

    round: int
    rate: float
    steps: int
    loss: float


def run_heats(
    run: Callable[[float, int, int], float],
    edge: float,
    untrained: float,
    steps: int,
    *,
    training_steps: int,
    on_round: Callable[[str], None] = lambda message: None,
) -> list[Heat]:
    """Two rounds of heats: six rates, then the best of them, its neighbours and one more for longer.

    Args:
        run: `run(rate, steps, batches)` trains from the snapshot and returns the held-out loss on so many batches.
        edge: The rate beyond which the range test's loss rose.
        untrained: The held-out loss at the snapshot.
        steps: Optimizer steps to spend.
        training_steps: Heats are never longer than the training itself.
        on_round: Told, in words, which rates are still in.
    """
    top = edge * 10**-BELOW_EDGE
    rates = [top * 10 ** (-SPACING * index) for index in range(FIRST_RATES)]
    first_steps = min(max(int(steps * FIRST_SHARE) // FIRST_RATES, 1), training_steps)
    on_round(f"{len(rates)} rates, {rates[-1]:.1e} to {rates[0]:.1e}")
    first = [Heat(1, rate, first_steps, run(rate, first_steps, FIRST_BATCHES)) for rate in rates]

    second_steps = min(max((steps - FIRST_RATES * first_steps) // SECOND_RATES, 1), training_steps)
    second: list[Heat] = []
    for rate in _still_in(first, untrained):
        on_round(f"around {rate:.1e}")
        second.append(Heat(2, rate, second_steps, run(rate, second_steps, SECOND_BATCHES)))
    rate = _one_more(second)
    second.append(Heat(2, rate, second_steps, run(rate, second_steps, SECOND_BATCHES)))
    return first + second


def best_of(heats: Sequence[Heat], untrained: float, training_steps: int) -> tuple[float | None, bool] | None:
    """The rate that the last round speaks for, and whether any loss has moved there; None without heats.

    The rate is None where every heat of both rounds made the loss worse.

    The best constant rate falls with the square root of a training's length: of the bound D^2 / (2 rate steps) + rate
    G^2 / 2 on the error of stochastic gradient descent (Nemirovski et al. 2009, sec. 2.2) the lowest point is at
    rate = D / (G sqrt(steps)).

    Args:
        heats: Of both rounds.
        untrained: The held-out loss before them.
        training_steps: The length of the training that the rate is for.
    """
    heats = [heat for heat in heats if 0 < heat.rate < math.inf and not math.isnan(heat.loss)]
    last = sorted((heat for heat in heats if heat.round == 2), key=lambda heat: -heat.rate)
    if not last:
        return None
    if min(heat.loss for heat in last) > untrained - 2 * MOVEMENT * abs(untrained):
        stable = [heat.rate for heat in last if _is_stable(heat, untrained)]
        stable = stable or [heat.rate for heat in heats if _is_stable(heat, untrained)]
        return (STABLE_SHARE * max(stable), False) if stable else (None, False)
    steps = last[0].steps
    return _lowest_of_parabola(last) * (steps / max(training_steps, steps)) ** HORIZON_POWER, True


def _still_in(heats: list[Heat], untrained: float) -> list[float]:
    """The best rate and its neighbours, highest first; the highest stable ones where nothing has moved yet."""
    best = min(range(len(heats)), key=lambda index: heats[index].loss)
    if heats[best].loss > untrained - MOVEMENT * abs(untrained):
        stable = [heat.rate for heat in heats if _is_stable(heat, untrained)]
        return (stable or [heat.rate for heat in heats])[: SECOND_RATES - 1]
    return [heats[best].rate * 10 ** (SPACING * offset) for offset in (1, 0, -1)]


def _one_more(heats: list[Heat]) -> float:
    """Beyond the best rate where it is the last of the row, else halfway to its better neighbour."""
    best = min(range(len(heats)), key=lambda index: heats[index].loss)
    if best == 0:
        return heats[0].rate * 10**SPACING
    if best == len(heats) - 1:
        return heats[-1].rate * 10**-SPACING
    neighbour = min(heats[best - 1], heats[best + 1], key=lambda heat: heat.loss)
    return math.sqrt(heats[best].rate * neighbour.rate)


def _is_stable(heat: Heat, untrained: float) -> bool:
    return heat.loss <= untrained + MOVEMENT * abs(untrained)


def _lowest_of_parabola(heats: list[Heat]) -> float:
    """The rate where a parabola through the best heat and its neighbours, over the logarithm, is lowest."""
    best = min(range(len(heats)), key=lambda index: heats[index].loss)
    middle = math.log(heats[best].rate)
    if not 0 < best < len(heats) - 1:
        return heats[best].rate
    # Offsets of the neighbours from the best one, and how much worse they are.
    (right, right_rise), (left, left_rise) = (
        (math.log(heat.rate) - middle, heat.loss - heats[best].loss) for heat in (heats[best - 1], heats[best + 1])
    )
    if not left < 0 < right:
        return heats[best].rate  # the same rate twice
    bend = right_rise / right - left_rise / left
    slope = (right_rise / right * -left + left_rise / left * right) / (right - left)
    if not (0 < bend < math.inf and math.isfinite(slope)):
        return heats[best].rate
    vertex = -slope * (right - left) / (2 * bend)
    return math.exp(middle + min(max(vertex, left), right))
