"""The memory format of a network's 4-d tensors: changed in place, without touching what shares memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# What torch says where code relies on the order of a tensor's elements in memory.
_COMPLAINTS = ("view size is not compatible", "contiguous", "memory format", "memory_format")


def depends_on_layout(error: BaseException) -> bool:
    """Whether an error is one that torch raises for the order of a tensor's elements in memory."""
    return any(words in str(error) for words in _COMPLAINTS)


def convert(model: nn.Module, optimizers: Iterable[Any], memory_format: torch.memory_format) -> None:
    """Bring the 4-d parameters and buffers of a model, and the state that optimizers keep for them, into a format.

    `nn.Module.to(memory_format=...)` does so for 5-d tensors too, where `torch.channels_last` is an error. The tensors
    stay the same objects. Those that share their memory with another parameter or buffer are left alone, since a copy
    would end the sharing.

    Args:
        model: A module.
        optimizers: torch optimizers of its parameters.
        memory_format: `torch.channels_last` or `torch.contiguous_format`.
    """
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers()) if not is_lazy(one)}
    strided = [one for one in tensors.values() if _is_plain(one)]
    owners = Counter(one.untyped_storage().data_ptr() for one in strided)
    converted = {one for one in strided if one.ndim == 4 and owners[one.untyped_storage().data_ptr()] == 1}
    for tensor in converted:
        tensor.data = tensor.data.to(memory_format=memory_format)
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if parameter in converted:
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = value.to(memory_format=memory_format)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_inference() and type(tensor.data) is Tensor
