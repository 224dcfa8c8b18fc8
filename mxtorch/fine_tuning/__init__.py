"""Fine-tuning: features of the frozen part computed once, rates by layer, two phases."""

from mxtorch.fine_tuning.cut import Cut, CutError
from mxtorch.fine_tuning.dataset_fingerprint import CacheError
from mxtorch.fine_tuning.feature_cache import FeatureCache
from mxtorch.fine_tuning.feature_loader import FeatureLoader
from mxtorch.fine_tuning.grouping import layer_groups, layer_wise_groups
from mxtorch.fine_tuning.recipe import FineTuning, fine_tune
from mxtorch.fine_tuning.split_point import find_cut

__all__ = [
    "CacheError",
    "Cut",
    "CutError",
    "FeatureCache",
    "FeatureLoader",
    "FineTuning",
    "find_cut",
    "fine_tune",
    "layer_groups",
    "layer_wise_groups",
]
