"""What every layer shares: its own initialisers, and a norm and an activation beside the operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch import nn as torch_nn

from mxtorch import init
from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.lazy import defer


def own_from(**given: InitializerLike | None) -> dict[str, Initializer]:
    """A layer's own initialisers by the argument that gave them, looked up; those that were left out are not in it.

    Raises:
        ValueError, TypeError: Those of `init.get`, which name the argument.
    """
    return {name: init.get(value, name) for name, value in given.items() if value is not None}


class Layer(torch_nn.Module):
    """The base of all layers, to stand before torch's class. Where nothing is asked for, it adds nothing.

    A layer keeps its initialisers for `reset_parameters` and `init.initialize`, and has `norm` and `activation` as
    submodules where it was given some.
    """

    _own: Mapping[str, Initializer] = {}  # by the argument that gave them; the empty default is never written to
    _stages: str = ""  # the order, without what the layer hasn't got; empty where there is the operation alone
    _under_construction: bool = False

    norm: Any  # a submodule, where it was asked for
    activation: Any  # likewise

    def forward(self, input: Tensor) -> Any:
        """Run operation, norm and activation in their order."""
        if not self._stages:
            return super().forward(input)
        output = input
        for stage in self._stages:
            output = super().forward(output) if stage == "C" else self._beside(stage, output)
        return output

    def reset_parameters(self) -> None:
        """Fill each parameter anew, by the layer's own initialiser or as torch does."""
        if self._under_construction:
            return
        if self._own:
            init.reset(self)
        else:
            parent: Any = super()
            parent.reset_parameters()

    def own_initializers(self) -> dict[str, Initializer]:
        """The initialisers that were given to this layer, by the name of the parameter they are for."""
        return {name.removesuffix("_init"): initializer for name, initializer in self._own.items()}

    def extra_repr(self) -> str:
        """Torch's, and what was given beyond it."""
        parts = [super().extra_repr(), *(f"{name}={initializer}" for name, initializer in self._own.items())]
        if self._stages:
            parts.append(f"order={self._stages}")
        return ", ".join(part for part in parts if part)

    def _beside(self, stage: str, input: Tensor) -> Tensor:
        output: Tensor = self._normalise(input) if stage == "N" else self.activation(input)
        return output

    def _normalise(self, input: Tensor) -> Any:
        return self.norm(input)

    def _construct(
        self,
        torch_class: type[torch_nn.Module],
        arguments: dict[str, Any],
        own: dict[str, Initializer],
        *,
        inferred: Iterable[str] = (),
        stages: str = "",
        beside: Mapping[str, torch_nn.Module | None] | None = None,
    ) -> None:
        """Be constructed as torch's class, then with what goes beside the operation, then initialised.

        Args:
            torch_class: The class of torch that this layer is a subclass of.
            arguments: Those of its constructor.
            own: The layer's own initialisers.
            inferred: Arguments that may be None, to be read off the first batch.
            stages: The order of operation, norm and activation.
            beside: `norm` and `activation`, where there are some.
        """
        if own:
            self._own = own
            self._under_construction = True  # torch's constructors initialise, before the activation is known
        missing = tuple(name for name in inferred if arguments[name] is None)
        if missing:
            defer(self, torch_class, arguments, missing)
        else:
            torch_class.__init__(self, **arguments)
        modules = {name: module for name, module in (beside or {}).items() if module is not None}
        for name, module in modules.items():
            self.add_module(name, module)
        letters = {"C", *(name[0].upper() for name in modules)}
        if modules:
            self._stages = "".join(letter for letter in stages if letter in letters)
        if own:
            del self._under_construction
            self._check_has_parameters(own)
            self.reset_parameters()

    def _check_has_parameters(self, own: Mapping[str, Initializer]) -> None:
        for name in own:
            parameter = name.removesuffix("_init")
            if self._parameters.get(parameter) is None:
                raise ValueError(f"{name}: got {own[name]}, but the layer has no {parameter}; leave it out")
