"""Lazy layers, which read their sizes from the first batch."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any, ClassVar, cast

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_UNINITIALIZED_PARAMETER: Any = UninitializedParameter  # torch's types do not have the arguments of these two classes
_UNINITIALIZED_BUFFER: Any = UninitializedBuffer


class LazyLayer(LazyModuleMixin):
    """A layer before its first batch. The first batch turns it into an ordinary layer, as in torch's lazy layers."""

    ordinary: ClassVar[Any]

    def initialize_parameters(self, *inputs: Any, **named: Any) -> None:
        """Read the sizes from the first batch, give the parameters memory, and initialise them."""
        layer = cast(Any, self)
        arguments, missing = layer._deferred
        found = layer._infer_sizes(*inputs, **named)
        sizes = {name: found[name] for name in missing}
        # The twin has all shapes. If torch does not accept the sizes, the error comes before this layer changes.
        twin = layer.torch_class(**{**arguments, **sizes, "device": "meta"})
        was_lazy = layer.has_uninitialized_params()
        parts = {path: layer.get_submodule(path) for path, _ in twin.named_modules()}
        for path, part in parts.items():
            _materialise(part, twin.get_submodule(path))
        for name in (*missing, *layer.follow_from_sizes):
            setattr(layer, name, getattr(twin, name))
        del layer._deferred
        for path, part in parts.items():
            if path:
                _end_part(part, twin.get_submodule(path))
                if was_lazy:  # inner layers are initialised first, as in torch's constructor
                    part.reset_parameters()
        if was_lazy:  # otherwise the parameters have loaded values
            layer.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the parameters again. Nothing happens while they have no sizes."""
        if not cast(Any, self).has_uninitialized_params():
            cast(Any, super()).reset_parameters()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the first batch. The hook has turned the layer into an ordinary one before this call."""
        kind: Any = type(self)
        if issubclass(kind, LazyLayer):  # an inner layer, such as attention's output projection, was called directly
            raise ValueError(
                f"{self.ordinary.__name__} has no sizes yet; call the layer that contains it with a first batch"
            )
        return kind.forward(self, *inputs, **named)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.ordinary, self.cls_to_become), self._state()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for buffer in cast(Any, self)._buffers.values():
            if isinstance(buffer, UninitializedBuffer):  # torch can't copy such a buffer
                memo[id(buffer)] = _UNINITIALIZED_BUFFER(device=buffer.device, dtype=buffer.dtype)
        twin: Any = _blank(self.ordinary, self.cls_to_become)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._state(), memo))
        return twin

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = cast(Any, self).__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return state


def defer(layer: Any, arguments: dict[str, Any], missing: tuple[str, ...]) -> None:
    """Call torch's constructor with placeholders for the sizes in `missing`, and make the layer lazy."""
    placeholders = dict.fromkeys(missing, _placeholder(arguments))
    layer.torch_class.__init__(layer, **{**arguments, **placeholders, "device": "meta"})
    for part in layer.modules():  # this includes inner layers, such as attention's output projection
        _make_lazy(part, arguments.get("device"), arguments.get("dtype"))
    for name in missing:
        setattr(layer, name, (0,) if isinstance(getattr(layer, name), tuple) else 0)
    layer._deferred = (arguments, missing)
    layer._initialize_hook = layer.register_forward_pre_hook(layer._infer_parameters, with_kwargs=True)


def _placeholder(arguments: dict[str, Any]) -> int:
    """A size that torch accepts, other than `kdim` and `vdim`: equal sizes would give attention other parameters."""
    divisor = arguments.get("groups") or arguments.get("num_groups") or arguments.get("num_heads") or 1
    taken = (arguments.get("kdim"), arguments.get("vdim"))
    return next(size for size in itertools.count(divisor, divisor) if size not in taken)


def _make_lazy(part: Any, device: Any, dtype: Any) -> None:
    ordinary: Any = type(part)
    part.__class__ = lazy_class(ordinary, ordinary)
    for name, parameter in list(part._parameters.items()):
        if parameter is not None:
            setattr(part, name, _UNINITIALIZED_PARAMETER(device=device, dtype=dtype))
    for name, buffer in list(part._buffers.items()):
        if buffer is not None:
            part._buffers[name] = (
                _UNINITIALIZED_BUFFER(device=device, dtype=dtype)
                if buffer.dim()
                else torch.zeros((), dtype=buffer.dtype, device=device)
            )
    part._load_hook = part._register_load_state_dict_pre_hook(part._lazy_load_hook)


def _materialise(part: Any, twin: Any) -> None:
    """Give tensors without memory the shapes of the twin's tensors. Loaded tensors must have these shapes already."""
    for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            tensor.materialize(getattr(twin, name).shape)
        elif tensor is not None and tensor.shape != getattr(twin, name).shape:
            shapes = f"{tuple(tensor.shape)}, but the first batch needs {tuple(getattr(twin, name).shape)}"
            raise ValueError(f"{name}: the loaded tensor has the shape {shapes}; load values that fit the data")


def _end_part(part: Any, twin: Any) -> None:
    """Turn an inner layer into an ordinary one. torch does this only for the lazy layer itself."""
    part._load_hook.remove()
    del part._load_hook
    for name in twin.__constants__:
        setattr(part, name, getattr(twin, name))
    part.__class__ = part.cls_to_become


@functools.cache
def lazy_class(ordinary: Any, becomes: Any) -> Any:
    """The class of a layer before its first batch.

    Args:
        ordinary: The layer's class, which may be a user's subclass.
        becomes: The class after the first batch: `ordinary`, or torch's class without norm and activation.
    """
    names = {"ordinary": ordinary, "cls_to_become": becomes, "__module__": ordinary.__module__}
    return type(ordinary)(f"Lazy{ordinary.__name__}", (LazyLayer, ordinary), {**names, "__doc__": LazyLayer.__doc__})


def _blank(ordinary: Any, becomes: Any) -> Any:
    """A new object without state, which `pickle` and `copy` fill with the state of a lazy layer."""
    cls = lazy_class(ordinary, becomes)
    return cls.__new__(cls)
