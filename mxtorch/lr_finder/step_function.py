"""Training loops of any kind: a function that takes one step, and the objects that it changes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch._checks import number
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import Engine
from mxtorch.engines.local import LocalEngine, read_later
from mxtorch.lr_finder.budget import usual_rate
from mxtorch.lr_finder.range_test import RateSetter, rate_setter
from mxtorch.lr_finder.trainable import Weighted, loss_with_exchanged_targets
from mxtorch.optim import momentum
from mxtorch.optim.schedule_free import chain_of, evaluation_point, set_training_point
from mxtorch.optim.scheduled import ScheduledOptim, proportions
from mxtorch.training.data import Window
from mxtorch.training.loss_weight import as_scalar
from mxtorch.training.supervised import StepOutput, batch_size, weight_of

Loss = Tensor | float
# Rates that differ by less are the same: a rate that is a tensor has seven digits.
_SAME_RATE = 1e-5


class HasGroups(Protocol):
    """An optimizer of another library: parameter groups, dictionaries of which each step reads `"lr"`."""

    @property
    def param_groups(self) -> Sequence[dict[str, Any]]:
        """The groups themselves, not copies."""


class StepFunction:
    """A `Trainable` made of a function that takes one step.

    Args:
        step: `step(batch) -> loss` runs forward, backward and the optimizer's step. It returns None for a batch that
            has no loss. If a step takes several batches, the function gets a list of them.
        optimizer: The optimizer whose rate is searched.
        state: The modules, and everything else that `step` changes.
        evaluate: `evaluate(batch)` returns a loss or a `StepOutput`. With None, the search judges by training losses.
        loss: `loss(outputs, targets)` for the outputs that `evaluate` returns; or None.
        accumulate: The number of batches in an optimizer step.
        usual_lr: The search tries rates around this one; None takes the usual rate of this kind of optimizer.
        begin: A function that the search calls before each training; or None.
    """

    step_name = "step"
    optimizer_name: str | None = None

    def __init__(
        self,
        step: Callable[[Any], Loss | None],
        optimizer: Optimizer | HasGroups,
        state: Sequence[Any],
        evaluate: Callable[[Any], Loss | StepOutput | None] | None,
        loss: Callable[..., Tensor] | None,
        accumulate: int,
        usual_lr: float | None,
        begin: Callable[[], Any] | None,
    ) -> None:
        self.modules = [part for part in state if isinstance(part, nn.Module)]
        self.engine: Engine = LocalEngine("cpu")  # there is one process; the function itself chooses the device
        self.accumulate = accumulate
        first = next((parameter for module in self.modules for parameter in module.parameters()), torch.zeros(()))
        self.read_lag = 0 if first.device.type == "cpu" else 2
        self.may_skip_steps = any(isinstance(part, torch.amp.GradScaler) for part in state)
        self.is_compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in self.modules)
        self._step, self._evaluate, self._loss, self._begin = step, evaluate, loss, begin
        self._given = optimizer
        self._chain: list[Optimizer] = chain_of(optimizer) if isinstance(optimizer, Optimizer) else []
        self._groups = optimizer.param_groups
        held = {id(parameter) for group in self._groups for parameter in group.get("params", ())}
        self._trained = [module for module in self.modules if any(id(one) in held for one in module.parameters())]
        self._state = state
        self._usual_lr = usual_lr
        self._rates: list[float] | None = None  # the rates that the search has set; the step must not change them
        self._steps = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """In the block, count the optimizer's steps, and check that each one runs at the rate that was set."""
        if not self._chain:  # an optimizer of another library has no hooks
            yield
            return
        handles = [
            self._chain[-1].register_step_pre_hook(self._check_rates),
            self._chain[-1].register_step_post_hook(self._count),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def usual_rate(self, is_constant: bool) -> float:
        """Return the rate that the user gave, or the usual rate of this kind of optimizer."""
        if self._usual_lr is not None:
            return self._usual_lr
        return usual_rate(self._chain[-1] if self._chain else self._given, is_constant)

    def capture(self, data: Any) -> TrainingState:
        """Copy everything that steps and passes over the data change.

        Gradients are copied by value, because a loop may clear them at any place and in any way.
        """
        others = {"optimizer": self._given, "step": self._step, "evaluate": self._evaluate, "begin": self._begin}
        others["state"] = [part for part in self._state if not isinstance(part, nn.Module)]
        others = {name: part for name, part in others.items() if part is not None}
        return TrainingState(self.modules, None, loader=data, others=others)

    def begin(self) -> None:
        """Set training mode for trained modules that are in evaluation mode; frozen parts keep their mode."""
        for module in self._trained:
            if not module.training:
                module.train()
        set_training_point(self._chain[:1])
        self._rates = None
        if self._begin is not None:
            self._begin()

    def rate_setter(self) -> RateSetter:
        """Return a function that sets the rates; the schedule of a `ScheduledOptim` is removed meanwhile."""
        bases = [float(group["lr"]) for group in self._groups]
        for part in self._chain:
            if isinstance(part, ScheduledOptim):
                part.schedule = None
                bases = part.base_learning_rates
        if self._chain:
            momentum.begin(self._chain[-1])
        set_rates = rate_setter(self._groups, proportions(self._groups, bases))

        def set_rate(rate: float, momentum_now: float | None = None, /) -> None:
            set_rates(rate, momentum_now)
            self._rates = [float(group["lr"]) for group in self._groups]

        return set_rate

    def step(self, window: Window) -> tuple[Tensor | None, bool]:
        """Take one optimizer step; return the loss (None if no batch has one) and whether the step was taken."""
        steps_before = self._steps
        loss = self._step(window.batches if self.accumulate > 1 else window.batches[0])
        taken = self._steps > steps_before or not self._chain
        return (None, False) if loss is None else (_scalar(loss, "step"), taken)

    def move(self, batch: Any) -> Any:
        """Return the batch as it is: the user's functions move it themselves."""
        return batch

    def judged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager: in the block, the model has averaged weights if the optimizer averages them."""
        return evaluation_point(self._chain[:1])

    def why_training_losses(self) -> str | None:
        """Say that `evaluate` is missing, without which held-out batches have no loss."""
        return "evaluate was not given, so training losses are judged" if self._evaluate is None else None

    def why_not_judged(self, batch: Any) -> str:
        """Try whether `evaluate` gives a loss."""
        return "evaluate gives no loss, so training losses are judged" if self._output(batch).loss is None else ""

    def loss_of(self, batch: Any) -> Weighted:
        """Return the loss of a held-out batch and its weight."""
        output = self._output(batch)
        weight = None if output.loss is None else weight_of(output)
        return output.loss, (batch_size(batch) or 1) if weight is None else as_scalar(weight)

    def exchanged_loss(self, batch: Any) -> float | None:
        """Return the loss with the targets of other samples; this needs outputs and targets from `evaluate`."""
        return None if self._loss is None else loss_with_exchanged_targets(self._loss, self._output(batch))

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Start to read a scalar tensor; return a function that waits for the number."""
        return read_later(value)

    def _output(self, batch: Any) -> StepOutput:
        assert self._evaluate is not None
        given: Any = self._evaluate(batch)
        output = given if isinstance(given, StepOutput) else StepOutput(given)
        return output if output.loss is None else output._replace(loss=_scalar(output.loss, "evaluate"))

    def _check_rates(self, optimizer: Optimizer, *arguments: Any) -> None:
        """Raise if `step` has changed the rate: then the search would try no rate at all."""
        if self._rates is None:
            return
        for group, rate in zip(self._groups, self._rates, strict=True):
            if not math.isclose(now := float(group["lr"]), rate, rel_tol=_SAME_RATE):
                raise ValueError(
                    f"step: it set the rate to {now:g} before the optimizer's step, where {rate:g} is to be tried. "
                    "Leave schedulers out of step, or step them after the optimizer; give the ScheduledOptim, where "
                    "one wraps the optimizer"
                )

    def _count(self, optimizer: Optimizer, *arguments: Any) -> None:
        self._steps += 1


def _scalar(loss: Any, function: str) -> Tensor:
    """Return a loss as a scalar tensor without a graph.

    Raises:
        TypeError: The loss is neither a number nor a tensor.
        ValueError: The loss is a tensor of several numbers.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"{function}: it returned a loss of shape {list(loss.shape)}; return a scalar")
        return loss.detach().reshape(())
    value = number(loss)
    if value is None:
        raise TypeError(f"{function}: it returned {type(loss).__name__}; return the loss, a scalar tensor or a number")
    return torch.tensor(value)
