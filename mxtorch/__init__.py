"""PyTorch training where the learning rate is a first-class thing: read it, set it, schedule it, find it.

Training
    Trainer         trains a model: fit, evaluate, predict, find_lr, fine_tune, interpret, export, save, load
    StepOutput      what a training step of your own returns
    Callback        the base class of callbacks; `callbacks` has the ones that come with mxtorch
    History         the rows that `fit` records: printed, plotted, written as CSV
    CheckpointError the error for a checkpoint that can't be used
    engines         where a step runs: the device, the precision, the protocol for engines of your own
    data            mixup and CutMix (also as `mixing`), class weights and a balanced sampler (also as `balance`)

Learning rates
    ScheduledOptim  a torch optimizer with a learning rate that you can read, set and schedule
    schedules       learning rate schedules: functions from a step to a multiplier
    find_lr         finds a rate for a model, an optimizer and data, without a Trainer
    lr_finder       the search: `lr_finder.find` for a loop of any kind
    LRFinderResult  what a search found
    integrations    the search for Lightning, transformers, Accelerate, fastai, Ignite and skorch

Fine-tuning and results
    fine_tuning     training the head first, then the whole model; FineTuning is what it returns
    Interpretation  which samples the model gets wrong, and how
    exporting       exported models and how to load them

Models
    nn              torch's layers with initialiser, norm and activation
    init            initialisers, and `initialize` for a whole network
    model_zoo       pretrained networks; also the top-level package `model_zoo`

Importing mxtorch imports what a training needs. The other packages are imported on first use, so that a script that
does not use them does not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mxtorch import callbacks, engines, schedules
from mxtorch._version import __version__
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.optim import ScheduledOptim
from mxtorch.trainer import Trainer
from mxtorch.training.callback import Callback
from mxtorch.training.history import History
from mxtorch.training.supervised import StepOutput

if TYPE_CHECKING:
    from mxtorch import data, exporting, fine_tuning, init, integrations, lr_finder, model_zoo, nn
    from mxtorch.data import class_balance as balance
    from mxtorch.data import mixing
    from mxtorch.fine_tuning import FineTuning
    from mxtorch.interpretation import Interpretation
    from mxtorch.lr_finder import LRFinderResult
    from mxtorch.lr_finder.without_trainer import find_lr

__all__ = [
    "Callback",
    "CheckpointError",
    "FineTuning",
    "History",
    "Interpretation",
    "LRFinderResult",
    "ScheduledOptim",
    "StepOutput",
    "Trainer",
    "__version__",
    "balance",
    "callbacks",
    "data",
    "engines",
    "exporting",
    "find_lr",
    "fine_tuning",
    "init",
    "integrations",
    "lr_finder",
    "mixing",
    "model_zoo",
    "nn",
    "schedules",
]


# Where the names that are imported on first use come from: a module, or a module and a name in it.
_ON_FIRST_USE = {
    **{
        name: (f"mxtorch.{name}", None)
        for name in ("data", "exporting", "fine_tuning", "init", "integrations", "lr_finder", "model_zoo", "nn")
    },
    "balance": ("mxtorch.data.class_balance", None),
    "mixing": ("mxtorch.data.mixing", None),
    "FineTuning": ("mxtorch.fine_tuning", "FineTuning"),
    "Interpretation": ("mxtorch.interpretation", "Interpretation"),
    "LRFinderResult": ("mxtorch.lr_finder", "LRFinderResult"),
    "find_lr": ("mxtorch.lr_finder.without_trainer", "find_lr"),
}


def __getattr__(name: str) -> Any:
    """Import on first use what a training does not need."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'mxtorch' has no attribute {name!r}")
    module, attribute = _ON_FIRST_USE[name]
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value  # so that it is looked up here only once
    return value


def __dir__() -> list[str]:
    """The public names alone: modules that are not among them are internal."""
    return sorted(__all__)
