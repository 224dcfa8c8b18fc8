"""Short trainings from one snapshot, each with a whole one-cycle: which peak is left with the lowest loss.

The range test places a row of peaks below its stability edge; then follow those where the losses point. Each heat
starts from the same weights and sees the same batches, and is judged by the loss on samples that none of them trained
on. A whole cycle squeezed into the steps (as `OneCycle` runs it, Smith and Topin 2017, arXiv 1708.07120) warms up and
ends at a rate near zero, so that a loss tells what was learnt, not how far the last step jumped. The last heat tries
what follows for a constant rate: a cycle passes its peak for a moment only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

# Below so many steps in all, the range test is given every one of them: heats would be too short to tell anything.
FEWEST_STEPS_FOR_HEATS = 300
# Of the steps of the whole search; a longer range test moves its edge by little.
SWEEP_STEPS = 80
FIRST_HEATS = 5
# The row, one beside the best of it, one with a constant rate.
ALL_HEATS = FIRST_HEATS + 2
# The step between neighbouring rates of the row, in decades.
SPACING = 0.5
# Where the row begins, in decades below the edge.
BELOW_EDGE = 0.25
# Batches to judge a heat by.
JUDGING_BATCHES = 7
# A held-out loss that changed by less than this share has not moved.
MOVEMENT = 0.01
# The peak that is best for a one-cycle is so many times the best constant rate: its rate is there for a moment only.
ONE_CYCLE_FACTOR = 2.15
# A constant rate has to bring this share of what the best cycle brought.
SHARE_TO_BRING = 0.5
# A guess is this share of the constant rate that was tried, or that goes with the highest peak that did no harm.
SHARE_OF_GUESS = 0.25
HORIZON_POWER = 1 / 3

Use = Literal["constant", "one_cycle"]


@dataclass(frozen=True)
class Heat:
    """One short training.

    Attributes:
        use: `one_cycle`, or `constant` for the last one.
        rate: The peak of its one-cycle, or its constant rate.
        steps: Optimizer steps.
        loss: The held-out loss after them; infinite where it is no number.
        loss_before: The loss of the same samples before them.
    """

    use: Use
    rate: float
    steps: int
    loss: float
    loss_before: float

    @property
    def is_stable(self) -> bool:
        """Whether the loss is no worse than before."""
        return self.loss <= self.loss_before + MOVEMENT * abs(self.loss_before)

    @property
    def has_learnt(self) -> bool:
        """Whether the loss is clearly better than before."""
        return self.loss <= self.loss_before - 2 * MOVEMENT * abs(self.loss_before)


class Outcome(NamedTuple):
    """What heats say.

    Attributes:
        kind: `learnt`; `unsteady`, where a cycle has learnt and the constant rate has not; `unmoved`, where no loss has
            moved, and `harmful`, where all became worse.
        rate: For a constant schedule: below the peak that the cycles speak for. None where all became worse.
    """

    kind: Literal["learnt", "unsteady", "unmoved", "harmful"]
    rate: float | None


def run_heats(
    run: Callable[[Use, float, int], Heat],
    edge: float,
    steps: int,
    *,
    training_steps: int,
    on_progress: Callable[[str], None] = lambda message: None,
) -> list[Heat]:
    """A row of cycles, one more beside the best, or beyond it where it is the last of the row, and a constant rate.

    Args:
        run: `run(use, rate, steps)` trains from the snapshot.
        edge: The rate beyond which the range test's loss rose.
        steps: Optimizer steps to spend.
        training_steps: Heats are never longer than the training itself.
        on_progress: Told, in words, which rates are still in.
    """
    top = edge * 10**-BELOW_EDGE
    rates = [top * 10 ** (-SPACING * index) for index in range(FIRST_HEATS)]
    length = min(max(steps // ALL_HEATS, 1), training_steps)
    on_progress(f"{len(rates)} rates, {rates[-1]:.1e} to {rates[0]:.1e}")
    heats = [run("one_cycle", rate, length) for rate in rates]
    on_progress(f"around {min(heats, key=lambda heat: heat.loss).rate:.1e}")
    heats.append(run("one_cycle", _one_more(heats), length))
    constant = _lowest_of_parabola(heats) / ONE_CYCLE_FACTOR
    on_progress(f"{constant:.1e} as a constant rate")
    heats.append(run("constant", constant, length))
    return heats


def outcome(heats: Sequence[Heat], training_steps: int) -> Outcome | None:
    """The rate that the heats speak for; None without heats.

    The longer a training, the lower its best rate. For steps of a constant rate the bound D^2 / (2 rate steps) + rate
    G^2 / 2 on the error of stochastic gradient descent (Nemirovski et al. 2009, sec. 2.2) gives a power of one half;
    language models were measured to follow one near a third (Bjorck et al. 2024, arXiv 2409.19913).

    Args:
        heats: All of one length.
        training_steps: The length of the training that the rate is for.
    """
    heats = [heat for heat in heats if 0 < heat.rate < math.inf and not math.isnan(heat.loss)]
    cycles = [heat for heat in heats if heat.use == "one_cycle"]
    if not cycles:
        return None
    best = min(cycles, key=lambda heat: heat.loss)
    constant = [heat for heat in heats if heat.use == "constant"]
    if not best.has_learnt:
        stable = [heat.rate for heat in cycles if heat.is_stable]
        if not stable:
            return Outcome("harmful", None)
        return Outcome("unmoved", max(stable) / ONE_CYCLE_FACTOR * SHARE_OF_GUESS)
    enough = best.loss_before - SHARE_TO_BRING * (best.loss_before - best.loss)
    if any(heat.loss > enough for heat in constant):
        return Outcome("unsteady", min(heat.rate for heat in constant) * SHARE_OF_GUESS)
    horizon = best.steps / max(training_steps, best.steps)
    return Outcome("learnt", _lowest_of_parabola(cycles) / ONE_CYCLE_FACTOR * horizon**HORIZON_POWER)


def _one_more(heats: Sequence[Heat]) -> float:
    """Beyond the best rate where it is the highest or the lowest, else halfway to its better neighbour."""
    heats = sorted(heats, key=lambda heat: -heat.rate)
    best = min(range(len(heats)), key=lambda index: heats[index].loss)
    if best == 0:
        return heats[0].rate * 10**SPACING
    if best == len(heats) - 1:
        return heats[-1].rate * 10**-SPACING
    neighbour = min(heats[best - 1], heats[best + 1], key=lambda heat: heat.loss)
    return math.sqrt(heats[best].rate * neighbour.rate)


def _lowest_of_parabola(heats: Sequence[Heat]) -> float:
    """The rate where a parabola through the best heat and its neighbours, over the logarithm, is lowest."""
    heats = sorted(heats, key=lambda heat: -heat.rate)
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
