"""The search in Lightning, in place of its Tuner: a function, and a callback that finds the rate as training begins."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from mxtorch.checkpointing.random_state import raw_random_state, set_raw_random_state
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.integrations.rates import schedule_in_force, set_base_rate
from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.without_trainer import Schedule, SearchOptions, find

try:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
except ModuleNotFoundError:  # the same under its other name
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def find_lr(
    module: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    *,
    datamodule: LightningDataModule | None = None,
    schedule: Schedule | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    **options: Unpack[SearchOptions],
) -> LRFinderResult:
    """Find a learning rate for a LightningModule.

    A step is Lightning's own: `training_step`, `backward` and `optimizer_step` with their hooks, the precision,
    clipping and accumulation that `trainer_options` ask for. What is logged goes nowhere, and no callback is called.
    Held-out samples are judged by `training_step` in evaluation mode without gradients, since `validation_step` mostly
    returns nothing. Afterwards the module, the data and the random generators are bit for bit what they were.

    Args:
        module: With automatic optimization and one optimizer.
        train_dataloaders: As for `Trainer.fit`.
        val_dataloaders: As for `Trainer.fit`; of several the first is used.
        datamodule: In place of the loaders.
        schedule: What the rate is for. Left out, that of the `ScheduledOptim` or `LambdaLR` which
            `configure_optimizers` returns, and constant where it returns no scheduler.
        trainer_options: Arguments of Lightning's `Trainer` that matter for a step or its length, as
            `{"precision": "bf16-mixed", "accumulate_grad_batches": 4, "max_epochs": 10}`.
        **options: As for `mxtorch.find_lr`. Without `epochs` and `training_steps` the length is that of `max_epochs`
            or `max_steps` in `trainer_options`.

    Returns:
        The suggestion with its interval and its status, and the data behind them.

    Raises:
        ValueError: The module steps optimizers itself, has several, or a scheduler that does not tell its multipliers;
            or training runs in several processes.

    Example:
        >>> import torch
        >>> from mxtorch.integrations.lightning import find_lr
        >>> class Line(LightningModule):
        ...     learning_rate = 1e-3
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 1)
        ...     def training_step(self, batch):
        ...         return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        >>> inputs = torch.randn(256, 4)
        >>> data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        >>> module = Line()
        >>> found = find_lr(module, torch.utils.data.DataLoader(data, 16), epochs=4, num_steps=400)
        >>> module.learning_rate = found.suggestion
    """
    finder = _OnlyFinder(raw_random_state(), schedule=schedule, **options)
    epochs = options.get("epochs")
    given = {"max_epochs": epochs} if epochs is not None else {}
    trainer = Trainer(**{**_QUIET, "num_sanity_val_steps": 0, **given, **(trainer_options or {})}, callbacks=[finder])
    data = [part for part in (train_dataloaders, val_dataloaders, datamodule) if part is not None]
    before = TrainingState([module], None, others={"data": data}, before_first_step=True)
    try:
        with contextlib.suppress(_SearchEnded):
            trainer.fit(module, train_dataloaders, val_dataloaders, datamodule=datamodule)
    finally:
        before.restore()
    if finder.found is None:
        raise ValueError("trainer_options: no step would be taken with them; give max_epochs or max_steps above 0")
    return finder.found


class LearningRateFinder(Callback):
    """Finds a learning rate as training begins, and trains with it.

    The steps of the search are those of the trainer: its device, precision, clipping and accumulation. The training
    that follows is bit for bit the one that `configure_optimizers` with this rate would have begun. A training that is
    resumed keeps its rate.

    Args:
        schedule: What the rate is for. Left out, that of the `ScheduledOptim` or `LambdaLR` which
            `configure_optimizers` returns, and constant where it returns no scheduler.
        **options: As for `mxtorch.find_lr`. Without `epochs` and `training_steps` the length is that of the training.

    Attributes:
        found: What the search found; None before. Where it has no suggestion the rate is left as it is.

    Example:
        >>> finder = LearningRateFinder(num_steps=400)
        >>> trainer = Trainer(max_epochs=4, callbacks=[finder])  # doctest: +SKIP
    """

    def __init__(self, schedule: Schedule | None = None, **options: Unpack[SearchOptions]) -> None:
        self.found: LRFinderResult | None = None
        self._schedule = schedule
        self._options = options

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, and set the rate."""
        if trainer.global_step > 0:
            return
        self.found = self._search(trainer, pl_module)
        if self.found.suggestion is not None:
            set_base_rate(trainer.optimizers[0], _schedulers(trainer), self.found.suggestion)

    def _search(self, trainer: Trainer, module: LightningModule) -> LRFinderResult:
        optimizer = _only_optimizer(trainer, module)
        schedule = self._schedule
        if schedule is None:
            schedule = schedule_in_force(optimizer, _schedulers(trainer))
        options = self._options
        if options.get("epochs") is None and options.get("training_steps") is None:
            steps = trainer.estimated_stepping_batches
            if math.isfinite(steps) and steps > 0:
                options = options | {"training_steps": int(steps)}
        steps_of = _Steps(trainer, module)
        with steps_of.quiet():
            return find(
                steps_of.step,
                optimizer,
                trainer.train_dataloader,
                state=(module, trainer.precision_plugin),
                evaluate=steps_of.evaluate,
                val_data=_first(trainer.val_dataloaders),
                schedule=schedule,
                accumulate=trainer.accumulate_grad_batches,
                begin=steps_of.begin,
                **options,
            )


class _SearchEnded(Exception):  # noqa: N818 - it is no error
    """Ends a `fit` that was for the search alone."""


class _OnlyFinder(LearningRateFinder):
    """Finds a rate and ends the training there.

    Args:
        random_state: Of the generators when the search was called for, before Lightning drew from them.
        **options: As for `LearningRateFinder`.
    """

    def __init__(self, random_state: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self._random_state = random_state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search."""
        set_raw_random_state(self._random_state)
        self.found = self._search(trainer, pl_module)
        raise _SearchEnded


class _Steps:
    """What Lightning's loop does with a batch."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = module
        self._takes_index = len(inspect.signature(module.training_step).parameters) > 1
        self._index = 0

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """In the block, what the module logs goes nowhere, and callbacks are not called."""
        module, trainer = self._module, self._trainer
        callbacks, trainer.callbacks = trainer.callbacks, []
        names = [name for name in ("log", "log_dict") if name not in vars(module)]
        for name in names:
            setattr(module, name, _nothing)
        try:
            yield
        finally:
            trainer.callbacks = callbacks
            for name in names:
                delattr(module, name)

    def begin(self) -> None:
        """The start of the first epoch."""
        self._index = 0
        self._module.on_train_epoch_start()

    def step(self, batches: Any) -> Tensor | None:
        """One step of the optimizer, from a batch or a list of those that are accumulated."""
        trainer, module = self._trainer, self._module
        window = batches if trainer.accumulate_grad_batches > 1 else [batches]
        losses: list[Tensor] = []
        for place, batch in enumerate(window):
            index, self._index = self._index, self._index + 1
            batch = self._moved(batch)
            module.on_train_batch_start(batch, index)

            def closure(batch: Any = batch, index: int = index, first: bool = place == 0) -> Tensor | None:
                loss = self._loss(batch, index)
                if loss is None:
                    return None
                optimizer = trainer.optimizers[0]
                if first:
                    module.on_before_zero_grad(optimizer)
                    module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
                trainer.strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)
                losses.append(loss.detach())
                return loss.detach()

            if place == len(window) - 1:
                optimizer = module.optimizers(use_pl_optimizer=True)
                module.optimizer_step(trainer.current_epoch, index, optimizer, closure)
            else:
                closure()
            module.on_train_batch_end(losses[-1] if losses else None, batch, index)
        return sum(losses, start=losses[0] * 0) / len(losses) if losses else None

    def evaluate(self, batch: Any) -> Tensor | None:
        """The loss that `training_step` gives."""
        return self._loss(self._moved(batch), 0)

    def _loss(self, batch: Any, index: int) -> Tensor | None:
        arguments = (batch, index) if self._takes_index else (batch,)
        output = self._trainer.strategy.training_step(*arguments)
        loss: Tensor | None = output["loss"] if isinstance(output, Mapping) else output
        return loss

    def _moved(self, batch: Any) -> Any:
        trainer = self._trainer
        batch = trainer.precision_plugin.convert_input(batch)
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _only_optimizer(trainer: Trainer, module: LightningModule) -> Optimizer:
    """The optimizer whose rate is searched.

    Raises:
        ValueError: There are several, or `training_step` steps them; or several processes train.
    """
    if not module.automatic_optimization:
        raise ValueError(
            "module: it steps its optimizers itself (automatic_optimization is False); give mxtorch.lr_finder.find a "
            "function that takes such a step"
        )
    if len(trainer.optimizers) != 1:
        raise ValueError(f"module: configure_optimizers returns {len(trainer.optimizers)} optimizers; return one")
    if trainer.world_size > 1:
        raise ValueError(f"trainer: it trains in {trainer.world_size} processes; find the rate in one, then train")
    optimizer: Optimizer = trainer.optimizers[0]
    return optimizer


def _schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _first(loaders: Any) -> Any:
    """The first of several validation loaders."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def _nothing(*arguments: Any, **options: Any) -> None:
    """Takes the place of `log`."""
