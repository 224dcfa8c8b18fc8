"""Averages of the weights over training: exponential, and stochastic weight averaging; `torch.optim.swa_utils` each."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from mxtorch.training.callback import Callback, current_run
from mxtorch.training.modes import preserved_modes, set_training_mode
from mxtorch.training.supervised import split_batch
from mxtorch.training.trainer_view import TrainerView


class _Averaging(Callback):
    """Keeps an average of the model's parameters; validation, and the end of a run, use it in place of the weights.

    The averages and the functions that update them are torch's; the copies are of the tensors alone, because a copy of
    the module would lose hooks and what else a trainer has put on it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] | None = None  # set aside while the average is in the model
        self._resumes = False

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Begin afresh, except after a state was loaded."""
        if not self._resumes:
            self.count, self._average = 0, {}
        self._resumes = False

    def on_evaluate_start(self, trainer: TrainerView) -> None:
        """Validate the average."""
        if self._average:
            self._weights = _copies(_tensors(trainer.model, self._average))
            _put(trainer.model, self._average)

    def on_evaluate_end(self, trainer: TrainerView) -> None:
        """Go on training the weights."""
        if self._weights is not None:
            _put(trainer.model, self._weights)
            self._weights = None

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Leave the average in the model."""
        if self._average:
            _put(trainer.model, self._average)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on averaging from there in the next run."""
        self.count, self._average, self._resumes = state["count"], dict(state["average"]), True

    def _update(self, model: nn.Module, average: Any) -> None:
        live = _floating(model)
        if not self._average:
            self._average = _copies(live)
        else:
            device = next(iter(live.values())).device
            self._average = {name: value.to(device) for name, value in self._average.items()}
            names = list(live)
            average([self._average[name] for name in names], [live[name] for name in names], self.count)
        self.count += 1


class EMA(_Averaging):
    """An exponential moving average of the weights (`torch.optim.swa_utils.get_ema_multi_avg_fn`).

    Its validation figures are those of the average, and so is the model after the run. Buffers that are
    floating-point, such as running statistics, are averaged too.

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
        self._function = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def on_step(self, trainer: TrainerView) -> None:
        """Take the weights in."""
        with torch.no_grad():
            self._update(trainer.model, self._function)


class SWA(_Averaging):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): the mean of the last epochs' weights.

    The running statistics of batch normalisation do not fit the mean; they are computed anew at the end of the run from
    the training data (`torch.optim.swa_utils.update_bn`). Use a rate that is still of use at the end: a constant one,
    not a one-cycle, whose last epochs hardly move.

    Args:
        train_data: What `fit` trains on.
        start: The part of the epochs after which averaging begins.

    Raises:
        ValueError: `start` is not in [0, 1).
    """

    def __init__(self, train_data: Iterable[Any], *, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start: got {start!r}; give the part of the epochs before averaging, in [0, 1)")
        super().__init__()
        self.train_data = train_data
        self.start = start
        self._function = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def on_evaluate_start(self, trainer: TrainerView) -> None:
        """Validate the weights: the mean has no running statistics before the end."""

    def on_epoch_end(self, trainer: TrainerView) -> None:
        """Take the weights in."""
        if current_run(trainer).epoch + 1 > self.start * current_run(trainer).epochs:
            with torch.no_grad():
                self._update(trainer.model, self._function)

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Leave the mean in the model, with running statistics of its own."""
        super().on_fit_end(trainer)
        if self._average:
            inputs = (trainer.engine.move(_inputs(batch)) for batch in self.train_data)
            with preserved_modes(trainer.model):
                _update_statistics(trainer.model, inputs)


def _update_statistics(model: nn.Module, inputs: Iterable[Any]) -> None:
    """Torch's `update_bn`, without the layers whose statistics are frozen with them."""
    set_training_mode(model)
    frozen = [
        (module, module.momentum, copy.deepcopy(dict(module.named_buffers())))
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training
    ]
    update_bn(inputs, model)
    for module, momentum, buffers in frozen:
        module.momentum = momentum
        module.load_state_dict(buffers, strict=False)


def _inputs(batch: Any) -> Any:
    example = split_batch(batch)
    if len(example.inputs) != 1:
        raise ValueError("train_data: SWA's update of running statistics takes batches of (input, target)")
    return example.inputs[0]


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def _tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    live = model.state_dict()
    return {name: live[name] for name in names}


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _put(model: nn.Module, values: dict[str, Tensor]) -> None:
    live = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            live[name].copy_(value)
