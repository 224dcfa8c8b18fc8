"""Where the frozen part of a network ends, and how to run the network from there on.

The network's own `forward` is run in both parts, so nothing has to be traced or rewritten. For features it is left
where the cut is reached; from features it is run with every module before the cut returning a placeholder of the right
shape, and the module at the cut taking the features. A cut is used only after both ways gave the same outputs, in
training and in evaluation: what a residual connection carries past the cut would be missing, and shows there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from mxtorch import state
from mxtorch._validation import closest

# Outputs of the two ways may differ by rounding, relative to their scale.
TOLERANCE = 1e-4
# Random in training mode, by class name: they are defined by libraries that need not be there.
_RANDOM = ("DropPath", "StochasticDepth", "RReLU", "PatchDropout", "DropBlock2d", "DropBlock3d")


class CutError(ValueError):
    """The network can't be cut; the message says why."""


@dataclass(eq=False)
class _Call:
    """One call of a module during a pass: what was called inside it, and what came out."""

    name: str
    module: nn.Module
    inside: list[_Call] = field(default_factory=list)
    output: Any = None


class _Reached(BaseException):
    """Leaves a forward pass at the cut. No Exception, so that no handler in a model catches it."""


class Cut:
    """A place in a network that everything trainable comes after: the input or the output of a module.

    Args:
        model: The network.
        path: The module whose input, or output, is kept.
        skipped: The calls before that place, none inside another.
        sample: The network's input that the calls were seen with.
        output: Whether the module's output is kept, which is for networks that have a dropout in their own `forward`
            between the last frozen module and the first trained one.
    """

    def __init__(
        self, model: nn.Module, path: str, skipped: list[_Call], sample: Tensor, *, output: bool = False
    ) -> None:
        self.model = model
        self.path = path
        self.of_output = output
        self._module = model.get_submodule(path)
        self._outputs: dict[nn.Module, list[Any]] = {}
        for call in skipped:
            shapes = tree_map(lambda value: _Shape.of(value, len(sample)), call.output)
            self._outputs.setdefault(call.module, []).append(shapes)
        self._input = _Shape.of(sample, len(sample))
        self._forward: Callable[..., Any] = model.forward
        self._buffers: dict[Any, Tensor] = {}
        self._shape: torch.Size | None = None  # of a sample's features

    def __str__(self) -> str:
        return f"the {'output' if self.of_output else 'input'} of {self.path!r}"

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Parameters and buffers before the cut, by their names."""
        inside = {id(module) for module in (*self._outputs, *([self._module] if self.of_output else []))}
        names = [name for name, module in self.model.named_modules(remove_duplicate=False) if id(module) in inside]
        after = set()
        if not self.of_output:
            after = {id(value) for value in itertools.chain(self._module.parameters(), self._module.buffers())}
        own = {id(value) for _, value in _own_tensors(self.model, self.path)}
        return {
            name: value
            for name, value in itertools.chain(self.model.named_parameters(), self.model.named_buffers())
            if id(value) not in after and (id(value) in own or any(_covers(path, name) for path in names))
        }

    def features(self, inputs: Tensor) -> Tensor:
        """What reaches the cut, for inputs of the network, with everything in evaluation mode."""
        kept: list[Any] = []
        original = self._module.forward

        def stop(*arguments: Any, **named: Any) -> Any:
            kept.extend([original(*arguments, **named)] if self.of_output else (*arguments, *named.values()))
            raise _Reached

        with state.preserved_modes(self.model), _forwards({self._module: stop}), torch.no_grad():
            self.model.eval()
            with contextlib.suppress(_Reached):
                self._forward(inputs)
        if len(kept) != 1 or not isinstance(kept[0], Tensor):
            raise CutError("what is there is not one tensor")
        # A view would hold the whole of what it is a part of, and what follows may write into it.
        features = kept[0].detach().clone(memory_format=torch.preserve_format)
        self._shape = features.shape[1:]
        return features

    def outputs(self, features: Tensor) -> Any:
        """The network's outputs in its present mode, for features; for inputs, which have another shape, too."""
        if features.shape[1:] != self._shape:
            return self._forward(features)  # inputs, of data whose features are not kept
        waiting: list[Tensor] = [features]
        count = len(features)
        original = self._module.forward

        # A copy, as the module may write into it (dropout in place).
        def take(*arguments: Any, **named: Any) -> Any:
            if not waiting:
                return original(*arguments, **named)
            given = waiting.pop().clone()
            return given if self.of_output else original(given)

        def skip(module: nn.Module) -> Callable[..., Any]:
            forward, shapes = module.forward, iter(self._outputs[module])
            return lambda *arguments, **named: (
                tree_map(lambda value: self._placeholder(value, count, features), next(shapes))
                if waiting
                else forward(*arguments, **named)
            )

        replaced = {module: skip(module) for module in self._outputs}
        with _forwards({**replaced, self._module: take}):
            return self._forward(self._placeholder(self._input, count, features))

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """In this block the network takes features besides inputs. Its parameters, names and modes are as ever."""
        compiled = self.model._compiled_call_impl
        self.model._compiled_call_impl = None  # it was compiled for the whole network
        try:
            with _forwards({self.model: self.outputs}):
                yield
        finally:
            self.model._compiled_call_impl = compiled

    def _placeholder(self, value: Any, count: int, like: Tensor) -> Any:
        """A tensor of a shape, its contents arbitrary; one for all calls, as nobody looks at it."""
        if not isinstance(value, _Shape):
            return value
        shape = value.for_samples(count)
        key = (shape, value.dtype, like.device)
        if key not in self._buffers:
            if len(self._buffers) > 8 * (1 + len(self._outputs)):
                self._buffers.clear()  # a loader whose batches have many sizes
            self._buffers[key] = torch.zeros(shape, dtype=value.dtype, device=like.device)
        return self._buffers[key]


@dataclass(frozen=True)
class _Shape:
    """The shape of a tensor, with the number of samples left open. A leaf for pytrees."""

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


def find_cut(model: nn.Module, inputs: Tensor, at: str | None = None) -> Cut:
    """The last place in a network that everything trainable comes after, and that the outputs follow from.

    Nothing changes: running statistics and random generators are put back.

    Args:
        model: The network, its frozen parameters with `requires_grad=False`.
        inputs: A batch for it, of at least two samples, on its device.
        at: A module, to cut at its input; by default the last place that will do.

    Raises:
        CutError: Nothing is frozen or nothing is trained; the trainable layers come first; what comes before the cut is
            random in training mode; or a residual connection goes past it.
        ValueError: There is no module `at`.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CutError("nothing is left to train: every parameter is frozen")
    if all(parameter.requires_grad for parameter in model.parameters()):
        raise CutError("nothing is frozen: every parameter is trained")
    if at is not None and at not in dict(model.named_modules()):
        raise ValueError(f"at: got {at!r}{closest(at, [name for name, _ in model.named_modules() if name])}")
    with _unchanged(model):
        state.set_training_mode(model)
        paths = _paths(model, inputs, at)
        problems = []
        for cut in _cuts(model, inputs, paths, at):
            problem = _problem(cut, inputs)
            if problem is None:
                return cut
            problems.append(f"{cut}: {problem}")
    if at is not None:
        holder = at.rpartition(".")[0]
        hint = f"; try {holder!r}, which holds it" if holder else ""
        raise CutError(f"at: got {at!r}, but {problems[0].partition(': ')[2]}{hint}")
    raise CutError(f"there is no place to cut it ({'; '.join(problems)})")


def _paths(model: nn.Module, inputs: Tensor, at: str | None) -> list[tuple[str, list[_Call]]]:
    """Where the network may be cut, from its input to its output, with the calls that come before."""
    call = _watch(model, inputs)
    skipped: list[_Call] = []
    found: list[tuple[str, list[_Call]]] = []
    while True:
        own = [name for name, value in call.module.named_parameters(recurse=False) if value.requires_grad]
        if own:
            if not found and at is None:
                raise CutError(f"{own[0]!r} is trained and belongs to the network itself, not to a layer")
            break
        wanted = [inner for inner in call.inside if at is not None and _covers(inner.name, at)]
        first = next((inner for inner in call.inside if _moves(inner.module)), None)
        if at is not None and first is not None and not (wanted and _before(call.inside, wanted[0], first)):
            raise CutError(
                f"at: got {at!r}, but {first.name!r}, which comes before it, is trained, or random in training"
            )
        first = wanted[0] if wanted else first
        if first is None:
            break
        skipped = [*skipped, *call.inside[: call.inside.index(first)]]
        if at is None or first.name == at:
            found.append((first.name, skipped))
        if first.name == at:
            break
        call = first
    if not found:
        raise CutError("the trained layers take part in no call" if at is None else f"at: {at!r} is never called")
    return found


def _cuts(model: nn.Module, inputs: Tensor, paths: list[tuple[str, list[_Call]]], at: str | None) -> Iterator[Cut]:
    """What to try: the inputs of modules, the latest first; then what comes out of those before them."""
    for path, skipped in reversed(paths):
        yield Cut(model, path, skipped, inputs)
    for _, skipped in reversed(paths):
        if at is None and skipped:
            yield Cut(model, skipped[-1].name, skipped[:-1], inputs, output=True)


def _before(calls: list[_Call], one: _Call, other: _Call) -> bool:
    return calls.index(one) <= calls.index(other)


def _watch(model: nn.Module, inputs: Tensor) -> _Call:
    """Run the network and note every call."""
    root = _Call("", model)
    stack = [root]
    handles = []

    def enter(name: str, module: nn.Module) -> None:
        call = _Call(name, module)
        stack[-1].inside.append(call)
        stack.append(call)

    def leave(output: Any) -> None:
        stack.pop().output = output

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m), prepend=True))
                handles.append(module.register_forward_hook(lambda _m, _i, output: leave(output)))
        with torch.no_grad():
            model.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return root


def _problem(cut: Cut, inputs: Tensor) -> str | None:
    """Why a cut can't be used; None if it can: the network in two parts does what it does in one."""
    try:
        features = cut.features(inputs)
        if len(features) != len(inputs):
            return "it has not one row for each sample"
        # Batches of the same size take the same kernels: in a deep network others may differ in the first digits.
        pair = inputs[:2]
        beside_another, beside_itself = cut.features(pair)[:1], cut.features(pair[:1].expand_as(pair).clone())[:1]
        if not _close(beside_itself, beside_another):
            return "a sample's row depends on the other samples of the batch"
        if features.shape == inputs.shape:
            return "it has the shape of the inputs, which could not be told from features"
        for training in (True, False):
            state.set_training_mode(cut.model) if training else cut.model.eval()
            with torch.no_grad(), _unchanged(cut.model):
                torch.manual_seed(0)
                whole, after_whole = cut.model.forward(inputs), torch.rand(1)
            with torch.no_grad(), _unchanged(cut.model):
                torch.manual_seed(0)
                parts, after_parts = cut.outputs(features), torch.rand(1)
            if not _close(whole, parts) or not torch.equal(after_whole, after_parts):
                return (
                    "the outputs do not follow from it alone: a residual connection goes past it, or something random"
                )
    except Exception as error:  # whatever the network raises when it is run in parts
        return f"it can't be run from there ({type(error).__name__}: {error})"
    return None


def _close(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        scale = float(one.float().abs().max()) if one.numel() else 0.0
        coarse = max(tolerance, 4 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
        return bool(((one.float() - other.float()).abs() <= coarse * scale).all())
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    return bool(one == other)


def _moves(module: nn.Module) -> bool:
    """Whether a module, or one inside it, is trained, or gives something else every time in its present mode."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(inner.training and _random_or_adapting(inner) for inner in module.modules())


def _random_or_adapting(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _NormBase):
        return True
    return any(base.__name__ in _RANDOM for base in type(module).__mro__)


def _own_tensors(model: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that modules above a path hold themselves, as a class token."""
    parts = path.split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        yield from itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))


def _covers(path: str, name: str) -> bool:
    return name == path or name.startswith(f"{path}.")


@contextlib.contextmanager
def _forwards(replaced: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules, as instance attributes, and take the replacements away again."""
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


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random generators back after the block."""
    random_state = state.random_state()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with state.preserved_modes(model):
            yield
    finally:
        with torch.no_grad():
            for live, saved in buffers:
                live.copy_(saved)
        state.set_random_state(random_state)
