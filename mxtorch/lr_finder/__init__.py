"""The learning-rate range test: run it (`sweep`), read it (`estimate`), look at it (`result`)."""

from mxtorch.lr_finder.estimate import Estimate, estimate
from mxtorch.lr_finder.result import LRFinderResult

__all__ = ["Estimate", "LRFinderResult", "estimate"]
