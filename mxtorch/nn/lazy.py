"""Layers whose sizes are read off the first batch."""

from __future__ import annotations

import copy
import functools
from typing import Any, ClassVar, cast

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_UNINITIALIZED_PARAMETER: Any = UninitializedParameter  # torch's types leave out their arguments
_UNINITIALIZED_BUFFER: Any = UninitializedBuffer


class LazyLayer(LazyModuleMixin):
    """A layer before its first batch; it becomes an ordinary one then, as torch's lazy layers do."""

    ordinary: ClassVar[Any]

    def initialize_parameters(self, *inputs: Any, **named: Any) -> None:
        """Read the sizes off the first batch, give the parameters memory, and initialise them."""
        layer = cast(Any, self)
        arguments, missing = layer._deferred
        found = layer._infer_sizes(*inputs, **named)
        sizes = {name: found[name] for name in missing}
        # What the shapes will be, and whether torch takes the sizes, before anything changes.
        twin = layer.torch_class(**{**arguments, **sizes, "device": "meta"})
        was_lazy = layer.has_uninitialized_params()
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                tensor.materialize(getattr(twin, name).shape)
            elif tensor is not None and tensor.shape != getattr(twin, name).shape:
                shapes = f"{tuple(tensor.shape)}, and the first batch needs {tuple(getattr(twin, name).shape)}"
                raise ValueError(f"{name}: what was loaded has the shape {shapes}; load what fits the data")
        for name in missing:
            setattr(layer, name, getattr(twin, name))
        del layer._deferred
        if was_lazy:  # else the values were loaded
            layer.reset_parameters()

    def reset_parameters(self) -> None:
        """Nothing, while there are no parameters yet."""
        if not cast(Any, self).has_uninitialized_params():
            cast(Any, super()).reset_parameters()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the first batch, by which the layer has become an ordinary one."""
        return cast(Any, type(self)).forward(self, *inputs, **named)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.ordinary, self.cls_to_become), self._state()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for buffer in cast(Any, self)._buffers.values():
            if isinstance(buffer, UninitializedBuffer):  # which torch can't copy
                memo[id(buffer)] = _UNINITIALIZED_BUFFER(device=buffer.device, dtype=buffer.dtype)
        twin: Any = _blank(self.ordinary, self.cls_to_become)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._state(), memo))
        return twin

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = cast(Any, self).__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return state


def defer(layer: Any, arguments: dict[str, Any], missing: tuple[str, ...]) -> None:
    """Construct a layer without the sizes that are missing, and make it a lazy one."""
    placeholders = dict.fromkeys(missing, arguments.get("groups") or arguments.get("num_groups") or 1)
    layer.torch_class.__init__(layer, **{**arguments, **placeholders, "device": "meta"})
    ordinary: Any = type(layer)
    layer.__class__ = lazy_class(ordinary, ordinary)
    device, dtype = arguments.get("device"), arguments.get("dtype")
    for name, parameter in list(layer._parameters.items()):
        if parameter is not None:
            setattr(layer, name, _UNINITIALIZED_PARAMETER(device=device, dtype=dtype))
    for name, buffer in list(layer._buffers.items()):
        if buffer is not None:
            layer._buffers[name] = (
                _UNINITIALIZED_BUFFER(device=device, dtype=dtype)
                if buffer.dim()
                else torch.zeros((), dtype=buffer.dtype, device=device)
            )
    for name in missing:
        setattr(layer, name, (0,) if isinstance(getattr(layer, name), tuple) else 0)
    layer._deferred = (arguments, missing)
    layer._load_hook = layer._register_load_state_dict_pre_hook(layer._lazy_load_hook)
    layer._initialize_hook = layer.register_forward_pre_hook(layer._infer_parameters, with_kwargs=True)


@functools.cache
def lazy_class(ordinary: Any, becomes: Any) -> Any:
    """The class of a layer before its first batch; of a user's subclass too.

    Args:
        ordinary: The layer's class.
        becomes: What it is to be after the first batch: that class, or torch's where there is nothing beyond it.
    """
    names = {"ordinary": ordinary, "cls_to_become": becomes, "__module__": ordinary.__module__}
    return type(ordinary)(f"Lazy{ordinary.__name__}", (LazyLayer, ordinary), {**names, "__doc__": LazyLayer.__doc__})


def _blank(ordinary: Any, becomes: Any) -> Any:
    """What `pickle` and `copy` put the state of a lazy layer into."""
    cls = lazy_class(ordinary, becomes)
    return cls.__new__(cls)
