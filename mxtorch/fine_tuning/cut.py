"""A network in two parts: the features at a cut, and the outputs from the features.

The network's own `forward` is run for both parts, so nothing has to be traced or rewritten. To compute features, the
`forward` is left as soon as it reaches the cut. To go on from features, it is run with every module before the cut
returning a placeholder of the right shape, and the module at the cut taking the features.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mxtorch.fine_tuning.grouping import covers
from mxtorch.training.modes import preserved_modes


class CutError(ValueError):
    """The network can't be cut; the message says why."""


@dataclass(eq=False)
class Call:
    """One call of a module during a pass: the calls inside it, and its output."""

    name: str
    module: nn.Module
    inside: list[Call] = field(default_factory=list)
    output: Any = None


class _Reached(BaseException):
    """Leaves a forward pass at the cut, with what is there. It is no Exception, so that no model catches it.

    Args:
        values: What the module at the cut was given, or gave.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


class Cut:
    """A place in a network that everything trainable comes after: the input or the output of a module.

    `find_cut` makes it.

    Args:
        model: The network.
        path: The module whose input, or output, is kept.
        skipped: The calls before that place, none of them inside another.
        sample: The network's input that the calls were recorded with.
        output: Whether the module's output is kept. This is for networks that have a dropout in their own `forward`
            between the last frozen module and the first trained one.
    """

    def __init__(
        self, model: nn.Module, path: str, skipped: list[Call], sample: Tensor, *, output: bool = False
    ) -> None:
        self.model = model
        self.path = path
        self.of_output = output
        self._module = model.get_submodule(path)
        self._outputs: dict[nn.Module, list[Any]] = {}
        for call in skipped:
            shapes = _map(lambda value: _Shape.of(value, len(sample)), call.output)
            self._outputs.setdefault(call.module, []).append(shapes)
        self._input = _Shape.of(sample, len(sample))
        self._forward: Callable[..., Any] = model.forward
        self._placeholders: dict[Any, Tensor] = {}
        self._shape: torch.Size | None = None  # of the features of one sample

    def __str__(self) -> str:
        return f"the {'output' if self.of_output else 'input'} of {self.path!r}"

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Parameters and buffers before the cut, by their names."""
        named = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: value for name, value in named if name in self._frozen_names}

    @functools.cached_property
    def _frozen_names(self) -> frozenset[str]:
        inside = {id(module) for module in (*self._outputs, *([self._module] if self.of_output else []))}
        names = [name for name, module in self.model.named_modules(remove_duplicate=False) if id(module) in inside]
        after = set()
        if not self.of_output:
            after = {id(value) for value in itertools.chain(self._module.parameters(), self._module.buffers())}
        own = {id(value) for value in _own_tensors(self.model, self.path)}
        return frozenset(
            name
            for name, value in itertools.chain(self.model.named_parameters(), self.model.named_buffers())
            if id(value) not in after and (id(value) in own or any(covers(path, name) for path in names))
        )

    def features(self, inputs: Tensor) -> Tensor:
        """The features [N, ...] at the cut, for inputs [N, ...] of the network, computed in evaluation mode.

        Raises:
            CutError: There is not exactly one tensor at the cut.
        """
        with self.computing() as compute:
            return compute(inputs)

    @contextlib.contextmanager
    def computing(self, twin: nn.Module | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """In this block, as `features`, for many batches; several threads may call the function at once.

        Args:
            twin: A network with the same modules before the cut, to be run in place of the model.

        Yields:
            The function from inputs to features.
        """
        model = self.model if twin is None else twin
        module = model.get_submodule(self.path)
        original = module.forward
        forward = self._forward if twin is None else twin.forward

        def stop(*arguments: Any, **named: Any) -> Any:
            raise _Reached((original(*arguments, **named),) if self.of_output else (*arguments, *named.values()))

        def compute(inputs: Tensor) -> Tensor:
            values: tuple[Any, ...] = ()
            with torch.no_grad():  # each thread has a mode of its own
                try:
                    forward(inputs)
                except _Reached as reached:
                    values = reached.values
            if len(values) != 1 or not isinstance(values[0], Tensor):
                raise CutError("what is there is not one tensor")
            # A copy: a view would keep the whole of its base in memory, and the layers that follow may write into it.
            features = values[0].detach().clone(memory_format=torch.preserve_format)
            self._shape = features.shape[1:]
            return features

        with preserved_modes(model), _forwards({module: stop}):
            model.eval()
            yield compute

    def outputs(self, features: Tensor) -> Any:
        """The network's outputs in its present mode, for features [N, ...].

        Inputs of the network are taken as well, and run through the whole of it: they have another shape.
        """
        if features.shape[1:] != self._shape:
            return self._forward(features)  # inputs, of data whose features are not kept
        waiting: list[Tensor] = [features]
        count = len(features)
        original = self._module.forward

        # The module gets a copy, because it may write into it (dropout in place).
        def take(*arguments: Any, **named: Any) -> Any:
            if not waiting:
                return original(*arguments, **named)
            given = waiting.pop().clone()
            return given if self.of_output else original(given)

        def skip(module: nn.Module) -> Callable[..., Any]:
            forward, shapes = module.forward, iter(self._outputs[module])
            return lambda *arguments, **named: (
                _map(lambda value: self._placeholder(value, count, features), next(shapes))
                if waiting
                else forward(*arguments, **named)
            )

        replaced = {module: skip(module) for module in self._outputs}
        with _forwards({**replaced, self._module: take}):
            return self._forward(self._placeholder(self._input, count, features))

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """In this block the network takes features as well as inputs. Its parameters, names and modes stay the same."""
        compiled = self.model._compiled_call_impl
        self.model._compiled_call_impl = None  # it was compiled for the whole network
        try:
            with _forwards({self.model: self.outputs}):
                yield
        finally:
            self.model._compiled_call_impl = compiled

    def _placeholder(self, value: Any, count: int, like: Tensor) -> Any:
        """A tensor of a shape, with arbitrary contents. All calls share it, because nothing depends on its values."""
        if not isinstance(value, _Shape):
            return value
        shape = value.for_samples(count)
        key = (shape, value.dtype, like.device)
        if key not in self._placeholders:
            if len(self._placeholders) > 8 * (1 + len(self._outputs)):
                self._placeholders.clear()  # a loader whose batches have many sizes
            self._placeholders[key] = torch.zeros(shape, dtype=value.dtype, device=like.device)
        return self._placeholders[key]


@dataclass(frozen=True)
class _Shape:
    """The shape of a tensor for any number of samples. To `tree_map` it is a leaf."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    samples: int

    @classmethod
    def of(cls, value: Any, samples: int) -> Any:
        return cls(tuple(value.shape), value.dtype, samples) if isinstance(value, Tensor) else value

    def for_samples(self, count: int) -> tuple[int, ...]:
        if not self.shape or self.shape[0] % self.samples:
            return self.shape
        return (self.shape[0] // self.samples * count, *self.shape[1:])


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """`tree_map` that also goes into mappings that torch does not know, such as transformers' BatchEncoding."""

    def of_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return function(leaf)
        items = {key: _map(function, inner) for key, inner in leaf.items()}
        make: Any = type(leaf)
        try:
            return make(items)
        except TypeError:  # if the network needs this type and not a dictionary, the trial of the cut fails
            return items

    return tree_map(of_leaf, value)


def _own_tensors(model: nn.Module, path: str) -> Iterator[Tensor]:
    """Parameters and buffers that the modules above a path hold themselves, as a class token."""
    parts = path.split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        yield from itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))


@contextlib.contextmanager
def _forwards(replaced: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules, as instance attributes, and restore it after the block."""
    before: list[tuple[dict[str, Any], Any]] = [(vars(module), vars(module).get("forward")) for module in replaced]
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for attributes, forward in before:
            if forward is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = forward
