"""The search for those who have a loop already: of plain objects, or of a function that takes a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch import schedules
from mxtorch._checks import (
    check_data,
    check_integer,
    check_loss_function,
    check_parameters,
    closest,
    positive_rate,
)
from mxtorch.engines.base import Precision
from mxtorch.engines.local import LocalEngine
from mxtorch.lr_finder.held_out import judged_set
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.search import Request, search
from mxtorch.lr_finder.step_function import HasGroups, Loss, StepFunction
from mxtorch.lr_finder.trainable import TrainerSteps
from mxtorch.optim.run_schedule import check_layer_scales
from mxtorch.optim.schedule_free import warn_of_search
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.context import Context
from mxtorch.training.step import StepSettings
from mxtorch.training.supervised import StepOutput, SupervisedSteps

if TYPE_CHECKING:
    from typing_extensions import Unpack

Schedule = schedules.ScheduleName | schedules.Schedule | Callable[[int], float]


class SearchOptions(TypedDict, total=False):
    """What every search may be given; see `mxtorch.find_lr` for the meaning of each."""

    epochs: int | None
    steps_per_epoch: int | None
    training_steps: int | None
    budget: float | None
    num_steps: int | None
    method: Literal["trials", "sweep"]
    start_lr: float | None
    end_lr: float | None
    progress: bool


class _PlainSteps(SupervisedSteps):
    """The default steps of a model and a loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None) -> None:
        self.model = model
        self.loss = loss


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    schedule: Schedule = "constant",
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    precision: Precision = "fp32",
    **options: Unpack[SearchOptions],
) -> LRFinderResult:
    """Find a learning rate for a model, an optimizer and data, by short trainings at several rates.

    It is what `Trainer.find_lr` does, for those who train with a loop of their own. A step is what such a loop does:
    the gradients of `loss(model(inputs), targets)`, then `optimizer.step()`. For a step that is more than that, see
    `mxtorch.lr_finder.find`. Afterwards, also after an error or Ctrl-C, everything is bit for bit what it was:
    parameters, buffers, gradients, modes, optimizer, random generators, the loader's order. Nothing is moved to another
    device, and no memory format is changed.

    Args:
        model: Any module, on the device where it is trained. Batches are moved there.
        optimizer: Any torch optimizer, or a `ScheduledOptim`, of the model's parameters. Its groups keep their ratios.
        train_data: A DataLoader or another iterable of batches that can be iterated again: `(inputs, targets)`, or
            dictionaries of the model's arguments.
        val_data: Where held-out samples come from; of several sets by name, the first one. Without it a part of the
            training data is set aside.
        loss: `loss(outputs, targets) -> scalar tensor`; None for models that return their own `.loss`.
        schedule: What the rate is for: a schedule, its name, or a function of the step that gives a multiplier. The
            best constant rate is not the best peak of a one-cycle.
        accumulate: Batches to an optimizer step.
        clip_grad_norm: Clip the norm of all gradients together to this, as the loop does.
        clip_grad_value: Clip every single value of the gradients to this.
        precision: `"fp32"`, `"bf16"` (autocast) or `"fp16"` (with a gradient scaler).
        **options: `epochs` of the training, with `steps_per_epoch` for data without a length, or `training_steps` in
            their place; without them 300 steps are assumed. `budget`, a part of the training's steps, or `num_steps`:
            what to spend; 20% of the training or about 20 seconds when left out. `method`, `"trials"` or `"sweep"` for
            a range test. `start_lr` and `end_lr`: no rate outside is tried. `progress=False` shows none.

    Returns:
        The suggestion with its interval and its status, a promise or a guess, and the data behind them.

    Raises:
        ValueError: An argument is wrong, or the first batch can't be trained on.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch, mxtorch
        >>> inputs = torch.randn(256, 4)
        >>> batches = list(zip(inputs.split(16), (inputs.sum(1, keepdim=True) > 0).float().split(16)))
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> found = mxtorch.find_lr(net, optimizer, batches, loss=nn.BCEWithLogitsLoss(), epochs=5, num_steps=600)
        >>> found.suggestion > 0.001, optimizer.param_groups[0]["lr"]  # it was only looked for
        (True, 0.001)
    """
    check_data(train_data, "train_data", passes=2)
    val_data = judged_set(val_data)
    check_loss_function(loss)
    loss_module = loss if isinstance(loss, nn.Module) else None
    check_parameters(model, loss_module, optimizer)
    settings = StepSettings(
        check_integer(accumulate, "accumulate"),
        None if clip_grad_norm is None else positive_rate(clip_grad_norm, "clip_grad_norm"),
        None if clip_grad_value is None else positive_rate(clip_grad_value, "clip_grad_value"),
    )
    request, progress = _request(train_data, settings.accumulate, schedule, options)
    scheduled = optimizer if isinstance(optimizer, ScheduledOptim) else ScheduledOptim(optimizer)
    check_layer_scales(scheduled)
    warn_of_search(scheduled.optimizer, request.method)
    engine = LocalEngine(next(model.parameters()).device, precision, channels_last=False)
    steps = _PlainSteps(model, loss)
    context = Context(model, loss, scheduled, engine, steps.training_step, steps.evaluation_step, steps.prediction_step)
    return search(TrainerSteps(context, settings, scheduled), train_data, val_data, request, progress=progress)


def find(
    step: Callable[[Any], Loss | None],
    optimizer: Optimizer | HasGroups,
    batches: Iterable[Any],
    *,
    state: nn.Module | Sequence[Any],
    evaluate: Callable[[Any], Loss | StepOutput | None] | None = None,
    val_data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    loss: Callable[..., Tensor] | None = None,
    schedule: Schedule = "constant",
    accumulate: int = 1,
    usual_lr: float | None = None,
    begin: Callable[[], Any] | None = None,
    **options: Unpack[SearchOptions],
) -> LRFinderResult:
    """Find a learning rate for any loop, given as the function that takes one of its steps.

    The function is called with batch after batch from the same state, at one rate after the other, as
    `mxtorch.find_lr` trains. Afterwards, also after an error or Ctrl-C, everything that can be reached from `state`,
    the optimizer, the data and the variables that the functions close over is bit for bit what it was, and so are the
    random generators of Python, NumPy and torch.

    Args:
        step: `step(batch) -> loss`, a scalar tensor or a number: forward, backward, clipping and `optimizer.step()`
            with its clearing of gradients, as the loop does it. It moves the batch to the device itself. None for a
            batch without a loss.
        optimizer: Whose rate is searched: the optimizer that `step` steps, wrapped or not; or any object whose
            `param_groups` are dictionaries of which each step reads `"lr"`. A rate is tried by setting it there.
        batches: What `step` is called with: a loader, or an iterable that can be iterated again.
        state: What `step` changes: the model, and others with a state, as further models, a `GradScaler` or a moving
            average. What the function holds in variables of an enclosing function is found without being named; global
            variables are not.
        evaluate: `evaluate(batch) -> loss` of held-out samples. It is called in evaluation mode without gradients, and
            need not set either. A `StepOutput` tells how much a batch weighs. Without it losses of training are
            judged, and a rate is a guess.
        val_data: Where held-out samples come from; of several sets by name, the first one. Without it some of `batches`
            are held out.
        loss: `loss(outputs, targets)`. With it, and outputs and targets in what `evaluate` returns, a network that has
            learnt everything already is told.
        schedule: What the rate is for: a schedule, its name, or a function of the step that gives a multiplier.
        accumulate: Batches to an optimizer step. Above 1 `step` is called with a list of so many batches, which is
            shorter at the end of a pass, adds up their gradients, and returns their mean loss.
        usual_lr: The rate around which others are tried, from a hundredth of it to a thousand times it. Left out, the
            usual one of the optimizer's kind: 1e-3 for Adam's, 1e-2 for SGD's, three times that for a peak.
        begin: Called before each training, after everything is put back, for what a loop does before its first step.
            A model that is wholly in evaluation mode has been put into training mode by then.
        **options: As for `mxtorch.find_lr`.

    Returns:
        The suggestion with its interval and its status, a promise or a guess, and the data behind them.

    Raises:
        ValueError: An argument is wrong, `step` never steps the optimizer or sets the rate itself.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from mxtorch.lr_finder import find
        >>> inputs = torch.randn(256, 4)
        >>> batches = list(zip(inputs.split(16), (inputs.sum(1, keepdim=True) > 0).float().split(16)))
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> def evaluate(batch):
        ...     return nn.functional.binary_cross_entropy_with_logits(net(batch[0]), batch[1])
        >>> def step(batch):
        ...     optimizer.zero_grad()
        ...     loss = evaluate(batch)
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> found = find(step, optimizer, batches, state=net, evaluate=evaluate, epochs=5, num_steps=600)
        >>> found.suggestion > 0.001, found.trials[-1].steps
        (True, 80)
    """
    for name, function in {"step": step, "evaluate": evaluate or step, "begin": begin or step}.items():
        if not callable(function):
            raise TypeError(f"{name}: got {function!r}; give a function")
    check_data(batches, "batches", passes=2)
    val_data = judged_set(val_data)
    check_loss_function(loss)
    parts = _checked_state(state, optimizer)
    accumulate = check_integer(accumulate, "accumulate")
    usual_lr = None if usual_lr is None else positive_rate(usual_lr, "usual_lr")
    request, progress = _request(batches, accumulate, schedule, options)
    if isinstance(optimizer, Optimizer):
        check_layer_scales(optimizer)
        warn_of_search(optimizer, request.method)
    trainable = StepFunction(step, optimizer, parts, evaluate, loss, accumulate, usual_lr, begin)
    with trainable.watched():
        return search(trainable, batches, val_data, request, progress=progress)


def _request(data: Any, accumulate: int, schedule: Schedule, options: SearchOptions) -> tuple[Request, bool]:
    """What is asked for, and whether the progress is shown.

    Raises:
        TypeError: There is no such option.
    """
    unknown = next((name for name in options if name not in SearchOptions.__annotations__), None)
    if unknown is not None:
        raise TypeError(f"{unknown}: there is no such option{closest(unknown, SearchOptions.__annotations__)}")
    given: dict[str, Any] = dict(options)
    progress = given.pop("progress", True)
    return Request.checked(data, [(1, accumulate)], schedule=schedule, **given), progress


def _checked_state(state: Any, optimizer: Any) -> Sequence[Any]:
    """What a step changes, as a sequence of objects.

    Raises:
        TypeError: There is no module in it, or the optimizer has no parameter groups.
        ValueError: The optimizer trains none of the modules.
    """
    parts = state if isinstance(state, (tuple, list)) else [state]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    if not modules:
        raise TypeError(f"state: got {state!r}; give the model, or (model, ...) with what else step changes")
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, dict) and "lr" in group for group in groups):
        raise TypeError(f"optimizer: got {optimizer!r}; give an optimizer whose param_groups have an 'lr'")
    held = {id(parameter) for group in groups for parameter in group.get("params", ())}
    if held and not any(id(parameter) in held for module in modules for parameter in module.parameters()):
        raise ValueError(
            "state: the optimizer holds no parameter of the modules in it; give the model that the optimizer was made "
            "for, and make the optimizer after the last change to the model's layers"
        )
    return parts
