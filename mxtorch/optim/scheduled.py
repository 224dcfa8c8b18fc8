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
# Between the kernels of a step a schedule's formula is not in the processor's cache and costs ten times what it costs
# in a loop, so multipliers are computed for this many steps at once.
STEPS_AHEAD = 128
# torch.distributed.checkpoint saves of a state_dict what belongs to parameters and groups, and nothing beside them; its
# flattened form loads only the settings that a group has already. So each group carries the position, too.
_POSITION = "schedule_position"


class ScheduledOptim(Optimizer):
    """Wraps any torch optimizer, and is one: torch's schedulers, `GradScaler` and Accelerate accept it.

    It shares the wrapped optimizer's `param_groups`, `state` and hooks, and owns no copy; attributes that it
    does not know are looked up there.

    Args:
        optimizer: Any `torch.optim.Optimizer`.
        schedule: A function of the step that gives a multiplier of the base rate; or None. A schedule of
            `mxtorch.schedules` may give a momentum, too, for optimizers that have one.

    Attributes:
        optimizer: The wrapped optimizer.

    Raises:
        TypeError: `optimizer` is no torch optimizer, or a ScheduledOptim already.
        ValueError: A group's rate is negative or not finite.

    Warns:
        UserWarning: The rate or the schedule is none that D-Adaptation, Prodigy or Schedule-Free is meant to have; see
            `mxtorch.rate_free`. Setting one later warns too.
    """

    # GradScaler hands fused optimizers its scale and lets them skip a step by themselves, unseen. Without this
    # it unscales first and calls `step` for finite gradients only, so a skipped step is not counted.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Optimizer, schedule: Multiplier | None = None) -> None:
        # Optimizer.__init__ is left out on purpose: it would make groups and state of its own.
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
        """The rate in force: that of the first parameter group in the step just taken, or the first to come."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def learning_rates(self) -> list[float]:
        """The rate in force of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def group_names(self) -> list[str]:
        """The `"name"` of each parameter group; `group0`, `group1`, ... where it has none, or none of its own.

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
        """What the schedule multiplies, of the first group. Without a schedule it is the rate in force."""
        return self.base_learning_rates[0]

    @property
    def base_learning_rates(self) -> list[float]:
        """What the schedule multiplies, of each group."""
        if self._schedule is None:
            return self.learning_rates
        return [float(group.get("base_lr", group["lr"])) for group in self.optimizer.param_groups]

    def set_learning_rate(self, lr: float) -> None:
        """Set the base rate of the first group; the others keep their ratios to it.

        Where the first group's rate is 0 now, as in a warm-up's first step, the ratios are those of the rates that a
        scheduler of torch began with (`"initial_lr"`); groups whose rates are all 0 get the same rate.

        With a schedule the rate of the current step is in force at once. A torch scheduler keeps base rates of its
        own and writes over this one.

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
            ValueError: `factor`, or a rate that comes out, is not finite and positive.
        """
        factor = positive_rate(factor, "factor")
        self._set_bases([base * factor for base in self.base_learning_rates])
        schedule_free.warn_of_rate(self.optimizer, self.base_learning_rate)

    # ---------------------------------------------------------------- schedule

    @property
    def schedule(self) -> Multiplier | None:
        """The function of the step that multiplies the base rate, or None.

        Setting one puts the rate of the current step in force; setting None puts the base rate in force. While there
        is one, each parameter group holds its base rate as `"base_lr"`. It must give a finite number that is not
        negative (ValueError), and be callable (TypeError).
        """
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Multiplier | None) -> None:
        if isinstance(schedule, type):
            raise TypeError(f"schedule: got the class {schedule.__name__}; give an instance, {schedule.__name__}(...)")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule: got {schedule!r}; give a function of the step, or None")
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
        """Steps taken, which is the schedule's position. A step that AMP skipped does not count."""
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
        """Apply the rate of this step, step the wrapped optimizer, count.

        Without a schedule the groups' rates are left alone: they belong to the user, or to a torch scheduler.

        `torch.distributed.checkpoint` steps an optimizer without state once, with gradients and rates of zero, to have
        it make its state. That step keeps these rates and is not counted.

        Args:
            closure: Computes the loss anew, for optimizers such as LBFGS.

        Returns:
            What the wrapped optimizer returns: the closure's loss, or None.
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
        """Add a group; its `lr` is its base rate.

        Raises:
            TypeError: Its rate is not a number.
            ValueError: Its rate is negative or not finite.
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
        """The wrapped optimizer's state_dict with the schedule and its position beside it.

        A plain torch optimizer can load it. A schedule of `mxtorch.schedules` is saved by its fields; of any other
        function the position alone is saved. Each parameter group has the position, too, so it passes through
        `torch.distributed.checkpoint`.
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
        """Load what `state_dict` gave, here or on a plain torch optimizer.

        Where it was saved with a function as the schedule, the schedule that is set here stays and takes over the
        position. So it does with what `torch.distributed.checkpoint` saved, which holds a position and no schedule. A
        plain optimizer's rates become the base rates, at the position that is set here.

        Raises:
            ValueError: It was saved with a function as the schedule, and none is set here; or it does not fit the
                wrapped optimizer. Nothing has changed then.
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
        """Hooks registered here run when the wrapped optimizer does what they are for, once."""
        for name, value in vars(self.optimizer).items():
            if name.startswith("_optimizer_") and name.endswith("_hooks"):
                self.__dict__[name] = value

    def _only_makes_state(self) -> bool:
        """Whether a first step can do no more than make the optimizer's state: no rate, and no gradient, is above 0."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        if any(rate.device.type != "cpu" if isinstance(rate, Tensor) else rate for rate in rates):
            return False
        if any(bool(rate) for rate in rates):
            return False
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)

    def _mark_groups(self) -> None:
        """Let each group have the key of the position while there is a schedule; its number is in the state_dict."""
        for group in self.optimizer.param_groups:
            group.pop(_POSITION, None)
            if self._schedule is not None:
                group[_POSITION] = 0

    def _next_values(self, schedule: Multiplier) -> Values:
        """What this step needs; of our own schedules, pure functions, it is computed some steps ahead."""
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
        """What torch's schedulers have put in place of the `step` of this optimizer and of the wrapped one."""
        steps = [vars(part).get("step") for part in (self, self.optimizer)]
        return [step for step in steps if hasattr(step, "_wrapped_by_lr_sched")]

    def _warn_of_scheduler(self) -> None:
        """Warn once of a scheduler of torch that was made since the schedule was set, and can do nothing."""
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
        multiplier = _multiplier(self._schedule, self._current_steps)
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
    """Rates whose ratios are those between the groups: the base rates, or those that a scheduler began with.

    Args:
        groups: Parameter groups of an optimizer.
        bases: The base rate of each. In a warm-up's first step they may be 0.

    Raises:
        ValueError: The first one is 0, and the ratios are not known.
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
    return _multiplier(schedule, step), schedules.momentum_of(schedule, step)


def _multiplier(schedule: Multiplier, step: int) -> float:
    value = float(schedule(step))
    if not 0 <= value < math.inf:
        raise ValueError(f"schedule: {schedule!r} gives {value} for step {step}; it must be finite and not negative")
    return value
