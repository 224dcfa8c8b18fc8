"""Fine-tuning: the frozen part computed once, rates by layer, two phases."""

from mxtorch.fine_tuning.cache import FeatureCache, FeatureLoader
from mxtorch.fine_tuning.cut import Cut, CutError, find_cut
from mxtorch.fine_tuning.layers import layer_groups, layer_wise_groups
from mxtorch.fine_tuning.plan import FineTuning
from mxtorch.fine_tuning.samples import CacheError

__all__ = [
    "CacheError",
    "Cut",
    "CutError",
    "FeatureCache",
    "FeatureLoader",
    "FineTuning",
    "find_cut",
    "layer_groups",
    "layer_wise_groups",
]
