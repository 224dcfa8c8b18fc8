"""What can be wrong with a model, an optimizer, data or a step, told before anything changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset

from mxtorch.batches import describe

if TYPE_CHECKING:
    from mxtorch.trainer import StepOutput

# What a batch of the wrong kind makes a model or loss raise. Running out of memory is not among them.
_BATCH_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)


def check_at_least_one(value: Any, argument: str) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: got {value!r}; give an integer of at least 1")
    if value < 1:
        raise ValueError(f"{argument}: got {value}; give an integer of at least 1")


def check_parameters(model: nn.Module, loss: nn.Module | None, optimizer: Optimizer) -> None:
    """Raise unless the optimizer trains the model; warn of trainable parameters that it leaves out."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {model!r}; give a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}; give a ScheduledOptim or another torch optimizer")
    named = dict(model.named_parameters())
    lazy = [name for name, parameter in named.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"model: {lazy[0]} has no shape yet; pass one batch through the model, then make the optimizer"
        )
    trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not trainable:
        raise ValueError("model: got a model without trainable parameters; set requires_grad_(True) on some")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if len(left_out) == len(trainable):
        raise ValueError(
            "optimizer: got one that holds none of the model's trainable parameters; make it from "
            "model.parameters(), after the last change to the model's layers"
        )
    if loss is not None:
        left_out += [f"loss.{n}" for n, p in loss.named_parameters() if p.requires_grad and id(p) not in held]
    if left_out:
        names = ", ".join(left_out[:4]) + (f" and {len(left_out) - 4} more" if len(left_out) > 4 else "")
        warnings.warn(
            f"The optimizer leaves out trainable parameters: {names}. If a layer was replaced after the optimizer "
            "was made, make the optimizer again; if they are meant to stay, set requires_grad_(False).",
            stacklevel=3,
        )


def check_data(data: Any, argument: str, *, passes: int) -> None:
    """Raise unless `data` can be iterated over `passes` times and is not known to be empty."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{argument}: got a data set, {type(data).__name__}; wrap it in a torch.utils.data.DataLoader")
    if not isinstance(data, Iterable):
        raise TypeError(f"{argument}: got {data!r}; give a DataLoader or another iterable of batches")
    if isinstance(data, Iterator) and passes > 1:
        raise ValueError(
            f"{argument}: got {type(data).__name__}, which can be read only once; give a DataLoader, a list, or an "
            "object whose __iter__ starts anew"
        )
    if length(data) == 0:
        raise ValueError(f"{argument}: got a loader that yields no batches; give it at least one")


def length(data: Any) -> int | None:
    """The number of batches, or None where it isn't known."""
    try:
        return len(data)
    except TypeError:  # what DataLoader raises over an IterableDataset without a length
        return None


def check_loss(output: StepOutput, *, wants_outputs: bool) -> None:
    """Raise unless a training step gave a loss that can be trained on."""
    loss = output.loss
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step: got {loss!r} as the loss; return a scalar tensor, or give the Trainer a loss")
    if loss.ndim != 0 and loss.numel() != 1:
        raise ValueError(
            f"loss: got a tensor of shape {list(loss.shape)}; reduce it to one number, with .mean() or reduction='mean'"
        )
    if loss.ndim != 0:
        raise ValueError(f"loss: got a tensor of shape {list(loss.shape)}; return a scalar, with .squeeze() or .mean()")
    if not loss.requires_grad:
        raise ValueError(
            "loss: got one that is detached from the model's parameters; compute it from the model's outputs without "
            ".detach(), .item(), torch.no_grad() or argmax"
        )
    if wants_outputs and output.outputs is None:
        raise ValueError(
            "train_metrics: training_step returns a loss alone; let it return StepOutput(loss, outputs, targets)"
        )


def check_class_labels(loss: Any, outputs: Any, targets: Any) -> None:
    """Raise a readable error for labels that CUDA would answer with a device-side assert."""
    if not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or not isinstance(targets, Tensor):
        return
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or targets.is_floating_point():
        return
    classes = outputs.shape[1]
    labels = targets[targets != loss.ignore_index]
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels: got {int(labels.min())} to {int(labels.max())}, but the model has {classes} outputs, for classes "
            f"0 to {classes - 1}; give the head as many outputs as there are classes, or number the classes from 0"
        )


def explain_first_batch(error: Exception, batch: Any, step: str) -> NoReturn:
    """Raise a ValueError that says what the first batch looked like to a step that could not take it."""
    if not isinstance(error, _BATCH_ERRORS) or isinstance(error, torch.OutOfMemoryError):
        raise error
    if isinstance(error, ValueError) and str(error).startswith(("labels:", "loss:", "train_metrics:")):
        raise error
    raise ValueError(
        f"{step} could not take the first batch, a {describe(batch)}: {type(error).__name__}: {error}. Give batches "
        f"of (inputs, targets), dictionaries of the model's arguments, or override {step}."
    ) from error
