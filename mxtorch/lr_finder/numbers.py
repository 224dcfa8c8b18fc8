"""The numbers that the search rests on, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchNumbers:
    """Settings of the search by short trainings; "recordings" are those of `benchmarks/lr_bench`.

    Attributes:
        share: Part of the training's steps that the default search takes: what a user pays without a thought.
        seconds: Or so many seconds, if that is more: a training that lasts seconds is then tried whole at several
            rates, which the recordings show to be the only thing that can be relied on.
        assumed_training_steps: The length of a training where nothing tells it; that of a short fine-tuning.
        fewest_steps: With fewer steps no short training tells anything, and the usual default is given as a guess.
        decades_down: The window begins so many decades below the usual default of the optimizer; in the recordings the
            best rate is lower for one task alone.
        decades_up: And ends so many above it; in the recordings the best rate is at most 3 above it.
        few_steps: With fewer steps the window is one decade on either side, or its trainings would be too short.
        lengths: Relative lengths of the trainings of the three rungs. Longer last ones were better in the recordings
            than more of them.
        longest: Part of the training that a training of each rung takes at most.
        rates_of_last_rung: Neighbouring rates that go to the last rung: the best one and one on either side.
        movement: A loss that fell by less than this part has not moved; noise of held-out losses is smaller.
        close: The lowest rate whose fall is within this part of the best one's is taken: on little data lower
            rates overfit less, which short trainings do not see.
        saturated: Where a doubling of the length gains less than this part of the fall of the held-out loss, longer
            trainings only overfit. The best rate is then about proportional to 1 / length in the recordings.
        shortest_compared: Lengths below so many steps are not compared for it: their gain is mostly noise.
        passes_to_overfit: A training that reads its data fewer times does not overfit.
        whole: A training of at least this part of the training's length is taken for a whole one.
        nearly_as_good: A training that gained at least this part of what the chosen one gained is nearly as good.
        rates_nearly_as_good: So many other rates must be, or the chosen one may be luck: in the development half of the
            recordings 2.4% of the rates that were called `ok` were bad with one such rate, and 1.3% with two.
        prior_peak_factor: A one-cycle's usual peak is so many times the usual constant rate.
        constant_below_peak: A constant rate that has to be guessed from a peak is the peak divided by this.
    """

    share: float = 0.2
    seconds: float = 20.0
    assumed_training_steps: int = 300
    fewest_steps: int = 30
    decades_down: int = 2
    decades_up: int = 3
    few_steps: int = 250
    lengths: tuple[float, float, float] = (1.0, 2.0, 6.0)
    longest: tuple[float, float, float] = (0.25, 0.5, 1.0)
    rates_of_last_rung: int = 3
    movement: float = 0.02
    close: float = 0.03
    saturated: float = 0.02
    shortest_compared: int = 10
    passes_to_overfit: float = 5.0
    whole: float = 0.9
    nearly_as_good: float = 0.9
    rates_nearly_as_good: int = 2
    prior_peak_factor: float = 3.0
    constant_below_peak: float = 3.0


@dataclass(frozen=True)
class SweepNumbers:
    """Settings of the reading of a range test, tuned on the ten development tasks of 300 steps of the first benchmark.

    Attributes:
        fewest_steps: Fewer losses are not read.
        fewest_held_out: Fewer held-out losses are not read.
        training_width: Width of the running median of training losses, which are noisy.
        held_out_width: The same for held-out losses, measured on the same samples every time.
        rise_of_drop: The edge is where the loss stands above its lowest point by this share of the drop,
        rise_of_start: or by this share of the loss at the start,
        rise_of_noise: or by so many standard deviations of the noise; by the largest of the three.
        mostly: A rate where this share of the drop is reached is not moved far by a late dip, unlike the lowest point.
        drop_in_noise: A running minimum of pure noise drops by about 1.5 standard deviations; a fall is more than this.
        smallest_relative_drop: And more than this share of the loss at the start.
        clear_rise: In standard deviations: a rise that only the training loss shows is believed from here on.
        below_edge: A suggestion is so many decades below the edge,
        above_fall: or above the rate where most of the drop is reached; the lower of the two.
        gap_of_edge: Where the edge is further above the fall, in decades, the loss rests on its floor before the edge,
            and the middle of the descent is enough;
        gap_of_floor: wholly so from here on, and in between up to it.
        below_lonely_edge: With nothing but an edge, in decades below it.
        below_any_edge: What one curve says is no higher than this, in decades, below the edge of the other.
        knows_something: Losses with exchanged targets stand so far above those with the right ones once a network has
            learnt something.
        nothing_left: Below this share of that loss there is nothing left to learn.
        peak_factor: The peak of a one-cycle over the constant rate.
        lonely_peak_factor: The same where the rate rests on an edge alone.
        interval: Decades below and above a suggestion between which the best rate is likely to lie.
    """

    fewest_steps: int = 20
    fewest_held_out: int = 8
    training_width: int = 7
    held_out_width: int = 3
    rise_of_drop: float = 0.3
    rise_of_start: float = 0.035
    rise_of_noise: float = 4.0
    mostly: float = 0.7
    drop_in_noise: float = 2.5
    smallest_relative_drop: float = 0.05
    clear_rise: float = 6.0
    below_edge: float = 0.8
    above_fall: float = 0.65
    gap_of_edge: float = 1.35
    gap_of_floor: float = 2.1
    below_lonely_edge: float = 1.2
    below_any_edge: float = 0.3
    knows_something: float = 0.2
    nothing_left: float = 1e-4
    peak_factor: float = 2.15
    lonely_peak_factor: float = 1.5
    interval: tuple[float, float] = (-1.5, 1.0)


# For each use: by the part of the training that the longest short trainings took (at most so much), the decades below
# and above a suggestion between which the best rate lay in 80 of 100 recordings of the development half.
INTERVALS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "constant": ((0.06, -1.75, 0.6), (0.12, -1.5, 0.6), (0.9, -1.0, 0.6), (9.9, -0.25, 0.6)),
    "one_cycle": ((0.06, -1.75, 1.1), (0.12, -1.5, 1.1), (0.5, -1.0, 1.0), (0.9, -1.0, 0.6), (9.9, -0.25, 1.1)),
}

# The usual constant rates, by the class of the optimizer; for others the default of its `lr` argument.
USUAL_RATES = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "SparseAdam"), 1e-3),
    **dict.fromkeys(("SGD", "ASGD", "Adagrad", "Rprop"), 1e-2),
    "Adadelta": 1.0,
}
USUAL_RATE_OF_OTHERS = 1e-3

NUMBERS = SearchNumbers()
SWEEP = SweepNumbers()
