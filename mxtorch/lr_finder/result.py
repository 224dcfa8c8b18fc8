"""What the user gets from `Trainer.find_lr`."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mxtorch import schedules
from mxtorch._checks import level_of_user
from mxtorch.checkpointing.file import atomic_text
from mxtorch.lr_finder.baselines import well_known_rules
from mxtorch.lr_finder.numbers import NUMBERS
from mxtorch.lr_finder.plot import plot_search
from mxtorch.lr_finder.range_test import Sweep
from mxtorch.lr_finder.suggestion import Reading, Status
from mxtorch.lr_finder.trials import Trial, has_moved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STOP_REASONS = {
    "completed": "all rates were tried",
    "diverged": "the loss diverged",
    "non_finite": "the loss was no longer finite",
    "overflow": "fp16 gradients overflowed at every scale",
}
_NO_SWEEP = Sweep([], [], "completed", [])


@dataclass(frozen=True, repr=False)
class LRFinderResult:
    """What a search found; see `docs/explanation/lr-finder.md`.

    Attributes:
        reading: Status, advice, suggestion and interval.
        schedule: What the rate is for.
        method: `"trials"` or `"sweep"`.
        trials: The short trainings, in the order in which they were run.
        sweep: The curve of a range test; empty for trials.
        num_steps: Optimizer steps that the search was given. With the same data and seed, `num_steps=` of this number
            repeats the search exactly.
        training_steps: The length of the training that the rate is for.
        seconds: What the search took.
        note: What could not be done as wanted; empty if nothing.
        optimizer_name: The name in `other_optimizers` of the optimizer that the rate is for; None for the trainer's
            own. `fit` sets the rate of the trainer's own optimizer, so it refuses a result for another one.
    """

    reading: Reading
    schedule: schedules.Schedule | Callable[[int], float]
    method: Literal["trials", "sweep"] = "trials"
    trials: tuple[Trial, ...] = ()
    sweep: Sweep = _NO_SWEEP
    num_steps: int = 0
    training_steps: int = 0
    seconds: float = 0.0
    note: str = ""
    optimizer_name: str | None = None

    @property
    def suggestion(self) -> float | None:
        """The rate to train with; None where the evidence carries none (`status` and `advice` say why)."""
        return self.reading.suggestion

    @property
    def interval(self) -> tuple[float, float] | None:
        """Rates between which the best one lies in 80 of 100 cases."""
        return self.reading.interval

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The min and max of a cyclic schedule: a quarter of the suggestion and the suggestion (Smith 2015, 3.3)."""
        return None if self.suggestion is None else (self.suggestion / 4, self.suggestion)

    @property
    def status(self) -> Status:
        """`ok`, a promise with a number; `guess`; or why there is no suggestion. See docs/explanation/lr-finder.md."""
        return self.reading.status

    @property
    def is_rule_of_thumb(self) -> bool:
        """Whether the suggestion is the optimizer's usual rate, as no training was run or learnt anything."""
        longest = [trial for trial in self.trials if trial.rung == self.trials[-1].rung]
        return self.method == "trials" and self.suggestion is not None and not (longest and has_moved(longest))

    @property
    def advice(self) -> str:
        """What the rate rests on and what to do, in a sentence or two."""
        return self.reading.advice

    @property
    def use(self) -> str:
        """What the suggestion is for, in a word: the schedule's name, `"constant"`, or `"schedule"` for a function."""
        named = schedules.name_of(self.schedule)
        return "schedule" if named is None else named

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each step of a range test."""
        return tuple(self.sweep.rates)

    @property
    def losses(self) -> tuple[float, ...]:
        """The training loss of each step of a range test, before the step was taken."""
        return tuple(self.sweep.losses)

    @property
    def held_out(self) -> tuple[tuple[float, float], ...]:
        """Rates of a range test, and the loss on samples that were not trained on after the step at each."""
        return tuple(self.sweep.held_out)

    @property
    def stop_reason(self) -> str:
        """Why a range test ended: `completed`, `diverged`, `non_finite` or `overflow`."""
        return self.sweep.stop_reason

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The running median of the losses of a range test."""
        return self.reading.smoothed

    @property
    def rules(self) -> dict[str, float]:
        """What `steepest`, `valley` and `minimum`, the rules in common use, would say of a range test."""
        return well_known_rules(self.rates, self.losses)

    def after(self, seconds: float) -> LRFinderResult:
        """The same with the time that the search took."""
        return replace(self, seconds=seconds)

    def suggestion_for(self, schedule: str | schedules.Schedule | Callable[[int], float]) -> float:
        """The rate for a schedule: its constant value, or its peak.

        Warns:
            UserWarning: The search was for another kind of schedule. The best peak is 1 to 10 times the best constant
                rate, which can't be computed: search with the schedule that is used.

        Raises:
            ValueError: There is no suggestion.
        """
        if self.suggestion is None:
            raise ValueError(f"find_lr has no rate to suggest ({self.status}). {self.advice}")
        wanted, found = is_constant(schedule), is_constant(self.schedule)
        if wanted == found:
            return self.suggestion
        rate = self.suggestion / NUMBERS.constant_below_peak if wanted else self.suggestion
        kind = "a constant rate" if wanted else "a schedule with a peak"
        warnings.warn(
            f"find_lr searched with schedule={self.use!r}, and the rate is to be used for {kind}: {rate:.1e} is a "
            "guess. Give find_lr the schedule that fit is given.",
            stacklevel=level_of_user(),
        )
        return rate

    def rows(self) -> list[dict[str, float]]:
        """The data of the search, for tables: of each training its rate, steps, loss and loss before; of a range test
        `learning_rate`, `loss` and `smoothed` of each step."""  # noqa: D205, D209
        if self.method == "trials":
            return [
                {
                    "learning_rate": trial.rate,
                    "steps": float(trial.steps),
                    "loss": trial.loss,
                    "loss_before": trial.loss_before,
                }
                for trial in self.trials
            ]
        columns = zip(self.rates, self.losses, self.smoothed, strict=False)
        return [{"learning_rate": rate, "loss": loss, "smoothed": smooth} for rate, loss, smooth in columns]

    def to_csv(self, path: str | Path) -> None:
        """Write `rows`."""
        names = ["learning_rate", "steps", "loss", "loss_before"]
        with atomic_text(path) as file:
            writer = csv.DictWriter(file, names if self.method == "trials" else ["learning_rate", "loss", "smoothed"])
            writer.writeheader()
            writer.writerows(self.rows())

    def to_json(self, path: str | Path | None = None) -> str:
        """All of the result as JSON; written to `path` too when one is given.

        A loss that is not finite, which JSON has no word for, is null.
        """
        content: dict[str, Any] = {
            "method": self.method,
            "use": self.use,
            "optimizer_name": self.optimizer_name,
            "num_steps": self.num_steps,
            "training_steps": self.training_steps,
            "seconds": self.seconds,
            "note": self.note,
            "trials": [asdict(trial) for trial in self.trials],
            "rates": self.rates,
            "losses": self.losses,
            "held_out": self.held_out,
            "stop_reason": self.stop_reason,
            **asdict(self.reading),
            "rules": self.rules,
        }
        text = json.dumps(_finite(content), indent=1, allow_nan=False)
        if path is not None:
            with atomic_text(path) as file:
                file.write(text + "\n")
        return text

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the losses over the rate, the suggestion and its interval.

        Args:
            axes: Where to draw; a new figure when left out.
        """
        return plot_search(
            axes,
            title=f"Learning rate, {self.use.replace('_', '-')}: {self.status.replace('_', ' ')}",
            reading=self.reading,
            trials=self.trials,
            sweep=self.sweep,
        )

    def __str__(self) -> str:
        rate = "none" if self.suggestion is None else f"{self.suggestion:.2e}"
        interval = "" if self.interval is None else f" (likely {self.interval[0]:.1e} to {self.interval[1]:.1e})"
        note = f" Note: {self.note}." if self.note else ""
        whose = "" if self.optimizer_name is None else f" of {self.optimizer_name!r}"
        return (
            f"Learning rate{whose}, {self.use.replace('_', '-')}: {rate}{interval}, status {self.status}. "
            f"{self.advice}{note} {self._cost()}."
        )

    __repr__ = __str__

    def _cost(self) -> str:
        if self.method == "sweep":
            return f"{len(self.rates)} steps of a range test, which ended because {_STOP_REASONS[self.stop_reason]}"
        steps = sum(trial.steps for trial in self.trials)
        return f"{len(self.trials)} trainings, {steps} steps, {self.seconds:.1f} s"

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


# A schedule that is at its highest rate for a short time bears a higher one than a constant rate.
_PEAKED = (schedules.OneCycle, schedules.Triangular, schedules.Triangular2, schedules.ExpRange)


def is_constant(schedule: object) -> bool:
    """Whether a schedule uses its rate as a constant schedule does: it stays near its highest rate for long."""
    schedule = schedules.get(schedule) if isinstance(schedule, str) else schedule
    if isinstance(schedule, (schedules.Sequential, schedules.Chained)):
        return all(map(is_constant, schedule.schedules))
    return not isinstance(schedule, _PEAKED)
