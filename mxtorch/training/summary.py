"""A table of a model's layers for a batch, by torchinfo."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from mxtorch._structure import describe
from mxtorch.training.context import Context
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import explain_first_batch, split_batch

_COLUMNS = ("input_size", "output_size", "num_params", "trainable", "mult_adds")


def summarize(context: Context, batch: Any, depth: int) -> Any:
    """The layers of a model with their shapes, parameters and multiply-adds; see `Trainer.summary`.

    Args:
        context: The model, and the engine that moves the batch.
        batch: As a loader gives it.
        depth: Modules within modules so far down are listed.

    Raises:
        ImportError: torchinfo is not installed.
        ValueError: The model can't take the batch.
        TypeError: It is a loader, not a batch.
    """
    try:
        import torchinfo
    except ImportError as error:
        raise ImportError("summary needs torchinfo: pip install torchinfo, or mxtorch[summary]") from error
    if isinstance(batch, torch.utils.data.DataLoader):
        raise TypeError("batch: got a DataLoader; give one batch of it, next(iter(loader))")
    example = split_batch(context.engine.move(batch), keep_labels=context.loss is None)
    inputs = example.named_inputs or list(example.inputs)
    with preserved_modes(context.model), torch.no_grad(), context.engine.autocast(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of storages that torchinfo asks for their size
        try:
            return torchinfo.summary(
                context.model, input_data=inputs, mode="eval", depth=depth, col_names=_COLUMNS, col_width=20,
                device=context.engine.device, row_settings=("depth", "var_names"), verbose=0,
            )  # fmt: skip
        except RuntimeError as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            explain_first_batch(ValueError(f"{type(cause).__name__}: {cause}"), batch, "summary")
        except (TypeError, ValueError) as error:
            raise ValueError(f"batch: torchinfo can't take a {describe(batch)}: {error}") from error
