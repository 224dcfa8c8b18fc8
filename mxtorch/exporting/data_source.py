"""What a loader tells about the inputs of a model: the transform of its data set, and whether it is all there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, SequentialSampler, Subset

from mxtorch.exporting.transforms import TOLERANCE, PictureTransforms, describe_transform

# Pictures of a data set that are opened again from their files, and compared.
CHECKED_FILES = 4


def transforms_of(data: Any, channels: int) -> PictureTransforms | None:
    """The description of the transform of a loader's data set; None if it has none.

    Args:
        data: A loader. Its data set may be inside a `Subset` (of `random_split`) or a `ConcatDataset`.
        channels: How many channels an input has.

    Raises:
        ValueError: The transform can't be written, or the data set does more to a picture than its transform.
    """
    return _of_dataset(getattr(data, "dataset", None), channels)


def check_inputs(data: Any, batch: Tensor, transforms: PictureTransforms) -> None:
    """Compare the inputs that a loader gives with what the written transforms give.

    The first batch is compared with the samples of the data set where the order is that of the data set, so that a
    `collate_fn` that changes pictures is found; samples are compared with their files where the data set names these.

    Args:
        data: The loader.
        batch: Inputs of its first batch.
        transforms: What is to be written.

    Raises:
        ValueError: They differ.
    """
    dataset = data.dataset
    if isinstance(getattr(data, "sampler", None), SequentialSampler) and data.batch_size is not None:
        sample = _input_of(dataset[0])
        if isinstance(sample, Tensor) and not _same(sample, batch[0]):
            raise ValueError(
                "val_data: its first batch is not what its data set gives, so something is done after the transform "
                "(by a collate_fn, or at random); give preprocessing= all that is done, as a transform of torchvision"
            )
    for index in range(min(CHECKED_FILES, len(dataset) if hasattr(dataset, "__len__") else 0)):
        path = _file_of(dataset, index)
        sample = None if path is None else _input_of(dataset[index])
        if path is not None and isinstance(sample, Tensor) and not _same(sample, _from_file(path, transforms)):
            raise ValueError(
                f"val_data: its data set makes another input of {path.name} than the transform ({transforms}) makes of "
                "the file, opened by Pillow; give preprocessing= all that is done to a picture"
            )


def _of_dataset(dataset: Any, channels: int) -> PictureTransforms | None:
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        return _of_dataset(dataset.dataset, channels)
    if isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__:
        found = [_of_dataset(part, channels) for part in dataset.datasets]
        if any(each != found[0] for each in found):
            raise ValueError(
                "val_data: the data sets in it have different transforms; give preprocessing= the one for pictures to "
                "come"
            )
        return found[0] if found else None
    own = getattr(dataset, "transform", None)
    joint = getattr(dataset, "transforms", None)
    if own is None and joint is not None and getattr(joint, "transform", joint) is not None:
        raise ValueError(
            f"val_data: {type(dataset).__name__} has transforms of inputs and targets together, which can't be "
            "written; give preprocessing= those of the inputs"
        )
    inner = getattr(dataset, "dataset", None)
    if inner is not None and _has_transform(inner):
        raise ValueError(
            f"val_data: {type(dataset).__name__} wraps a data set that has a transform, and may do more to a picture; "
            "give preprocessing= all that is done"
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
    """Raise where a folder's pictures are opened by a function of the user's, which no file can hold."""
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader, pil_loader

    loader = getattr(dataset, "loader", None)
    if isinstance(dataset, DatasetFolder) and loader not in (default_loader, pil_loader):
        raise ValueError(
            f"val_data: its pictures are opened by {getattr(loader, '__name__', loader)!r}, which can't be written; "
            "give preprocessing= the transform, if it is for pictures that Pillow opens as RGB"
        )


def _file_of(dataset: Any, index: int) -> Path | None:
    """The file of a sample, where the data set is a folder of torchvision's, also within a `Subset`."""
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
