"""What the training loop asks of the device, or of the devices, that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mxtorch.optim.scheduled import ScheduledOptim

Precision = Literal["fp32", "bf16", "fp16"]


class StepResult(NamedTuple):
    """What an optimizer step did.

    Attributes:
        taken: Whether the step was taken. fp16 skips a step whose gradients overflow.
        gradient_norm: The norm of all gradients together before clipping, a scalar tensor; None where it was not
            measured.
        bad: A float tensor on the device that is 1 where the gradients are not finite. The loop reads it later, since
            reading it now would wait for the device. None where the engine has looked already.

    Example:
        >>> import torch
        >>> StepResult(taken=True, gradient_norm=torch.tensor(0.5)).taken
        True
    """

    taken: bool
    gradient_norm: Tensor | None
    bad: Tensor | None = None


@runtime_checkable
class Engine(Protocol):
    """Moves data, computes gradients, takes steps, and lets several processes decide together.

    The loop knows no device and no process group: everything that depends on them goes through these methods.
    `LocalEngine` is plain torch on one device, `DistributedEngine` several processes. Hand your own to
    `Trainer(engine=...)`; derive it from one of the two, where what it does not change is done.

    What all processes have to do at the same time is said of each method. In a world of one process these methods
    return what they are given, and cost nothing.

    Attributes:
        device: Where the model and the batches of this process are.
        precision: `"fp32"`, `"bf16"` or `"fp16"`.
        asynchronous: Whether reading a number from a tensor waits for queued work, as on an accelerator. Where this is
            False the loop looks at every loss at once; elsewhere it reads losses in logging steps only.
        is_main: Whether this process writes files and prints. Exactly one process does.
        rank: The place of this process among all, from 0.
        world_size: The processes that compute together: 1 within `alone`.
        dealt: How many processes' shares of the data this one is dealt: 1, or all of them within `alone` and
            `whole_data`.
        shards: Whether each process holds a part of the model only, so that none can run it alone.
        splits_data: Whether all processes are given the same data, of which `share` takes each one's part. Where this
            is False, each is given its own part.

    Example:
        >>> from mxtorch.engines import LocalEngine
        >>> isinstance(LocalEngine("cpu"), Engine)
        True
    """

    device: torch.device
    precision: Precision
    asynchronous: bool
    is_main: bool
    rank: int
    world_size: int
    dealt: int
    shards: bool
    splits_data: bool

    def prepare(self, model: nn.Module, loss: nn.Module | None, *optimizers: ScheduledOptim) -> None:
        """Bring the model, a loss with parameters, and the state of optimizers to the device, in place."""

    def move(self, batch: Any) -> Any:
        """The batch with its tensors on the engine's device."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The context of all but the last backward pass of a window: gradients are not exchanged in it."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the parameters."""

    def zero_grad(self, optimizer: ScheduledOptim) -> None:
        """Clear the gradients, as a step begins; all processes together."""

    def stand_in(self) -> Tensor | None:
        """A loss without gradients, in place of that of a batch which has none, or is none.

        Other processes have a forward pass there, in which they may exchange something. None in a world of one.
        """

    def exchange_gradients(self, optimizer: ScheduledOptim, loss: Tensor | None, *, held_back: bool) -> None:
        """Make the gradients the mean of those of all processes; all together, once a step.

        Args:
            optimizer: Its parameters have the gradients of this process.
            loss: The last one of the step, or what stands in for it, whose gradients are added before; the exchange may
                go on meanwhile.
            held_back: All of the step's backward passes are over, under `no_sync`, and `loss` is None.
        """

    def total(self, *values: float | Tensor) -> Tensor:
        """The sums over all processes of some scalars, float64 [number of values] on the device.

        All processes together, once a step: what `agree_soon` was told goes along.
        """

    def step(
        self,
        optimizer: ScheduledOptim,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        measure_norm: bool = False,
        on_nonfinite: str | None = None,
    ) -> StepResult:
        """Clip the gradients, each value first and then the norm of all, and take the step.

        Args:
            optimizer: Its parameters have their gradients.
            clip_grad_norm: The norm to clip to.
            clip_grad_value: The absolute value to clip each element to.
            measure_norm: Measure the norm without clipping, too.
            on_nonfinite: What a gradient that is not finite means: `"raise"`, `"skip"` or `"rollback"`. None does not
                look.

        Raises:
            BadNumberError: A gradient is not finite; no parameter has changed.
        """

    def reduce(self, value: Tensor, how: Literal["mean", "sum"] = "mean") -> Tensor:
        """The mean or the sum of a tensor over all processes."""

    def gather(self, value: Tensor) -> Tensor:
        """The tensors of all processes, joined along the first dimension in the order of the processes."""

    def agree(self, flag: bool) -> bool:
        """Whether the flag is True on any process.

        Every decision that all processes must take together goes through this: to stop, to skip a step, that the loss
        has diverged, that the memory is full. All processes together; each of them waits for the others.
        """

    def agree_soon(self, flag: bool) -> bool:
        """As `agree`, for every step: the answer may come some steps late, and at the same step on all processes.

        It goes with the sums of `total`, so that it costs no exchange of its own and no accelerator is waited for.
        """

    def broadcast(self, value: Any) -> Any:
        """What the main process gives, a number, text or another object on the host; all together."""

    def gather_values(self, value: Any) -> list[Any]:
        """What all processes give, in their order; all together."""

    def share(self, data: Any) -> Any:
        """This process's part of data: loaders are dealt by their samples, other iterables by their batches.

        Raises:
            ValueError: The data can't be dealt.
        """

    def check_same(self, call: str, facts: Mapping[str, Any]) -> None:
        """Raise on all processes where one of them was given something else; all together.

        Args:
            call: What is being done, as `"fit"`.
            facts: Arguments and their values, as plain values.

        Raises:
            ValueError: An argument and what each process was given.
        """

    def together(self) -> AbstractContextManager[Any]:
        """In the block, an exception on one process ends the others with its message; all together.

        It may be entered again within itself.
        """

    def alone(self) -> AbstractContextManager[Any]:
        """In the block this process computes by itself: gradients are not exchanged, sums are its own.

        Shared data deal it the batches of all processes, one after the other: those of a step follow one another.
        """

    def whole_data(self) -> AbstractContextManager[Any]:
        """In the block shared data deal this process the batches of all."""

    def file_group(self) -> Any:
        """A process group in which a thread may write a checkpoint of a sharded model; None in a world of one."""

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Begin to read a scalar tensor; the function that is returned gives the number.

        The function waits for the work that was queued before this call, and not for what is queued after it, as
        `item()` would.
        """

    def forget_bad_steps(self) -> None:
        """Stop holding steps back because of a gradient that was not finite."""

    def state_dict(self) -> dict[str, Any]:
        """What changes while training: the scale of fp16."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""

    def capture(self) -> Callable[[], None]:
        """Copy all that a step changes in the engine; the function that is returned puts it back."""


@runtime_checkable
class TriesMemoryFormat(Protocol):
    """An engine that may hold images and weights in a faster memory format, which not every network can take.

    It is a part of an engine that `Engine` does not ask for. Each kind of step is tried with its first batch, because
    whether code relies on the order of elements in memory shows in no other way.

    Attributes:
        memory_format: Of 4-d inputs and weights; None leaves them as they are.
    """

    memory_format: torch.memory_format | None

    def needs_trial(self, step: str) -> bool:
        """Whether a kind of step has yet to be tried in the format.

        Args:
            step: `"training_step"`, `"evaluation_step"` or `"prediction_step"`.
        """

    def begin_trial(self, step: str) -> bool:
        """`needs_trial`; if so, the format is put in force."""

    def accept_trial(self, step: str) -> None:
        """Note that a kind of step works in the format."""

    def suspend_memory_format(self) -> bool:
        """Put everything back into the default format; False where that is what it is in, or what the user chose."""

    def resume_memory_format(self) -> None:
        """Undo `suspend_memory_format`: the format was not what made the step fail."""

    def reject_memory_format(self, step: str, error: Exception) -> None:
        """Stay in the default format from now on, and log why."""
