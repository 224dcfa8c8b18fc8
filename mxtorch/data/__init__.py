"""Training data: mixing batches, and uneven classes."""

from mxtorch.data.class_balance import balanced_sampler, class_weights
from mxtorch.data.mixing import Mixed

__all__ = ["Mixed", "balanced_sampler", "class_weights"]
