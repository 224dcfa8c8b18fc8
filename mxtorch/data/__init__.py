"""Tools for data: mixed batches (mixup, CutMix), and weights and a sampler for classes of different sizes."""

from mxtorch.data import class_balance, mixing
from mxtorch.data.class_balance import balanced_sampler, class_weights
from mxtorch.data.mixing import Mixed

__all__ = ["Mixed", "balanced_sampler", "class_balance", "class_weights", "mixing"]
