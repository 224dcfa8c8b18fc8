"""Averages of the weights during training: exponential moving average and stochastic weight averaging.

Both average with the functions of `torch.optim.swa_utils`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from mxtorch._checks import level_of_user
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.training.callback import CallbackOfRun, Weights, copies, current_run, put
from mxtorch.training.modes import preserved_modes, set_training_mode
from mxtorch.training.trainer_view import TrainerView


class _Averaging(CallbackOfRun):
    """The base of callbacks that keep an average of the model's weights.

    Validation uses the average in place of the weights, and the model has the average after the run. The functions that
    update the average are torch's. Only the tensors are copied, because a copy of the module would lose its hooks.
    """

    def __init__(self) -> None:
        self.count = 0
        self._average: dict[str, Tensor] = {}

    def _begin_afresh(self) -> None:
        """Start a new average."""
        self.count, self._average = 0, {}

    def judged_weights(self, trainer: TrainerView) -> Weights | None:
        """The average; None before the first update."""
        return Weights(self._average, f"the average of {type(self).__name__}") if self._average else None

    def state_dict(self) -> dict[str, Any]:
        """The average, and the number of updates."""
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. The next run continues this average."""
        super().load_state_dict(state)
        self.count, self._average = state["count"], dict(state["average"])

    @torch.no_grad()
    def _update(self, model: nn.Module, average: Callable[..., None]) -> None:
        live = {
            name: value
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        if not self._average:
            self._average = copies(model, live)
        else:
            device = next(iter(live.values())).device
            self._average = {name: value.to(device) for name, value in self._average.items()}
            names = list(live)
            average([self._average[name] for name in names], [live[name] for name in names], self.count)
        self.count += 1


class EMA(_Averaging):
    """An exponential moving average of the weights (`torch.optim.swa_utils.get_ema_multi_avg_fn`).

    Validation, `BestWeights`, the model in checkpoints and the model after the run use the average, whatever the order
    of the callbacks. Checkpoints also hold the trained weights, from which a resumed run continues. Floating-point
    buffers, such as running statistics, are averaged, too.

    Args:
        decay: The weight of the old average in each step. The default averages over about 1,000 steps; for runs of a
            few hundred steps, give 0.98.

    Raises:
        ValueError: The decay is not between 0 and 1.

    Example:
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import EMA
        >>> net = nn.Linear(4, 2)
        >>> optimizer, ema = torch.optim.SGD(net.parameters(), lr=0.1), EMA(decay=0.9)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[ema], device="cpu", progress=False)
        >>> history = trainer.fit([(torch.randn(8, 4), torch.randint(2, (8,)))] * 5)
        >>> ema.count
        5
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: got {decay!r}; give a number between 0 and 1, such as 0.999")
        super().__init__()
        self.decay = decay

    def on_step(self, trainer: TrainerView) -> None:
        """Update the average."""
        self._update(trainer.model, get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]


class SWA(_Averaging):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): the mean of the last epochs' weights.

    The mean is updated at the end of each epoch, before validation. From then on, validation, `BestWeights`, the model
    in checkpoints and the model after the run use the mean. The running statistics of batch normalisation do not fit
    the mean, so they are computed from the training data, as `torch.optim.swa_utils.update_bn` does. This takes one
    pass without gradients for each epoch in which the mean is used. The pass changes neither the loader's order nor the
    random numbers.

    Use a schedule whose rate is not small at the end, such as a constant rate. With a one-cycle schedule, the weights
    hardly change in the last epochs, so their mean is of no use.

    Args:
        train_data: The training data of `fit`: batches that `Trainer.prediction_step` takes, including dictionaries.
        start: The part of the run after which averaging starts: of its epochs, of `max_steps`, or of `max_time`. Where
            `fit` is given several of these, the one that is nearest to its end counts.

    Warns:
        UserWarning: The run was stopped before averaging started, so the model has the weights of its last step.

    Raises:
        ValueError: `start` is not in [0, 1). From `fit`, before the first step: the network has batch normalisation,
            and `prediction_step` can't take a batch of `train_data`.

    Example:
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import SWA
        >>> net, batches = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,)))] * 5
        >>> optimizer, swa = torch.optim.SGD(net.parameters(), lr=0.1), SWA(batches, start=0.5)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[swa], device="cpu", progress=False)
        >>> history = trainer.fit(batches, epochs=4)
        >>> swa.count
        2
    """

    def __init__(self, train_data: Iterable[Any], *, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start: got {start!r}; give the part of the epochs before averaging, in [0, 1)")
        super().__init__()
        self.train_data = train_data
        self.start = start
        self._statistics: dict[str, Tensor] | None = None  # those of the mean; None if they must be computed

    def _begin_afresh(self) -> None:
        """Start a new mean."""
        super()._begin_afresh()
        self._statistics = None

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Start a new mean, unless a state was loaded; check that the statistics can be computed."""
        super().on_fit_start(trainer)
        if any(_tracks(module) for module in trainer.model.modules()):
            self._try_one_batch(trainer)

    def on_epoch_trained(self, trainer: TrainerView) -> None:
        """Update the mean, if this is one of the last epochs."""
        if self._has_begun(trainer):
            self._update(trainer.model, get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
            self._statistics = None

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Warn if a run that came to its end has no mean."""
        super().on_fit_end(trainer)
        run = current_run(trainer)
        if self.count == 0 and run.complete and run.ended:
            warnings.warn(
                f"SWA: the run was stopped after epoch {run.epochs_done}, before averaging started "
                f"(start={self.start:g}), so the model has the weights of its last step; start it earlier",
                stacklevel=level_of_user(),
            )

    def judged_weights(self, trainer: TrainerView) -> Weights | None:
        """The mean with its own running statistics; None before the first update."""
        if not self._average:
            return None
        if self._statistics is None:
            self._statistics = self._statistics_of_mean(trainer)
        return Weights({**self._average, **self._statistics}, f"the mean of {self.count} epochs' weights (SWA)")

    def state_dict(self) -> dict[str, Any]:
        """The mean, the number of updates, and the statistics."""
        return {**super().state_dict(), "statistics": self._statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. The next run continues this mean."""
        super().load_state_dict(state)
        statistics = state.get("statistics")
        self._statistics = None if statistics is None else dict(statistics)

    def _has_begun(self, trainer: TrainerView) -> bool:
        """Whether more than `start` of the run is over: of what ends it first, as far as that is known."""
        run = current_run(trainer)
        steps, seconds = run.limits.max_steps, run.limits.max_seconds
        by_epochs = not run.limits.steps_alone and run.epoch + 1 > self.start * run.epochs
        by_steps = steps is not None and run.steps_done > self.start * steps
        by_time = seconds is not None and trainer.engine.agree(run.seconds > self.start * seconds)
        return by_epochs or by_steps or by_time

    @torch.no_grad()
    def _try_one_batch(self, trainer: TrainerView) -> None:
        before = TrainingState([trainer.model], None, loader=self.train_data)
        try:
            trainer.model.eval()
            with trainer.engine.autocast():
                trainer.prediction_step(trainer.engine.move(next(iter(self.train_data))))
        except Exception as error:
            raise ValueError(
                "train_data: SWA computes the statistics of batch normalisation from it, and prediction_step can't "
                f"take its first batch ({type(error).__name__}: {error}); give the batches that fit gets, or override "
                "prediction_step"
            ) from error
        finally:
            before.restore()

    @torch.no_grad()
    def _statistics_of_mean(self, trainer: TrainerView) -> dict[str, Tensor]:
        """The running statistics of the network with the mean of the weights; those of frozen layers are left out."""
        model = trainer.model
        if not any(_tracks(module) for module in model.modules()):
            return {}
        before = TrainingState([model], None, loader=self.train_data)
        try:
            put(model, self._average)
            with preserved_modes(model):
                set_training_mode(model)
                norms = {name: module for name, module in model.named_modules() if _tracks(module) and module.training}
                for module in norms.values():
                    module.reset_running_stats()
                    module.momentum = None  # the mean over all batches
                for batch in self.train_data:
                    with trainer.engine.autocast():
                        trainer.prediction_step(trainer.engine.move(batch))
            names = [f"{name}.{buffer}".lstrip(".") for name, norm in norms.items() for buffer in norm._buffers]
            return copies(model, names)
        finally:
            before.restore()


def _tracks(module: Any) -> bool:
    """Whether a module is a batch normalisation with running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
