"""Where a step runs: the protocol that the loop is written against, and its implementations.

`DistributedEngine` is imported on first use, since most trainings have one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mxtorch.engines.base import Engine, StepResult
from mxtorch.engines.failure import ProcessFailedError
from mxtorch.engines.local import LocalEngine

if TYPE_CHECKING:
    from mxtorch.engines.distributed import DistributedEngine

__all__ = ["DistributedEngine", "Engine", "LocalEngine", "ProcessFailedError", "StepResult"]


def __getattr__(name: str) -> Any:
    """Import the engine for several processes on first use."""
    if name != "DistributedEngine":
        raise AttributeError(f"module 'mxtorch.engines' has no attribute {name!r}")
    from mxtorch.engines.distributed import DistributedEngine

    return DistributedEngine
