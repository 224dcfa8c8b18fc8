"""The memory format of the 4-d tensors of a network, changed in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Parts of torch's error messages for code that relies on the order of a tensor's elements in memory.
_COMPLAINTS = ("view size is not compatible", "contiguous", "memory format", "memory_format")


def depends_on_layout(error: BaseException) -> bool:
    """Whether torch raised an error because of the order of a tensor's elements in memory."""
    return any(words in str(error) for words in _COMPLAINTS)


def convert(model: nn.Module, optimizers: Iterable[Any], memory_format: torch.memory_format) -> None:
    """Convert the 4-d parameters and buffers of a model, and the optimizers' state for them, to a memory format.

    `nn.Module.to(memory_format=...)` also converts 5-d tensors, for which `torch.channels_last` is an error. The
    tensors stay the same objects. A tensor that shares its memory with another parameter or buffer is not converted,
    because a copy would end the sharing.

    Args:
        model: A module.
        optimizers: torch optimizers of the parameters of the model.
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
