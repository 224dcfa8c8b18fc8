"""The search for a learning rate: short trainings (`trials`), or the range test of the article (`sweep`).

`find` searches for a loop of any kind, `mxtorch.find_lr` for plain objects, `Trainer.find_lr` for a trainer.
"""

from mxtorch.lr_finder.result import LRFinderResult
from mxtorch.lr_finder.suggestion import Reading
from mxtorch.lr_finder.trials import Trial
from mxtorch.lr_finder.without_trainer import find

__all__ = ["LRFinderResult", "Reading", "Trial", "find"]
