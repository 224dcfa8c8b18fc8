"""A loader of kept features, in place of the loader of the samples that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mxtorch.fine_tuning.dataset_fingerprint import join_batch
from mxtorch.fine_tuning.feature_bank import FeatureBank


class FeatureDataset(Dataset[Any]):
    """A bank as a data set, which is read a whole batch at a time."""

    def __init__(self, bank: FeatureBank) -> None:
        self.bank = bank
        self.passes = 0  # decides the view; it is an attribute here, so that find_lr restores it

    def __len__(self) -> int:
        return len(self.bank.features) // self.bank.views

    def __getitems__(self, indices: Sequence[int]) -> Any:
        bank = self.bank
        samples = torch.as_tensor(indices)
        rows = samples % len(self) * bank.views + (samples + self.passes) % bank.views
        targets = [bank.rest[row] for row in rows.tolist()]
        return join_batch(bank.features[rows].to(bank.dtype), targets)


class FeatureLoader(DataLoader[Any]):
    """Goes through features in the order in which another loader goes through its samples.

    Args:
        features: The features.
        data: The other loader.
        refresh: Called at the start of each pass: computes features again where they are out of date.
    """

    def __init__(self, features: FeatureDataset, data: DataLoader[Any], refresh: Callable[[], None]) -> None:
        self._features, self._refresh = features, refresh
        super().__init__(
            features,
            batch_sampler=data.batch_sampler,  # the same object, because it holds the order
            collate_fn=lambda batch: batch,
            pin_memory=data.pin_memory,
            generator=data.generator,
        )

    def __iter__(self) -> Any:
        self._refresh()
        self._features.passes += 1
        return super().__iter__()
