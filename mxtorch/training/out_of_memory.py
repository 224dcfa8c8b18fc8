"""A batch that does not fit into the device's memory: explained, or taken in parts."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch._structure import describe, tensors_in
from mxtorch.training.data import Window
from mxtorch.training.supervised import split_batch


def split(window: Window, parts: int) -> Window:
    """Each batch of a window in `parts` parts along the first dimension, weighed by their samples.

    A batch of fewer samples than parts gives as many parts as it has samples.

    Raises:
        ValueError: The samples of a batch are not along the first dimension of its inputs.
    """
    pieces, sizes = [], []
    for batch, size in zip(window.batches, window.sizes, strict=True):
        _check_that_inputs_split(batch, size)
        length = -(-size // parts)
        for start in range(0, size, length):
            stop = min(start + length, size)
            pieces.append(_part(batch, size, start, stop))
            sizes.append(stop - start)
    return Window(pieces, sizes, window.samples)


def explained(
    error: torch.OutOfMemoryError, window: Window, place: str, *, parts: int = 1, can_split: bool = True
) -> torch.OutOfMemoryError:
    """The error with the size of the batch, and what to try.

    Args:
        error: What torch raised.
        window: The batches of the step.
        place: Where the window is, in words.
        parts: The parts in which each batch was taken.
        can_split: Whether `auto_accumulate` could take the batches in parts.
    """
    largest = max(window.sizes)
    now = f"a batch of {largest} samples" if parts == 1 else f"{-(-largest // parts)} samples at a time"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
    both = ", let fit(auto_accumulate=True) do both" if can_split else ""
    return torch.OutOfMemoryError(
        f"{place} does not fit into the device's memory with {now} ({reason}). Give the loader a smaller "
        f"batch_size and the Trainer a larger accumulate{both}, use precision='bf16', or free what else is on the "
        "device."
    )


def release() -> None:
    """Free the memory that a failed step still held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def warn_of_batch_norm(model: nn.Module) -> None:
    """Warn that parts of a batch are not the batch to BatchNorm."""
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if norms:
        warnings.warn(
            f"auto_accumulate: the batch is taken in parts from here on, and {norms[0]} (BatchNorm) normalises each "
            "part by its own mean and variance: the training is not that of the whole batch. Group or layer "
            "normalisation would keep it.",
            stacklevel=2,
        )


def _check_that_inputs_split(batch: Any, size: int) -> None:
    example = split_batch(batch)
    inputs = [tensor for tensor in tensors_in([example.inputs, example.named_inputs]) if tensor.ndim]
    if inputs and all(tensor.shape[0] != size for tensor in inputs):
        raise ValueError(
            f"auto_accumulate: a batch of {size} samples can't be taken in parts, since none of its inputs has the "
            f"samples along its first dimension: {describe(batch)}; give the loader a smaller batch_size and the "
            "Trainer a larger accumulate"
        )


def _part(value: Any, size: int, start: int, stop: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.ndim and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _part(item, size, start, stop) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_part(item, size, start, stop) for item in value))
    if isinstance(value, (tuple, list)):
        if value and len(value) == size and not any(isinstance(item, (Tensor, Mapping, tuple, list)) for item in value):
            return value[start:stop]  # one entry a sample, as names of files
        return type(value)(_part(item, size, start, stop) for item in value)
    return value
