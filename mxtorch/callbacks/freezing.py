"""Freeze or unfreeze layers when an epoch begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mxtorch._checks import check_integer, closest
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView

# An error message lists no more layers than this: a deep network has hundreds.
MOST_LISTED_LAYERS = 40


def find_layer(model: nn.Module, layer: Any, argument: str) -> nn.Module:
    """A layer of a model, given by its name or by itself.

    Args:
        model: The model.
        layer: One of its modules, or the name of one.
        argument: What the error calls `layer`.

    Raises:
        TypeError: `layer` is neither a name nor a module.
        ValueError: The model has no such layer.
    """
    known = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        if not any(module is layer for module in known.values()):
            raise ValueError(f"{argument}: got a {type(layer).__name__} that is not in the model")
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"{argument}: got {layer!r}; give a module of the model, or its name")
    if layer not in known:
        names = [name for name in known if name]
        raise ValueError(f"{argument}: got {layer!r}{closest(layer, names[:MOST_LISTED_LAYERS])}")
    found: nn.Module = known[layer]
    return found


class _AtEpoch(Callback):
    """Sets `requires_grad` of some layers at the start of an epoch of a run."""

    _trains: bool

    def __init__(self, layers: str | nn.Module | Sequence[str | nn.Module], *, epoch: int) -> None:
        self.layers = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
        self.epoch = check_integer(epoch, "epoch")
        if not self.layers:
            raise ValueError("layers: got none; give modules or their names")

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Check that the layers exist, and that the optimizer holds what is unfrozen."""
        held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
        for layer in self._found(trainer.model):
            lacking = [name for name, parameter in layer.named_parameters() if id(parameter) not in held]
            if self._trains and lacking:
                raise ValueError(
                    f"optimizer: it lacks {lacking[0]!r} of a layer that is unfrozen at epoch {self.epoch}; make it "
                    "from all of model.parameters(), including those that are frozen at first"
                )

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Freeze or unfreeze the layers if this is the epoch to do so."""
        if current_run(trainer).epoch + 1 == self.epoch:
            for layer in self._found(trainer.model):
                layer.requires_grad_(self._trains)

    def _found(self, model: nn.Module) -> list[nn.Module]:
        return [find_layer(model, layer, "layers") for layer in self.layers]


class Freeze(_AtEpoch):
    """Freezes layers from an epoch on.

    Frozen layers are in evaluation mode: their running statistics stay as they are, and their dropout is off.

        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import Freeze
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> freeze = Freeze("0", epoch=2)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[freeze], device="cpu", progress=False)
        >>> history = trainer.fit([(torch.randn(8, 4), torch.randint(2, (8,)))], epochs=2)
        >>> net[0].weight.requires_grad, net[2].weight.requires_grad
        (False, True)

    Args:
        layers: One or several modules of the model, or their names.
        epoch: The epoch of the run, counted from 1, at whose start they are frozen.

    Raises:
        TypeError: The epoch is no integer. From `fit`: a layer is neither a module nor a name.
        ValueError: The epoch is below 1, or there are no layers. From `fit`: the model has no such layer.
    """

    _trains = False


class Unfreeze(_AtEpoch):
    """Trains layers from an epoch on that were frozen before it.

    The optimizer must hold their parameters from the start. It leaves parameters without a gradient as they are.

        >>> import torch
        >>> from torch import nn
        >>> from mxtorch import Trainer
        >>> from mxtorch.callbacks import Unfreeze
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net[0].requires_grad_(False)
        Linear(in_features=4, out_features=8, bias=True)
        >>> unfreeze = Unfreeze(net[0], epoch=2)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[unfreeze], device="cpu", progress=False)
        >>> history = trainer.fit([(torch.randn(8, 4), torch.randint(2, (8,)))], epochs=2)
        >>> net[0].weight.requires_grad
        True

    Args:
        layers: One or several modules of the model, or their names.
        epoch: The epoch of the run, counted from 1, at whose start training them begins.

    Raises:
        TypeError: The epoch is no integer. From `fit`: a layer is neither a module nor a name.
        ValueError: The epoch is below 1, or there are no layers. From `fit`: the model has no such layer, or the
            optimizer lacks its parameters.
    """

    _trains = True
