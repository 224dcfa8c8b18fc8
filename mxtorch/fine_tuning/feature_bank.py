"""The kept features of one data set.

What a loader consists of is copied and searched at every pass of a search and every epoch. A bank is left out of that
(`checkpointing.reachable`): nothing writes into it but the cache that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class FeatureBank:
    """The features of one data set.

    Attributes:
        features: [samples * views, ...]; the views of a sample are neighbours.
        rest: The target of each row, as the data set gave it.
        views: Rows of a sample.
        dtype: The dtype in which features are handed out.
        definition: The hash of the data set's definition when they were computed.
        checked: Hashes of some inputs; empty for random ones.
        reading: The data set that samples are read from; it may decode pictures at a reduced scale.
    """

    features: Tensor
    rest: list[Any]
    views: int
    dtype: torch.dtype
    definition: bytes
    checked: dict[int, bytes]
    reading: Any
