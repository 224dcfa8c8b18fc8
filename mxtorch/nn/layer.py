"""The base of all layers. It takes torch's arguments, the layer's own initialisers and an activation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch import nn as torch_nn
from torch.utils._pytree import tree_map

from mxtorch import init
from mxtorch._checks import closest, whole_number
from mxtorch.init import Initializer, InitializerLike
from mxtorch.nn.activation import ActivationLike, activation_from
from mxtorch.nn.lazy import LazyLayer, defer, lazy_class

_SUBMODULES = {"N": "norm", "A": "activation"}


class _LayerClass(type):
    """The metaclass of layers, which defines `isinstance` and `inspect.signature` for them."""

    def __instancecheck__(cls, instance: Any) -> bool:
        """True also for an instance of torch's class, because a layer without norm and activation becomes one."""
        return super().__instancecheck__(instance) or type(instance) is vars(cls).get("torch_class")

    @property
    def __signature__(cls) -> inspect.Signature | None:
        """The arguments of torch, then those of `Layer`; None for a class that defines its own constructor."""
        kind: Any = cls
        owner = _owner(kind)
        return _signature(owner) if owner is not None and kind.__init__ is owner.__init__ else None


class Layer(torch_nn.Module, metaclass=_LayerClass):
    """The base of all layers. It precedes torch's class in the bases of a layer.

    A layer takes the arguments of torch's class, by position and by keyword, and the keyword arguments below. If an
    argument named in `inferred` is None, the layer reads this size from its first batch.

    A layer without norm and activation becomes an instance of `torch_class` at the end of its construction. Code that
    compares exact classes or modules (pickle, FX, quantisation, TorchScript) then sees torch's layer. The layer keeps
    its initialisers. A layer with a norm or an activation keeps its class, and so does an instance of a user's
    subclass.

    Args:
        *torchs: The arguments of torch's class.
        weight_init: Initialiser of the weight: a name, an initialiser of `mxtorch.init`, or a function that fills a
            tensor in place. Its gain is that of `activation`. The default is torch's own initialisation.
        bias_init: Initialiser of the bias; by default torch's own initialisation.
        activation: The activation after the operation, which becomes the submodule `activation`: a name, a module, or
            a module's class.
        **named: The arguments of torch's class.

    Raises:
        ValueError: A name is unknown, a size that can't be inferred is None, an initialiser can't fill the shape, or
            there is an initialiser for a missing parameter.
        TypeError: An argument is unknown or missing, or an initialiser or activation is neither a name nor callable.
    """

    torch_class: ClassVar[Any]
    """The class that a layer without norm and activation becomes. A subclass that keeps its class does not set it."""

    inferred: ClassVar[tuple[str, ...]] = ()
    """The arguments that may be None, in which case the layer reads them from the first batch."""

    channels_at: ClassVar[int] = 1
    """The dimension of the input whose size is the inferred argument."""

    follow_from_sizes: ClassVar[tuple[str, ...]] = ()
    """The attributes that torch's constructor derives from inferred arguments."""

    own_initializers: Mapping[str, Initializer] = {}
    """The initialisers that this layer got, by parameter name."""

    norm: Any
    activation: Any
    _stages: str = "C"  # the parts that the layer has, in their order
    _under_construction: bool = False

    def __init__(
        self,
        *torchs: Any,
        weight_init: InitializerLike | None = None,
        bias_init: InitializerLike | None = None,
        activation: ActivationLike | None = None,
        **named: Any,
    ) -> None:
        own = {"weight_init": weight_init, "bias_init": bias_init}
        self._construct(self._bind(torchs, named), own, activation)

    def forward(self, input: Tensor) -> Any:
        """Run operation, norm and activation in their order."""
        output = input
        for stage in self._stages:
            output = super().forward(output) if stage == "C" else self._run_part(stage, output)
        return output

    def reset_parameters(self) -> None:
        """Fill each parameter again, with the layer's own initialiser, or else as torch does."""
        if self._under_construction:
            return
        if self.own_initializers:
            init.reset(self)
        else:
            parent: Any = super()
            parent.reset_parameters()

    def extra_repr(self) -> str:
        """The text of torch's class, the initialisers, and the order of the parts, for `repr`."""
        parts = [super().extra_repr(), *(f"{name}_init={given}" for name, given in self.own_initializers.items())]
        if self._stages != "C":
            parts.append(f"order={self._stages}")
        return ", ".join(part for part in parts if part)

    @classmethod
    def _torch_parameters(cls) -> list[inspect.Parameter]:
        """The parameters of the constructor of torch's class."""
        return list(inspect.signature(cls.torch_class).parameters.values())

    @classmethod
    def _bind(cls, torchs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of torch's class by name: the given arguments, and those that may be inferred."""
        signature = _signature(_owner(cls))
        parameters = signature.parameters
        try:
            given = signature.bind(*torchs, **named).arguments
        except TypeError as error:
            unknown = next((name for name in named if name not in parameters), None)
            hint = f"; it takes {', '.join(parameters)}" if unknown is None else closest(unknown, parameters)
            raise TypeError(f"{cls.__name__}: {error}{hint}") from None
        arguments = {name: parameters[name].default for name in cls.inferred} | given
        for name, value in arguments.items():
            if value is None and name not in cls.inferred and parameters[name].default is inspect.Parameter.empty:
                raise ValueError(f"{name}: got None; a batch does not show this size, so give a number")
        # torch needs Python's integers in some places, so NumPy's are converted, also in tuples and lists.
        return {name: tree_map(_plain_integer, value) for name, value in arguments.items()}

    def _construct(
        self,
        arguments: dict[str, Any],
        own: Mapping[str, InitializerLike | None],
        activation: ActivationLike | None,
        norm: torch_nn.Module | None = None,
        order: str = "CNA",
    ) -> None:
        """Call torch's constructor, add norm and activation, initialise, and become torch's class.

        Args:
            arguments: The arguments of torch's class, as `_bind` returns them.
            own: The layer's own initialisers, by argument.
            activation: The value of the argument.
            norm: The norm, as a module.
            order: The order of operation (C), norm (N) and activation (A).
        """
        initializers = {name: init.get(value, name) for name, value in own.items() if value is not None}
        parts = {"norm": norm, "activation": self._take_activation(activation, arguments)}
        if initializers:
            self._under_construction = True  # torch's constructors would initialise before the activation is known
        self._construct_operation(arguments, initializers)
        for name, module in parts.items():
            if module is not None:
                self.add_module(name, module)
                self._stages = "".join(s for s in order if s == "C" or parts[_SUBMODULES[s]] is not None)
        if initializers:
            del self._under_construction
            self.own_initializers = self._by_parameter(initializers)
            self.reset_parameters()
        if self._stages == "C":
            self._become_torch()

    def _construct_operation(self, arguments: dict[str, Any], own: Mapping[str, Initializer]) -> None:
        missing = tuple(name for name in self.inferred if arguments[name] is None)
        if missing:
            defer(self, arguments, missing)
        else:
            self.torch_class.__init__(self, **arguments)

    def _take_activation(self, activation: Any, arguments: dict[str, Any]) -> torch_nn.Module | None:
        """The module for `activation=`."""
        return activation_from(activation)

    def _by_parameter(self, own: dict[str, Initializer]) -> dict[str, Initializer]:
        """The initialisers by the name of the parameter, from those by the name of the argument."""
        parameters = {name: self._arguments_for(name) for name, _ in self.named_parameters()}
        for argument, initializer in own.items():
            if not any(argument in arguments for arguments in parameters.values()):
                missing = argument.removesuffix("_init")
                raise ValueError(f"{argument}: got {initializer}, but the layer has no {missing}; give none")
        chosen = {name: next((a for a in arguments if a in own), None) for name, arguments in parameters.items()}
        return {name: own[argument] for name, argument in chosen.items() if argument is not None}

    def _arguments_for(self, parameter: str) -> tuple[str, ...]:
        """The arguments that can initialise a parameter. The first of them that is given counts."""
        return (f"{parameter}_init",)

    def _become_torch(self) -> None:
        is_lazy = isinstance(self, LazyLayer)
        ordinary = self.ordinary if is_lazy else type(self)
        if "torch_class" not in vars(ordinary):
            return
        if self.own_initializers:
            self.__dict__["reset_parameters"] = functools.partial(init.reset, self)
        self.__class__ = lazy_class(ordinary, self.torch_class) if is_lazy else self.torch_class

    def _run_part(self, stage: str, input: Tensor) -> Any:
        return self._normalise(input) if stage == "N" else self.activation(input)

    def _normalise(self, input: Tensor) -> Any:
        return self.norm(input)

    def _infer_sizes(self, input: Tensor) -> dict[str, Any]:
        """The inferred arguments, from the arguments of the first call of `forward`."""
        return {self.inferred[0]: input.shape[self.channels_at]}


def _owner(layer: Any) -> Any:
    """The class in a layer's bases that sets `torch_class`; None for `Layer` itself."""
    return next((base for base in layer.__mro__ if "torch_class" in vars(base)), None)


@functools.cache
def _signature(layer: Any) -> inspect.Signature:
    """The signature of a layer class: the arguments of torch's class, then the keyword arguments of `Layer`."""
    theirs = [
        parameter.replace(annotation=f"{inspect.formatannotation(parameter.annotation)} | None")
        if parameter.name in layer.inferred
        else parameter
        for parameter in layer._torch_parameters()
    ]
    ours = inspect.signature(layer.__init__).parameters.values()
    return inspect.Signature([*theirs, *(p for p in ours if p.kind is p.KEYWORD_ONLY)])


def _plain_integer(value: Any) -> Any:
    number = whole_number(value)
    return value if number is None else number
