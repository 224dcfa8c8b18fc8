"""Optimizers whose step computes loss and gradients itself, through a function that it is given."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch.engines.nonfinite import BadNumberError, mark_bad_gradients
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.context import Context


class PassedOver(Exception):  # noqa: N818 - it is no error
    """No batch of a window has a loss, so there is no step to take."""


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` can't do without a closure: LBFGS, an optimizer whose `step(closure)` has no default, SAM.

    Implementations of SAM often let `closure=None` pass and fail in the step. Their `first_step` and `second_step`,
    which the reference implementation has (Foret et al. 2021, arXiv 2010.01412), tell them.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    if callable(getattr(optimizer, "first_step", None)) and callable(getattr(optimizer, "second_step", None)):
        return True
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_closure_settings(context: Context, *, auto_accumulate: bool) -> None:
    """Raise where an optimizer that needs a closure can't be had with the engine or the arguments of `fit`.

    Raises:
        ValueError: The precision is fp16, whose scaler can't look at gradients that a closure computes; or there are
            several processes, which would have to agree in every computation; or `auto_accumulate` is asked for: when
            the memory turns out to be full, the step may have moved the weights already.
    """
    if auto_accumulate:
        raise ValueError(
            f"auto_accumulate: {type(context.optimizer.optimizer).__name__} computes loss and gradients several times "
            "within a step, which can't be begun anew in smaller parts; give the loader a smaller batch_size and the "
            "Trainer a larger accumulate"
        )
    if context.engine.world_size > 1:
        raise ValueError(
            f"optimizer: {type(context.optimizer.optimizer).__name__} computes loss and gradients several times within "
            "a step, which is not done over several processes; take another optimizer, or start one process"
        )
    if context.engine.precision == "fp16":
        raise ValueError(
            f"precision: 'fp16' scales gradients, and {type(context.optimizer.optimizer).__name__} computes them "
            "several times within a step, where they can't be unscaled; use 'bf16' or 'fp32', or another optimizer"
        )


def check_finite(loss: Tensor, optimizer: ScheduledOptim) -> None:
    """Raise a BadNumberError if a loss or a gradient is not finite.

    It waits for the device, as such an optimizer does itself when it reads the loss.
    """
    if not math.isfinite(value := loss.item()):
        raise BadNumberError(f"the loss is {value}")
    found = torch.zeros((), device=loss.device)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    mark_bad_gradients(gradients, found)
    if found.item():
        raise BadNumberError("the loss is finite, its gradient is not")


def clip_gradients(
    optimizer: ScheduledOptim, *, clip_grad_norm: float | None, clip_grad_value: float | None, measure_norm: bool
) -> Tensor | None:
    """Clip gradients, each value first and then the norm of all; returns the norm before that, if it was measured."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if clip_grad_value is not None:
        nn.utils.clip_grad_value_(parameters, clip_grad_value)
    if clip_grad_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
    if measure_norm:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return None
