"""What every layer shares: its own initialisers, and a norm and an activation beside the operation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch import nn as torch_nn

from mxtorch import init
from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.lazy import LazyLayer, defer, lazy_class

_NEVER_INFERRED = (
    "out_channels",
    "kernel_size",
    "out_features",
    "num_embeddings",
    "embedding_dim",
    "hidden_size",
    "num_heads",
    "num_groups",
)


def own_from(**given: InitializerLike | None) -> dict[str, Initializer]:
    """A layer's own initialisers by the argument that gave them, looked up; those that were left out are not in it.

    Raises:
        ValueError, TypeError: Those of `init.get`, which name the argument.
    """
    return {name: init.get(value, name) for name, value in given.items() if value is not None}


class _LikeTorch(type):
    """The class of layer classes: an instance of torch's class is one of ours too, as ours may have become it."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or type(instance) is vars(cls).get("torch_class")


class Layer(torch_nn.Module, metaclass=_LikeTorch):
    """The base of all layers, to stand before torch's class.

    A layer without norm and activation is torch's: as soon as it is constructed, its class becomes `torch_class`, so
    that nothing that looks at exact classes or modules (pickle, FX, quantisation, TorchScript) can tell. It carries its
    initialisers along. One with a norm or an activation keeps its class, and so does a subclass elsewhere.
    """

    torch_class: ClassVar[Any]
    """What a layer without norm and activation becomes. A subclass that is to stay itself doesn't set it."""

    follow_from_sizes: ClassVar[tuple[str, ...]] = ()
    """Attributes that torch's constructor derives from sizes that may be left out."""

    own_initializers: Mapping[str, Initializer] = {}
    """The initialisers that were given to this layer, by the name of the parameter they are for."""

    _under_construction: bool = False

    def reset_parameters(self) -> None:
        """Fill each parameter anew, by the layer's own initialiser or as torch does."""
        if self._under_construction:
            return
        if self.own_initializers:
            init.reset(self)
        else:
            parent: Any = super()
            parent.reset_parameters()

    def _construct(self, arguments: dict[str, Any], own: dict[str, Initializer], inferred: Iterable[str] = ()) -> None:
        """Be constructed as torch's class, initialised, and become that class.

        Args:
            arguments: Those of torch's constructor.
            own: The layer's own initialisers, by argument.
            inferred: Arguments that may be None, to be read off the first batch.

        Raises:
            ValueError: Another size is None.
        """
        self._construct_operation(arguments, own, inferred)
        self._initialize(own)
        self._become_torch()

    def _construct_operation(self, arguments: dict[str, Any], own: Mapping[str, Any], inferred: Iterable[str]) -> None:
        for name in _NEVER_INFERRED:
            if arguments.get(name, 0) is None:
                raise ValueError(f"{name}: got None; no batch tells it, so give a number")
        if own:
            self._under_construction = True  # torch's constructors initialise, before the activation is known
        missing = tuple(name for name in inferred if arguments[name] is None)
        if missing:
            defer(self, arguments, missing)
        else:
            self.torch_class.__init__(self, **arguments)

    def _initialize(self, own: dict[str, Initializer]) -> None:
        if not own:
            return
        del self._under_construction
        self.own_initializers = self._by_parameter(own)
        self.reset_parameters()

    def _by_parameter(self, own: dict[str, Initializer]) -> dict[str, Initializer]:
        """The initialisers by parameter instead of by argument."""
        for name in own:
            self._check_wanted(name, own, self._parameters.get(name.removesuffix("_init")) is not None)
        return {name.removesuffix("_init"): initializer for name, initializer in own.items()}

    def _check_wanted(self, argument: str, own: dict[str, Initializer], is_there: bool) -> None:
        if argument in own and not is_there:
            lacks = argument.removesuffix("_init")
            raise ValueError(f"{argument}: got {own[argument]}, but the layer has no {lacks}; leave it out")

    def _become_torch(self) -> None:
        is_lazy = isinstance(self, LazyLayer)
        ordinary = self.ordinary if is_lazy else type(self)
        if "torch_class" not in vars(ordinary):
            return
        if self.own_initializers:
            self.__dict__["reset_parameters"] = functools.partial(init.reset, self)
        self.__class__ = lazy_class(ordinary, self.torch_class) if is_lazy else self.torch_class


class ComposedLayer(Layer):
    """A layer that can have a norm and an activation beside its operation: submodules of those names, if asked for."""

    norm: Any
    activation: Any
    _stages: str = ""  # the order, without what the layer hasn't got; empty where there is the operation alone

    def forward(self, input: Tensor) -> Any:
        """Run operation, norm and activation in their order."""
        output = input
        for stage in self._stages or "C":
            output = super().forward(output) if stage == "C" else self._beside(stage, output)
        return output

    def extra_repr(self) -> str:
        """Torch's, and what was given beyond it."""
        parts = [super().extra_repr(), *(f"{name}_init={given}" for name, given in self.own_initializers.items())]
        if self._stages:
            parts.append(f"order={self._stages}")
        return ", ".join(part for part in parts if part)

    def _construct_composed(
        self,
        arguments: dict[str, Any],
        own: dict[str, Initializer],
        inferred: Iterable[str] = (),
        *,
        activation: torch_nn.Module | None,
        norm: torch_nn.Module | None = None,
        order: str = "CNA",
    ) -> None:
        """As `_construct`, with modules beside the operation; without any it is that."""
        if activation is None and norm is None:
            self._construct(arguments, own, inferred)
            return
        self._construct_operation(arguments, own, inferred)
        beside = {"N": ("norm", norm), "A": ("activation", activation)}
        for name, module in beside.values():
            if module is not None:
                self.add_module(name, module)
        self._stages = "".join(stage for stage in order if stage == "C" or beside[stage][1] is not None)
        self._initialize(own)

    def _beside(self, stage: str, input: Tensor) -> Any:
        return self._normalise(input) if stage == "N" else self.activation(input)

    def _normalise(self, input: Tensor) -> Any:
        return self.norm(input)
