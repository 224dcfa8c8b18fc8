"""Where a step runs: the protocol that the loop is written against, and its implementations."""

from mxtorch.engines.base import Engine, StepResult
from mxtorch.engines.distributed import DistributedEngine
from mxtorch.engines.failure import ProcessFailedError
from mxtorch.engines.local import LocalEngine

__all__ = ["DistributedEngine", "Engine", "LocalEngine", "ProcessFailedError", "StepResult"]
