"""The transform of a loader's data set, and a check that nothing else changes the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, SequentialSampler, Subset

from mxtorch.exporting.transforms import TOLERANCE, PictureTransforms, describe_transform

# The number of pictures that are read again from their files and compared with the samples.
CHECKED_FILES = 4


def transforms_of(data: Any, channels: int) -> PictureTransforms | None:
    """The description of the transform of a loader's data set; None if it has no transform.

    Args:
        data: A loader. Its data set may be inside a `Subset` (of `random_split`) or a `ConcatDataset`.
        channels: The number of channels of an input.

    Raises:
        ValueError: The transform can't be written, or the data set may change a picture in another way, too.
    """
    return _of_dataset(getattr(data, "dataset", None), channels)


def check_inputs(data: Any, batch: Tensor, transforms: PictureTransforms) -> None:
    """Compare the inputs from a loader with the inputs that the written transforms make.

    If the loader keeps the order of the data set, the first batch is compared with the samples, which finds a
    `collate_fn` that changes pictures. If the data set gives the files of its samples, the samples are compared with
    the transformed files.

    Args:
        data: The loader.
        batch: The inputs of its first batch.
        transforms: The transforms that will be written.

    Raises:
        ValueError: The inputs differ.
    """
    dataset = data.dataset
    if isinstance(getattr(data, "sampler", None), SequentialSampler) and data.batch_size is not None:
        sample = _input_of(dataset[0])
        if isinstance(sample, Tensor) and not _same(sample, batch[0]):
            raise ValueError(
                "val_data: its first batch differs from the samples of its data set, so a collate_fn or a random "
                "operation changes them after the transform; give preprocessing= one torchvision transform that does "
                "everything"
            )
    for index in range(min(CHECKED_FILES, len(dataset) if hasattr(dataset, "__len__") else 0)):
        path = _file_of(dataset, index)
        sample = None if path is None else _input_of(dataset[index])
        if path is not None and isinstance(sample, Tensor) and not _same(sample, _from_file(path, transforms)):
            raise ValueError(
                f"val_data: the sample of {path.name} differs from the result of the transform ({transforms}) on the "
                "file, so the data set changes pictures in another way, too; give preprocessing= one torchvision "
                "transform that does everything"
            )


def _of_dataset(dataset: Any, channels: int) -> PictureTransforms | None:
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        return _of_dataset(dataset.dataset, channels)
    if isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__:
        found = [_of_dataset(part, channels) for part in dataset.datasets]
        if any(each != found[0] for each in found):
            raise ValueError(
                "val_data: it consists of data sets with different transforms; give preprocessing= the transform for "
                "new pictures"
            )
        return found[0] if found else None
    own = getattr(dataset, "transform", None)
    joint = getattr(dataset, "transforms", None)
    if own is None and joint is not None and getattr(joint, "transform", joint) is not None:
        raise ValueError(
            f"val_data: {type(dataset).__name__} has a joint transform of inputs and targets, which can't be written; "
            "give preprocessing= the transform of the inputs"
        )
    inner = getattr(dataset, "dataset", None)
    if inner is not None and _has_transform(inner):
        raise ValueError(
            f"val_data: {type(dataset).__name__} wraps a data set with a transform, and may change pictures, too; give "
            "preprocessing= one torchvision transform that does everything"
        )
    if own is None:
        return None
    _check_loader(dataset)
    return describe_transform(own, channels)


def _has_transform(dataset: Any) -> bool:
    inner = [*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)]
    here = getattr(dataset, "transform", None) is not None or getattr(dataset, "transforms", None) is not None
    return here or any(_has_transform(each) for each in inner if each is not None)


def _check_loader(dataset: Any) -> None:
    """Raise if a function of the user opens the pictures of a folder, because no file can hold that function."""
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader, pil_loader

    loader = getattr(dataset, "loader", None)
    if isinstance(dataset, DatasetFolder) and loader not in (default_loader, pil_loader):
        raise ValueError(
            f"val_data: the function {getattr(loader, '__name__', loader)!r} opens its pictures, which can't be "
            "written; if the transform is for pictures that Pillow opens as RGB, give preprocessing= the transform"
        )


def _file_of(dataset: Any, index: int) -> Path | None:
    """The file of a sample if the data set is a torchvision folder, possibly inside a `Subset`; otherwise None."""
    if isinstance(dataset, Subset):
        return _file_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            if index < len(part):  # type: ignore[arg-type]
                return _file_of(part, index)
            index -= len(part)  # type: ignore[arg-type]
    from torchvision.datasets import DatasetFolder

    return Path(dataset.samples[index][0]) if isinstance(dataset, DatasetFolder) else None


def _from_file(path: Path, transforms: PictureTransforms) -> Tensor:
    from PIL import Image

    with Image.open(path) as opened:
        return transforms(opened)


def _input_of(sample: Any) -> Any:
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    one, other = (each.as_subclass(Tensor).detach().cpu().double() for each in (first, second))
    return torch.allclose(one, other, rtol=0, atol=TOLERANCE)
