"""A module that is called as ever, by way of torch's `DistributedDataParallel`.

A wrapper around the user's module would change the names in its state_dict and hide its attributes. So the module keeps
its place, and its `forward` takes the way through the wrapper: `model(inputs)` runs its hooks, then
`DistributedDataParallel`, then the module's own `forward`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Nothing:
    """An input that stands for no batch."""


_NOTHING = _Nothing()


class Replicated:
    """Stands in for the `forward` of a module.

    It does as the module's own, unless gradients are recorded within a step: then it goes by way of the wrapper, which
    exchanges them between the processes as they are computed.

    A copy of the module, and a module that is pickled, have their class's `forward` again.

    Args:
        model: The module; its attribute `forward` becomes this.
        others: Further modules whose parameters are trained with it, as a loss.
        wrap: Makes a `DistributedDataParallel` of a module, on all processes together.
        compile: Compiles a function, or None.

    Attributes:
        in_step: Whether calls go by way of the wrapper.
        calls: How often they did.
    """

    def __init__(
        self,
        model: nn.Module,
        others: list[nn.Module],
        wrap: Callable[[nn.Module], Any],
        compile: Callable[[Any], Any] | None,
    ) -> None:
        self.in_step = False
        self.calls = 0
        self._model = model
        self._others = others
        self._wrap = wrap
        own = model.forward
        self._own = own if compile is None else compile(own)
        self._wrapped: Any = None
        self._trained: tuple[bool, ...] = ()
        functools.update_wrapper(self, own)  # so that its signature can be read
        model.forward = self

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any:
        """The module's forward pass."""
        if not self.in_step or not torch.is_grad_enabled():
            return self._own(*inputs, **named_inputs)
        self.calls += 1
        return self._wrapped(*inputs, **named_inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._model))
        return self if copied is None else types.MethodType(type(copied).forward, copied)

    def __reduce__(self) -> Any:
        return _own_forward, (self._model,)

    def prepare(self) -> None:
        """Make the wrapper, anew where other parameters are trained than before; all processes together."""
        trained = tuple(parameter.requires_grad for module in self._modules for parameter in module.parameters())
        if trained != self._trained:
            self.release()
            self._trained = trained
            if any(trained):
                self._wrapped = self._wrap(_Forward(self._own, self._modules))

    def release(self) -> None:
        """Let go of the wrapper, whose hooks would exchange gradients that are none of it."""
        if self._wrapped is not None:
            self._wrapped._remove_autograd_hooks()
        self._wrapped, self._trained = None, ()

    def nothing(self) -> Tensor:
        """A loss of zero that depends on all parameters, for a process that has no loss where others have one."""
        self.calls += 1
        loss: Tensor = self._wrapped(_NOTHING)
        return loss

    def no_sync(self) -> Any:
        """The context in which gradients are kept to this process."""
        return self._wrapped.no_sync()

    @property
    def _modules(self) -> list[nn.Module]:
        return [self._model, *self._others]


class _Forward(nn.Module):
    """What is wrapped: the parameters of the modules, and the module's own `forward`."""

    def __init__(self, own: Callable[..., Any], modules: list[nn.Module]) -> None:
        super().__init__()
        self._own = own
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """The module's own forward pass; of nothing, a sum over all parameters that is zero."""
        if inputs and inputs[0] is _NOTHING:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.stack([parameter.reshape(-1)[0] * 0.0 for parameter in trained]).sum()
        return self._own(*inputs, **named_inputs)


def _own_forward(model: nn.Module) -> Any:
    return types.MethodType(type(model).forward, model)
