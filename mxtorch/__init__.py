"""PyTorch training where the learning rate is a first-class thing: read it, set it, schedule it, find it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mxtorch import callbacks, init, nn, schedules
from mxtorch._version import __version__
from mxtorch.callbacks import Callback
from mxtorch.history import History
from mxtorch.lr_finder import LRFinderResult
from mxtorch.optim import ScheduledOptim
from mxtorch.steps import StepOutput
from mxtorch.trainer import Trainer

if TYPE_CHECKING:
    import model_zoo

__all__ = [
    "Callback",
    "History",
    "LRFinderResult",
    "ScheduledOptim",
    "StepOutput",
    "Trainer",
    "__version__",
    "callbacks",
    "init",
    "model_zoo",
    "nn",
    "schedules",
]


def __getattr__(name: str) -> Any:
    """Import the model zoo on first use."""
    if name == "model_zoo":
        return importlib.import_module("model_zoo")
    raise AttributeError(f"module 'mxtorch' has no attribute {name!r}")
