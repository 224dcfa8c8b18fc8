"""Freezing and unfreezing layers at an epoch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mxtorch._checks import check_integer, closest
from mxtorch.training.callback import Callback, TrainerView, current_run


class _AtEpoch(Callback):
    """Sets `requires_grad` of some layers at the start of an epoch of a run."""

    _trained: bool

    def __init__(self, layers: str | nn.Module | Sequence[str | nn.Module], *, epoch: int) -> None:
        check_integer(epoch, "epoch")
        self.layers = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
        self.epoch = epoch
        if not self.layers:
            raise ValueError("layers: got none; give modules or their names")

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Look the layers up, and see that the optimizer will train what is unfrozen."""
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        for module in self._modules(trainer):
            lacking = [name for name, parameter in module.named_parameters() if id(parameter) not in held]
            if self._trained and lacking:
                raise ValueError(
                    f"optimizer: it lacks {lacking[0]!r} of a layer that is unfrozen at epoch {self.epoch}; make it "
                    "from all of model.parameters(), also those that are frozen at first"
                )

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Set `requires_grad`, when it is time."""
        if current_run(trainer).epoch + 1 == self.epoch:
            for module in self._modules(trainer):
                module.requires_grad_(self._trained)

    def _modules(self, trainer: TrainerView) -> list[nn.Module]:
        known = dict(trainer.model.named_modules())
        found = []
        for layer in self.layers:
            if isinstance(layer, str) and layer not in known:
                raise ValueError(f"layers: got {layer!r}{closest(layer, [name for name in known if name][:40])}")
            found.append(known[layer] if isinstance(layer, str) else layer)
        return found


class Freeze(_AtEpoch):
    """Freezes layers from an epoch on; they stay in evaluation mode, with running statistics and dropout.

    Args:
        layers: Modules of the model or their names, one or several.
        epoch: Of the run, from 1.

    Raises:
        ValueError: There are no such layers.
    """

    _trained = False


class Unfreeze(_AtEpoch):
    """Trains layers from an epoch on that were frozen before it.

    The optimizer must hold their parameters from the start; those without a gradient are left alone by it.

    Args:
        layers: Modules of the model or their names, one or several.
        epoch: Of the run, from 1.

    Raises:
        ValueError: There are no such layers, or the optimizer lacks them.
    """

    _trained = True
