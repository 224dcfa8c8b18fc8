"""Freeze or unfreeze layers at the start of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mxtorch._checks import check_integer, closest
from mxtorch.training.callback import Callback, current_run
from mxtorch.training.trainer_view import TrainerView

# The largest number of layers in an error message, because a deep network has hundreds.
MOST_LISTED_LAYERS = 40


def find_layer(model: nn.Module, layer: Any, argument: str) -> nn.Module:
    """The layer of a model for the value of an argument.

    Args:
        model: The model.
        layer: A module of the model, or the name of a module.
        argument: The name of the argument in errors.

    Raises:
        TypeError: `layer` is neither a name nor a module.
        ValueError: The model has no such layer.
    """
    known = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        if not any(module is layer for module in known.values()):
            raise ValueError(
                f"{argument}: got a {type(layer).__name__} that is not in the model; give a module of the model"
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"{argument}: got {layer!r}; give a module of the model, or its name")
    if layer not in known:
        names = [name for name in known if name]
        raise ValueError(f"{argument}: got {layer!r}{closest(layer, names[:MOST_LISTED_LAYERS])}")
    found: nn.Module = known[layer]
    return found


class _AtEpoch(Callback):
    """The base of callbacks that set `requires_grad` of some layers at the start of an epoch."""

    _trains: bool

    def __init__(self, layers: str | nn.Module | Sequence[str | nn.Module], *, epoch: int) -> None:
        self.layers = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
        self.epoch = check_integer(epoch, "epoch")
        if not self.layers:
            raise ValueError("layers: got none; give modules or their names")

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Check that the layers exist, and that the optimizer holds the parameters that will be unfrozen."""
        held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
        for layer in self._found(trainer.model):
            missing = [name for name, parameter in layer.named_parameters() if id(parameter) not in held]
            if self._trains and missing:
                raise ValueError(
                    f"optimizer: got one without {missing[0]!r} of a layer that is unfrozen at epoch {self.epoch}; "
                    "make the optimizer from all of model.parameters(), including those that are frozen at first"
                )

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Freeze or unfreeze the layers if this is the given epoch."""
        if current_run(trainer).epoch + 1 == self.epoch:
            for layer in self._found(trainer.model):
                layer.requires_grad_(self._trains)

    def _found(self, model: nn.Module) -> list[nn.Module]:
        return [find_layer(model, layer, "layers") for layer in self.layers]


class Freeze(_AtEpoch):
    """Freezes layers from a given epoch on.

    Frozen layers are in evaluation mode: their running statistics do not change, and their dropout is off.

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
        epoch: The layers are frozen at the start of this epoch of the run, counted from 1.

    Raises:
        TypeError: The epoch is no integer. From `fit`: a layer is neither a module nor a name.
        ValueError: The epoch is below 1, or there are no layers. From `fit`: the model has no such layer.
    """

    _trains = False


class Unfreeze(_AtEpoch):
    """Unfreezes layers at the start of a given epoch, so that they are trained from then on.

    The optimizer must hold the parameters of these layers from the start of the run. An optimizer does not change
    parameters that have no gradient.

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
        epoch: The layers are unfrozen at the start of this epoch of the run, counted from 1.

    Raises:
        TypeError: The epoch is no integer. From `fit`: a layer is neither a module nor a name.
        ValueError: The epoch is below 1, or there are no layers. From `fit`: the model has no such layer, or the
            optimizer does not hold the parameters of a layer.
    """

    _trains = True
