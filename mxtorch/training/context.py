"""What a step, a pass over data and a search for a rate are given of a trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import Engine
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.supervised import Batch, StepOutput, SupervisedSteps, batch_size


@dataclass(frozen=True)
class Context:
    """The model with everything that computes and changes it.

    Attributes:
        model: The module that is trained.
        loss: `loss(outputs, targets) -> scalar tensor`, or None where the model computes its own loss.
        optimizer: Takes the steps.
        other_optimizers: Optimizers by name that `training_step` steps itself.
        engine: Where the steps run.
        training_step: The loss of a batch.
        evaluation_step: Loss, outputs and targets of a batch of validation data.
        prediction_step: The outputs for a batch.
        count_samples: The number of samples in a batch, or None.
        owner: An object whose attributes the steps may change: the trainer, of which a user's class may hold further
            modules and optimizers.
    """

    model: nn.Module
    loss: Callable[..., Tensor] | None
    optimizer: ScheduledOptim
    engine: Engine
    training_step: Callable[[Batch], Tensor | StepOutput | None]
    evaluation_step: Callable[[Batch], Tensor | StepOutput]
    prediction_step: Callable[[Batch], Any]
    other_optimizers: dict[str, ScheduledOptim] = field(default_factory=dict)
    owner: object = None
    count_samples: Callable[[Batch], int | None] = batch_size

    @property
    def optimizers(self) -> list[ScheduledOptim]:
        """The optimizer and the other ones."""
        return [self.optimizer, *self.other_optimizers.values()]

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the loss where it is a module."""
        return [self.model, self.loss] if isinstance(self.loss, nn.Module) else [self.model]

    @property
    def has_own_training_step(self) -> bool:
        """Whether a user overrode `training_step`."""
        return getattr(self.training_step, "__func__", None) is not SupervisedSteps.training_step

    @property
    def has_own_evaluation_step(self) -> bool:
        """Whether a user overrode `evaluation_step`."""
        return getattr(self.evaluation_step, "__func__", None) is not SupervisedSteps.evaluation_step

    def capture(self, loader: Any = None, *, before_first_step: bool = False) -> TrainingState:
        """A copy of everything that steps change, to be put back.

        Args:
            loader: What batches are drawn from, if its order is to be put back, too.
            before_first_step: Leave out what only `optimizer.step()` changes.
        """
        return TrainingState(
            self.modules,
            self.optimizer,
            capture_engine=self.engine.capture,
            loader=loader,
            owner=self.owner,
            before_first_step=before_first_step,
        )
