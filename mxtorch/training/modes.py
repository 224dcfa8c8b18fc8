"""Training and evaluation modes of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def preserved_modes(*roots: nn.Module) -> Iterator[None]:
    """Put the training or evaluation mode of every submodule back after the block."""
    modes = [(module, module.training) for root in roots for module in root.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def set_training_mode(model: nn.Module) -> None:
    """Training mode, except for what is frozen.

    A module whose parameters all have `requires_grad=False`, with everything inside it, stays in evaluation mode:
    running statistics are part of what is frozen, and dropout there would be noise that nothing learns to bear.
    """
    model.train()
    _keep_frozen_in_evaluation(model)


def _keep_frozen_in_evaluation(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _keep_frozen_in_evaluation(child)
