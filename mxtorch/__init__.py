"""PyTorch training where the learning rate is a first-class thing: read it, set it, schedule it, find it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mxtorch import callbacks, fine_tuning, init, nn, schedules
from mxtorch._version import __version__
from mxtorch.callbacks import Callback
from mxtorch.data import class_balance as balance
from mxtorch.data import mixing
from mxtorch.fine_tuning import FineTuning
from mxtorch.history import History
from mxtorch.interpretation import Interpretation
from mxtorch.lr_finder import LRFinderResult
from mxtorch.optim import ScheduledOptim
from mxtorch.steps import StepOutput
from mxtorch.trainer import Trainer

if TYPE_CHECKING:
    import model_zoo
    from mxtorch import exporting

__all__ = [
    "Callback",
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
    "exporting",
    "fine_tuning",
    "init",
    "mixing",
    "model_zoo",
    "nn",
    "schedules",
]


def __getattr__(name: str) -> Any:
    """Import the model zoo, and what needs it, on first use."""
    if name in ("model_zoo", "exporting"):
        return importlib.import_module("model_zoo" if name == "model_zoo" else "mxtorch.exporting")
    raise AttributeError(f"module 'mxtorch' has no attribute {name!r}")
