"""The learning-rate range test: run it (`sweep`), read it (`estimate`), look at it (`result`)."""

from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.suggestion import Estimate, estimate

__all__ = ["Estimate", "LRFinderResult", "estimate"]
