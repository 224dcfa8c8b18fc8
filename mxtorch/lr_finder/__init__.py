"""The search for a learning rate: short trainings (`trials`), or the range test of the article (`sweep`)."""

from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.suggestion import Reading
from mxtorch.lr_finder.trials import Trial

__all__ = ["LRFinderResult", "Reading", "Trial"]
