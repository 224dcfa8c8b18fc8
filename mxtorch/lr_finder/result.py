"""What the user gets from `Trainer.find_lr`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxtorch import schedules
from mxtorch.checkpointing.file import atomic_text
from mxtorch.lr_finder.baselines import well_known_rules
from mxtorch.lr_finder.range_test import Sweep
from mxtorch.lr_finder.suggestion import Estimate, Status, estimate
from mxtorch.lr_finder.trials import Heat, Use

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A schedule that stays near its highest rate needs the rate of a constant one; one that peaks bears more.
_PEAKED = ("OneCycle", "Triangular", "Triangular2", "ExpRange")
_STOP_REASONS = {
    "completed": "all rates were tried",
    "diverged": "the loss diverged",
    "non_finite": "the loss was no longer finite",
    "overflow": "fp16 gradients overflowed at every scale",
}


@dataclass(frozen=True, repr=False)
class LRFinderResult:
    """The curve of a range test and what it says; see `docs/lr-finder.md`.

    Attributes:
        rates: The learning rate (of the first parameter group) of each step.
        losses: The training loss of each step, before the step was taken.
        stop_reason: `completed`, `diverged`, `non_finite` or `overflow`.
        use: What `suggestion` is for: `constant` or `one_cycle`.
        reading: The estimate, for every use.
        held_out: Rates, and the loss on samples that were not trained on after the step at each.
        heats: The short trainings that followed the sweep, in the order they were run.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    stop_reason: str
    use: Use
    reading: Estimate
    held_out: tuple[tuple[float, float], ...] = ()
    heats: tuple[Heat, ...] = ()

    @classmethod
    def of(
        cls, sweep: Sweep, schedule: str | schedules.Schedule, heats: Sequence[Heat] = (), **measured: Any
    ) -> LRFinderResult:
        """The result of a search, read for a schedule; `measured` goes to `estimate`."""
        reading = estimate(
            sweep.rates,
            sweep.losses,
            sweep.held_out,
            ended_early=sweep.stop_reason != "completed",
            heats=heats,
            **measured,
        )
        return cls(
            tuple(sweep.rates),
            tuple(sweep.losses),
            sweep.stop_reason,
            use_of(schedule),
            reading,
            tuple(sweep.held_out),
            tuple(heats),
        )

    @property
    def suggestion(self) -> float | None:
        """The rate to train with; None where the curve carries none (`status` and `advice` say why)."""
        return self.reading.suggestions.get(self.use)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Rates between which the best one is likely to lie."""
        return self.reading.intervals.get(self.use)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The min and max of a cyclic schedule (Smith 2015, sec. 3.3)."""
        return self.reading.bounds

    @property
    def status(self) -> Status:
        """What the suggestion rests on, `ok` or `edge_only` (a guess); or why there is none.

        That is `no_signal`, `noise`, `already_trained`, `range_too_short`, `too_few_steps` or `not_finite`; see
        `docs/lr-finder.md`.
        """
        return self.reading.status

    @property
    def advice(self) -> str:
        """A sentence on what to do."""
        return self.reading.advice

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The running median of the losses."""
        return self.reading.smoothed

    @property
    def rules(self) -> dict[str, float]:
        """What `steepest`, `valley` and `minimum`, the rules in common use, would have said."""
        return well_known_rules(self.rates, self.losses)

    def suggestion_for(self, schedule: str | schedules.Schedule) -> float:
        """The rate for a schedule: its constant value, or its peak.

        Raises:
            ValueError: The curve carries no suggestion.
        """
        rate = self.reading.suggestions.get(use_of(schedule))
        if rate is None:
            raise ValueError(f"find_lr has no rate to suggest ({self.status}). {self.advice}")
        return rate

    def rows(self) -> list[dict[str, float]]:
        """One dictionary a step: `learning_rate`, `loss`, `smoothed`."""
        columns = zip(self.rates, self.losses, self.smoothed, strict=False)
        return [{"learning_rate": rate, "loss": loss, "smoothed": smooth} for rate, loss, smooth in columns]

    def to_csv(self, path: str | Path) -> None:
        """Write the curve, one row a step."""
        with atomic_text(path) as file:
            writer = csv.DictWriter(file, ["learning_rate", "loss", "smoothed"])
            writer.writeheader()
            writer.writerows(self.rows())

    def to_json(self, path: str | Path | None = None) -> str:
        """All of the result as JSON; written to `path` too when one is given.

        A loss that is not finite, which JSON has no word for, is null.
        """
        content: dict[str, Any] = {
            "suggestion": self.suggestion,
            "interval": self.interval,
            "stop_reason": self.stop_reason,
            "use": self.use,
            "rates": self.rates,
            "losses": self.losses,
            "held_out": self.held_out,
            "heats": [asdict(heat) for heat in self.heats],
            **asdict(self.reading),
            "rules": self.rules,
        }
        text = json.dumps(_finite(content), indent=1, allow_nan=False)
        if path is not None:
            with atomic_text(path) as file:
                file.write(text + "\n")
        return text

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the losses over the rate: of training, held out, and of heats; the suggestion and its interval.

        Args:
            axes: Where to draw; a new figure when left out.
        """
        from mxtorch.lr_finder.plot import plot_curve

        return plot_curve(self, axes)

    def __str__(self) -> str:
        rate = "none" if self.suggestion is None else f"{self.suggestion:.2e}"
        interval = "" if self.interval is None else f" (likely {self.interval[0]:.1e} to {self.interval[1]:.1e})"
        ended = _STOP_REASONS[self.stop_reason]
        return (
            f"Learning rate, {self.use.replace('_', '-')}: {rate}{interval}, status {self.status}. {self.advice} "
            f"{len(self.rates)} steps of the sweep, which ended because {ended}{self._heats_in_words()}."
        )

    __repr__ = __str__

    def _heats_in_words(self) -> str:
        if not self.heats:
            return ""
        return f"; {len(self.heats)} short trainings, {sum(heat.steps for heat in self.heats)} steps"

    def _repr_html_(self) -> str:
        import base64
        import io

        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.6))
        self.plot(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        picture = base64.b64encode(buffer.getvalue()).decode()
        return f'<p>{escape(str(self))}</p><img alt="loss over learning rate" src="data:image/png;base64,{picture}">'


def _finite(value: Any) -> Any:
    """The same content with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def use_of(schedule: str | schedules.Schedule) -> Use:
    """Which use a schedule makes of a rate."""
    return "one_cycle" if type(schedules.get(schedule)).__name__ in _PEAKED else "constant"
