"""An optimizer whose learning rate can be read, set and scheduled."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mxtorch import schedules
from mxtorch._checks import positive_rate, rate_or_zero, whole_number
from mxtorch.optim import momentum, nested, schedule_free

Multiplier = Callable[[int], float]
Values = tuple[float, float | None]  # the multiplier of the rate, and the momentum if the schedule gives one
# Multipliers are computed for this number of steps at once: between the kernels of a step, the formula of a schedule is
# not in the cache of the processor and costs ten times what it costs in a loop.
STEPS_AHEAD = 128
# torch.distributed.checkpoint saves only those parts of a state_dict that belong to parameters and groups, and in its
# flattened form it loads only settings that a group has already. So each group carries the position, too.
_POSITION = "schedule_position"


class ScheduledOptim(Optimizer):
    """Wraps any torch optimizer, and is one: torch's schedulers, `GradScaler` and Accelerate accept it.

    A ScheduledOptim shares `param_groups`, `state` and hooks with the wrapped optimizer and holds no copies of them.
    Attributes that only the wrapped optimizer has are looked up there.

    Args:
        optimizer: Any `torch.optim.Optimizer`.
        schedule: A function of the step that returns a multiplier of the base rate; None keeps the rate. A schedule of
            `mxtorch.schedules` may also set the momentum of optimizers that have one.

    Attributes:
        optimizer: The wrapped optimizer.

    Raises:
        TypeError: `optimizer` is not a torch optimizer, or is a ScheduledOptim already.
        ValueError: The rate of a parameter group is negative or not finite.

    Warns:
        UserWarning: The optimizer is of D-Adaptation, Prodigy or Schedule-Free, and the rate or the schedule does not
            suit it; see docs/how-to/rate-free-optimizers.md. A rate or a schedule that is set later is checked, too.
    """

    # GradScaler gives its scale to optimizers that support it (fused ones), and these skip a bad step unseen. With this
    # attribute GradScaler unscales the gradients itself and calls `step` for finite ones only: what is skipped is not
    # counted.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Optimizer, schedule: Multiplier | None = None) -> None:
        # Optimizer.__init__ is not called, because it would make other groups and another state.
        if isinstance(optimizer, ScheduledOptim):
            raise TypeError("optimizer: got a ScheduledOptim; it is wrapped already")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: got {optimizer!r}; give a torch.optim.Optimizer")
        for index, group in enumerate(optimizer.param_groups):
            if "lr" not in group:
                raise ValueError(f"optimizer: parameter group {index} has no 'lr'; there is no rate to schedule")
            rate_or_zero(group["lr"], f"lr of parameter group {index}")
        self.optimizer = optimizer
        self._share_hooks()
        self._schedule: Multiplier | None = None
        self._cycles_momentum = False
        self._current_steps = 0
        self._upcoming: tuple[int, list[Values]] = (0, [])
        self._known_patches = self._patches()
        schedule_free.warn_of_rate(optimizer, self.learning_rate)
        if schedule is not None:
            self.schedule = schedule

    # ---------------------------------------------------------------- rates

    @property
    def learning_rate(self) -> float:
        """The rate in force, of the first parameter group: that of the last step, or of the first before any step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def learning_rates(self) -> list[float]:
        """The rate in force of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def group_names(self) -> list[str]:
        """The `"name"` of each parameter group; `group0`, `group1`, ... where there is none, or two are the same.

        Example:
            >>> weight, bias = torch.nn.Linear(2, 2).parameters()
            >>> groups = [{"params": [weight], "name": "weights"}, {"params": [bias]}]
            >>> ScheduledOptim(torch.optim.SGD(groups, lr=0.1)).group_names
            ['weights', 'group1']
        """
        named = [str(group.get("name", "")) for group in self.optimizer.param_groups]
        return [name if name and named.count(name) == 1 else f"group{index}" for index, name in enumerate(named)]

    @property
    def base_learning_rate(self) -> float:
        """The rate of the first group that the schedule multiplies. Without a schedule, it is the rate in force."""
        return self.base_learning_rates[0]

    @property
    def base_learning_rates(self) -> list[float]:
        """The rate of each group that the schedule multiplies."""
        if self._schedule is None:
            return self.learning_rates
        return [float(group.get("base_lr", group["lr"])) for group in self.optimizer.param_groups]

    def set_learning_rate(self, lr: float) -> None:
        """Set the base rate of the first group; the other groups keep their ratios to the first one.

        If the rate of the first group is 0 now, as in the first step of a warm-up, the ratios are those of the rates
        with which a torch scheduler began (`"initial_lr"`); groups whose rates are all 0 get the same rate.

        With a schedule, the rate of the current step is in force at once. A torch scheduler has its own base rates, and
        its next step overwrites the rate that is set here.

        Raises:
            TypeError: `lr` is not a number.
            ValueError: `lr` is not finite and positive, or the ratios are not known.
        """
        lr = positive_rate(lr, "lr")
        bases = proportions(self.optimizer.param_groups, self.base_learning_rates)
        self._set_bases([base * (lr / bases[0]) if index else lr for index, base in enumerate(bases)])
        schedule_free.warn_of_rate(self.optimizer, lr)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the base rate of every group.

        Raises:
            TypeError: `factor` is not a number.
            ValueError: `factor`, or a resulting rate, is not finite and positive.
        """
        factor = positive_rate(factor, "factor")
        self._set_bases([base * factor for base in self.base_learning_rates])
        schedule_free.warn_of_rate(self.optimizer, self.base_learning_rate)

    # ---------------------------------------------------------------- schedule

    @property
    def schedule(self) -> Multiplier | None:
        """The function of the step that multiplies the base rate, or None.

        If a schedule is set, the rate of the current step is in force at once; if None is set, the base rate is. While
        there is a schedule, each parameter group holds its base rate as `"base_lr"`. A schedule must be callable
        (TypeError) and return a finite number that is not negative (ValueError).
        """
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Multiplier | None) -> None:
        if schedule is not None:
            check_callable(schedule)
        multiplier, momentum_now = (1.0, None) if schedule is None else _values(schedule, self._current_steps)
        cycles = schedules.cycles_momentum(schedule)
        if cycles:
            momentum.check_ratios(self.optimizer, schedule)
        bases = self.base_learning_rates
        for group, base in zip(self.optimizer.param_groups, bases, strict=True):
            if schedule is None:
                group.pop("base_lr", None)
            else:
                group["base_lr"] = base
            set_group_rate(group, base * multiplier)
        momentum.restore(self.optimizer)
        if cycles:
            momentum.begin(self.optimizer)
            momentum.apply(self.param_groups, momentum_now)
        self._schedule, self._cycles_momentum = schedule, cycles
        self._upcoming = (0, [])
        self._mark_groups()
        self._known_patches = self._patches()
        schedule_free.warn_of_schedule(self.optimizer, schedule)

    @property
    def current_steps(self) -> int:
        """The number of steps taken: the position in the schedule. A step that AMP skipped does not count."""
        return self._current_steps

    @current_steps.setter
    def current_steps(self, steps: int) -> None:
        position = whole_number(steps)
        if position is None or position < 0:
            raise ValueError(f"current_steps: got {steps!r}; give an integer of at least 0")
        if self._schedule is not None:
            self._apply(*_values(self._schedule, position))
        self._current_steps = position

    # ---------------------------------------------------------------- what every optimizer does

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Set the rate of this step, step the wrapped optimizer, and count the step.

        Without a schedule, the rates of the groups stay as they are: the user or a torch scheduler sets them.

        `torch.distributed.checkpoint` steps an optimizer that has no state once, with gradients and rates of zero, so
        that the optimizer makes its state. In that step the rates stay zero, and it is not counted.

        Args:
            closure: A function that computes the loss again, for optimizers such as LBFGS.

        Returns:
            The result of the wrapped optimizer: the loss of the closure, or None.
        """
        if not self.optimizer.state and self._only_makes_state():
            return self.optimizer.step()
        if self._schedule is not None:
            self._apply(*self._next_values(self._schedule))
        result = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self._current_steps += 1
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        if not set_to_none or type(self.optimizer).zero_grad is not Optimizer.zero_grad:
            self.optimizer.zero_grad(set_to_none=set_to_none)
            return
        for group in self.optimizer.param_groups:  # what torch does too, without its profiler's range
            for parameter in group["params"]:
                parameter.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its `lr` is its base rate.

        Raises:
            TypeError: The rate of the group is not a number.
            ValueError: The rate of the group is negative or not finite.
        """
        rate = param_group.get("lr", self.optimizer.defaults.get("lr"))
        if isinstance(rate, Tensor):  # torch's default is one tensor for all groups, which the schedule has multiplied
            for group, base in zip(self.optimizer.param_groups, self.base_learning_rates, strict=True):
                rate = base if group["lr"] is rate else rate
        base = rate_or_zero(rate, "lr of the new parameter group")
        if self._schedule is None:
            self.optimizer.add_param_group(param_group)
            return
        values = _values(self._schedule, self._current_steps)
        self.optimizer.add_param_group(param_group)
        self.optimizer.param_groups[-1]["base_lr"] = base
        self._mark_groups()
        if self._cycles_momentum:
            momentum.begin(self.optimizer)
        self._apply(*values)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's own groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = param_groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's own state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's own defaults."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def state_dict(self) -> dict[str, Any]:
        """The state_dict of the wrapped optimizer, and in it the schedule and its position.

        A plain torch optimizer can load this state_dict. A schedule of `mxtorch.schedules` is saved by its fields; for
        any other function, only the position is saved. Each parameter group has the position, too, because
        `torch.distributed.checkpoint` saves nothing beside parameters and groups.
        """
        schedule = self._schedule
        saved = schedule.to_dict() if schedules.is_savable(schedule) else None
        position = {
            "current_steps": self._current_steps,
            "schedule": saved,
            "has_schedule": schedule is not None,
        }
        content = self.optimizer.state_dict()
        content = {**content, **nested.states(self.optimizer, content)}
        content["param_groups"] = [{**group, _POSITION: self._current_steps} for group in content["param_groups"]]
        return {**content, "schedule": position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state_dict of a ScheduledOptim or of a plain torch optimizer.

        If it was saved with a function as the schedule, the present schedule stays and continues at the saved position.
        The same holds for what `torch.distributed.checkpoint` saved: a position without a schedule. The rates of a
        plain optimizer become the base rates, and the present position stays.

        Raises:
            ValueError: The state_dict was saved with a function as the schedule, and no schedule is set here; or it
                does not fit the wrapped optimizer. Nothing has changed then.
        """
        content = dict(state_dict)
        position = content.pop("schedule", None)
        schedule, steps = self._schedule, self._current_steps
        if position is not None:
            steps = int(position["current_steps"])
            if position["schedule"] is not None:
                schedule = schedules.from_dict(position["schedule"])
            elif not position["has_schedule"]:
                schedule = None
            elif schedule is None:
                raise ValueError(
                    "state_dict: it was saved with a function as the schedule, which a file can't hold; set "
                    "optimizer.schedule to that function, then load"
                )
        elif content.get("param_groups") and _POSITION in content["param_groups"][0]:
            steps = int(content["param_groups"][0][_POSITION])
        with nested.kept(self.optimizer, content.pop(nested.STATES, None)):
            self.optimizer.load_state_dict(content)
        self._schedule, self._current_steps, self._upcoming = schedule, steps, (0, [])
        self._mark_groups()
        self._cycles_momentum = schedules.cycles_momentum(schedule)
        if self._cycles_momentum:
            momentum.begin(self.optimizer)
        if position is None and schedule is not None:
            self._apply(*_values(schedule, steps))

    def __getattr__(self, name: str) -> Any:
        """Look up what only the wrapped optimizer has, such as the `train()` of a schedule-free one."""
        optimizer = self.__dict__.get("optimizer")  # absent while being unpickled
        if optimizer is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "_schedule": self._schedule,
            "_current_steps": self._current_steps,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._upcoming = (0, [])
        self._cycles_momentum = schedules.cycles_momentum(self._schedule)
        self._known_patches = self._patches()
        self._share_hooks()

    def __deepcopy__(self, memo: dict[int, Any]) -> ScheduledOptim:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin

    def __repr__(self) -> str:
        return f"ScheduledOptim({self.optimizer!r}, schedule={self._schedule!r}, current_steps={self._current_steps})"

    # ---------------------------------------------------------------- helpers

    def _share_hooks(self) -> None:
        """Share the dictionaries of hooks with the wrapped optimizer, so that each hook runs once for its event."""
        for name, value in vars(self.optimizer).items():
            if name.startswith("_optimizer_") and name.endswith("_hooks"):
                self.__dict__[name] = value

    def _only_makes_state(self) -> bool:
        """Whether a step can only make the optimizer's state, because all rates and all gradients are 0."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        if any(rate.device.type != "cpu" if isinstance(rate, Tensor) else rate for rate in rates):
            return False
        if any(bool(rate) for rate in rates):
            return False
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)

    def _mark_groups(self) -> None:
        """Give each group the key of the position while there is a schedule; `state_dict` fills in the number."""
        for group in self.optimizer.param_groups:
            group.pop(_POSITION, None)
            if self._schedule is not None:
                group[_POSITION] = 0

    def _next_values(self, schedule: Multiplier) -> Values:
        """The values of this step. Those of schedules of mxtorch, which are pure functions, are computed ahead."""
        if not isinstance(schedule, schedules.Schedule):
            self._warn_of_scheduler()
            return _values(schedule, self._current_steps)
        first, values = self._upcoming
        place = self._current_steps - first
        if not 0 <= place < len(values):
            self._warn_of_scheduler()
            first, place = self._current_steps, 0
            values = [_values(schedule, step) for step in range(first, first + STEPS_AHEAD)]
            self._upcoming = first, values
        return values[place]

    def _patches(self) -> list[Any]:
        """The functions by which torch's schedulers have replaced `step`, here and on the wrapped optimizer."""
        steps = [vars(part).get("step") for part in (self, self.optimizer)]
        return [step for step in steps if hasattr(step, "_wrapped_by_lr_sched")]

    def _warn_of_scheduler(self) -> None:
        """Warn once if a torch scheduler was made after the schedule was set, because it has no effect."""
        if self._patches() != self._known_patches:
            self._known_patches = self._patches()
            warnings.warn(
                f"A scheduler of torch was made for this optimizer, which has a schedule, {self._schedule!r}, that "
                "sets the rate in each step: the scheduler has no effect. Set optimizer.schedule = None, or give the "
                "scheduler to fit(schedule=...).",
                stacklevel=4,
            )

    def _apply(self, multiplier: float, momentum_now: float | None = None) -> None:
        for group in self.optimizer.param_groups:
            base = group.get("base_lr")
            if base is None:  # a group from elsewhere. Not setdefault: reading a tensor's rate waits for its device
                base = group["base_lr"] = float(group["lr"])
            set_group_rate(group, base * multiplier)
        if self._cycles_momentum:
            momentum.apply(self.param_groups, momentum_now)

    def _set_bases(self, bases: list[float]) -> None:
        for index, base in enumerate(bases):
            rate_or_zero(base, f"lr of parameter group {index}")
        if self._schedule is None:
            for group, base in zip(self.optimizer.param_groups, bases, strict=True):
                set_group_rate(group, base)
            return
        multiplier = multiplier_of(self._schedule, self._current_steps)
        for group, base in zip(self.optimizer.param_groups, bases, strict=True):
            group["base_lr"] = base
            set_group_rate(group, base * multiplier)


def set_group_rate(group: dict[str, Any], rate: float) -> None:
    """Set the rate of a parameter group; one that is a tensor is filled, not replaced."""
    if isinstance(group["lr"], Tensor):  # a captured graph reads this very tensor
        with torch.no_grad():
            group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def proportions(groups: Sequence[dict[str, Any]], bases: Sequence[float]) -> Sequence[float]:
    """Rates with the ratios between the groups: the base rates, or the rates with which a scheduler began.

    Args:
        groups: Parameter groups of an optimizer.
        bases: The base rate of each group. In the first step of a warm-up they may be 0.

    Raises:
        ValueError: The first base rate is 0, and the ratios are not known.
    """
    if bases[0] == 0:
        initial = [float(group.get("initial_lr", 0.0)) for group in groups]
        bases = initial if initial[0] > 0 else bases if any(bases) else [1.0] * len(bases)
    if bases[0] == 0:
        raise ValueError(
            "lr: the first parameter group's rate is 0 now, so the ratios between groups are unknown; set each "
            "group's 'lr' in param_groups"
        )
    return bases


def _values(schedule: Multiplier, step: int) -> Values:
    """The multiplier and the momentum for a step."""
    return multiplier_of(schedule, step), schedules.momentum_of(schedule, step)


def check_callable(schedule: object) -> None:
    """Raise unless a schedule can be called with a step.

    Raises:
        TypeError: The schedule is a class, or can't be called.
    """
    if isinstance(schedule, type):
        raise TypeError(f"schedule: got the class {schedule.__name__}; give an instance, {schedule.__name__}(...)")
    if not callable(schedule):
        raise TypeError(f"schedule: got {schedule!r}; give a schedule, which is a function of the step")


def multiplier_of(schedule: Multiplier, step: int) -> float:
    """The multiplier that a schedule gives for a step.

    Raises:
        ValueError: The multiplier is negative or not finite.
    """
    value = float(schedule(step))
    if not 0 <= value < math.inf:
        raise ValueError(f"schedule: {schedule!r} gives {value} for step {step}; it must be finite and not negative")
    return value
