"""The loss meter is in `mxtorch.metrics`."""

from mxtorch.metrics import LossMeter

__all__ = ["LossMeter"]
