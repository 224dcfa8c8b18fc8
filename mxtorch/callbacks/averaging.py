"""Averages of the weights over training: exponential, and stochastic weight averaging; `torch.optim.swa_utils` each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.training.callback import Callback, Weights, copies, current_run, put
from mxtorch.training.modes import preserved_modes, set_training_mode
from mxtorch.training.trainer_view import TrainerView


class _Averaging(Callback):
    """Keeps an average of the model's parameters, which is judged in place of them and is left at the end of a run.

    The averages and the functions that update them are torch's; the copies are of the tensors alone, because a copy of
    the module would lose hooks and what else a trainer has put on it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._average: dict[str, Tensor] = {}
        self._resumes = False

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        if not self._resumes:
            self.count, self._average = 0, {}
        self._resumes = False

    def on_fit_end(self, trainer: TrainerView) -> None:
        """A state that was loaded within the run belongs to that run."""
        self._resumes = False

    def judged_weights(self, trainer: TrainerView) -> Weights | None:
        """The average, once there is one."""
        return Weights(self._average, f"the average of {type(self).__name__}") if self._average else None

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on averaging from there in the next run."""
        self.count, self._average, self._resumes = state["count"], dict(state["average"]), True

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

    The average is what is judged: validation figures, `BestWeights`, the model in checkpoints and the model after the
    run are all of it, whatever the order of the callbacks. Checkpoints hold the trained weights besides, for the run
    to go on. Buffers that are floating-point, such as running statistics, are averaged too.

    Args:
        decay: The part of the average that stays in each step. The default forgets over about a thousand steps; for
            runs of some hundred steps take 0.98.

    Raises:
        ValueError: The decay is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: got {decay!r}; give a number between 0 and 1, such as 0.999")
        super().__init__()
        self.decay = decay

    def on_step(self, trainer: TrainerView) -> None:
        """Take the weights in."""
        self._update(trainer.model, get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]


class SWA(_Averaging):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): the mean of the last epochs' weights.

    The mean takes in the weights of an epoch before its validation, and is what is judged from then on: validation
    figures, `BestWeights`, the model in checkpoints and the model after the run are all of it. The running statistics
    of batch normalisation do not fit the mean; they are computed from the training data (as
    `torch.optim.swa_utils.update_bn` does) when the mean is judged: one pass without gradients for each such epoch of a
    network with batch normalisation. The pass leaves the loader's order and the random numbers as they were.

    Use a rate that is still of use at the end: a constant one, not a one-cycle, whose last epochs hardly move.

    Args:
        train_data: What `fit` trains on: batches that `Trainer.prediction_step` takes, dictionaries too.
        start: The part of the epochs after which averaging begins.

    Raises:
        ValueError: `start` is not in [0, 1). From `fit`, before the first step: the network has batch normalisation,
            and `prediction_step` can't take a batch of `train_data`.
    """

    def __init__(self, train_data: Iterable[Any], *, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start: got {start!r}; give the part of the epochs before averaging, in [0, 1)")
        super().__init__()
        self.train_data = train_data
        self.start = start
        self._statistics: dict[str, Tensor] | None = None  # of the mean; None where they have to be computed

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded; try whether the statistics can be computed."""
        if not self._resumes:
            self._statistics = None
        super().on_fit_start(trainer)
        if any(_tracks(module) for module in trainer.model.modules()):
            self._try_one_batch(trainer)

    def on_epoch_trained(self, trainer: TrainerView) -> None:
        """Take the weights in."""
        if current_run(trainer).epoch + 1 > self.start * current_run(trainer).epochs:
            self._update(trainer.model, get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
            self._statistics = None

    def judged_weights(self, trainer: TrainerView) -> Weights | None:
        """The mean with running statistics of its own, once there is one."""
        if not self._average:
            return None
        if self._statistics is None:
            self._statistics = self._statistics_of_mean(trainer)
        return Weights({**self._average, **self._statistics}, f"the mean of {self.count} epochs' weights (SWA)")

    def state_dict(self) -> dict[str, Any]:
        """The mean and its statistics."""
        return {**super().state_dict(), "statistics": self._statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on averaging from there in the next run."""
        super().load_state_dict(state)
        statistics = state.get("statistics")
        self._statistics = None if statistics is None else dict(statistics)

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
                f"take its first batch ({type(error).__name__}: {error}); give the batches that fit is given, or "
                "override prediction_step"
            ) from error
        finally:
            before.restore()

    @torch.no_grad()
    def _statistics_of_mean(self, trainer: TrainerView) -> dict[str, Tensor]:
        """The running statistics of the mean's network over the training data, except of frozen layers."""
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
    """Whether it is a batch normalisation with running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
