"""Fine-tuning: the frozen part computed once, rates by layer, two phases."""

from mxtorch.fine_tuning.cache import FeatureCache, FeatureLoader, NotCacheable
from mxtorch.fine_tuning.cut import Cut, NoCut, find_cut
from mxtorch.fine_tuning.layers import layer_groups, layer_wise_groups
from mxtorch.fine_tuning.plan import FineTuning

__all__ = [
    "Cut",
    "FeatureCache",
    "FeatureLoader",
    "FineTuning",
    "NoCut",
    "NotCacheable",
    "find_cut",
    "layer_groups",
    "layer_wise_groups",
]
