"""The search for the place where the frozen part of a network ends.

A cut is used only after the network gave the same outputs in two parts as in one, in training and in evaluation mode.
Where a residual connection goes past the cut, it would carry a placeholder, so the outputs differ and the cut is
refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from mxtorch._checks import closest
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.fine_tuning.cut import Call, Cut, CutError
from mxtorch.fine_tuning.grouping import covers
from mxtorch.training.modes import set_training_mode

# How far the outputs of the two ways may differ by rounding, relative to their scale.
TOLERANCE = 1e-4
# Modules that are random in training mode, by the names of their classes: the libraries that define them need not be
# installed.
_RANDOM = ("DropPath", "StochasticDepth", "RReLU", "PatchDropout", "DropBlock2d", "DropBlock3d")


def find_cut(model: nn.Module, inputs: Tensor, at: str | None = None) -> Cut:
    """The last place in a network that everything trainable comes after, and that the outputs depend on alone.

    Nothing changes: modes, buffers, attributes of the modules and the random generators are restored.

        >>> import torch
        >>> from torch import nn
        >>> from mxtorch.fine_tuning import find_cut
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net[0].requires_grad_(False)
        Linear(in_features=4, out_features=8, bias=True)
        >>> inputs = torch.randn(5, 4)
        >>> cut = find_cut(net, inputs)
        >>> print(cut)
        the input of '2'
        >>> features = cut.features(inputs)
        >>> features.shape, torch.equal(cut.outputs(features), net(inputs))
        (torch.Size([5, 8]), True)

    Args:
        model: The network, its frozen parameters with `requires_grad=False`.
        inputs: A batch [N, ...] for it, with N of at least 2, on its device.
        at: The name of a module, to cut at its input. By default the last place that will do.

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
    with unchanged(model):
        set_training_mode(model)
        problems = []
        for cut in _cuts(model, inputs, _paths(model, inputs, at), at):
            problem = _problem(cut, inputs)
            if problem is None:
                return cut
            problems.append(f"{cut}: {problem}")
    if at is not None:
        holder = at.rpartition(".")[0]
        hint = f"; try {holder!r}, which holds it" if holder else ""
        raise CutError(f"at: got {at!r}, but {problems[0].partition(': ')[2]}{hint}")
    raise CutError(f"there is no place to cut it ({'; '.join(problems)})")


@contextlib.contextmanager
def unchanged(model: nn.Module, loader: Any = None) -> Iterator[None]:
    """Restore what passes through a model and over a loader's data change: all but parameters, which they don't."""
    before = TrainingState([model], None, loader=loader, before_first_step=True)
    try:
        yield
    finally:
        before.restore()


def _paths(model: nn.Module, inputs: Tensor, at: str | None) -> list[tuple[str, list[Call]]]:
    """Where the network may be cut, from its input to its output, each place with the calls that come before it."""
    # Other samples than those that a cut is tried with: if an output that was recorded here were used again in place of
    # a placeholder, it would be the wrong one, and the trial would find that out.
    call = _record(model, inputs.roll(1, 0))
    skipped: list[Call] = []
    found: list[tuple[str, list[Call]]] = []
    while True:
        own = [name for name, value in call.module.named_parameters(recurse=False) if value.requires_grad]
        if own:
            if not found and at is None:
                raise CutError(f"{own[0]!r} is trained and belongs to the network itself, not to a layer")
            break
        place = next((n for n, inner in enumerate(call.inside) if _changes(inner.module)), None)
        if at is not None:
            first, place = place, next((n for n, inner in enumerate(call.inside) if covers(inner.name, at)), None)
            if first is not None and (place is None or place > first):
                name = call.inside[first].name
                raise CutError(
                    f"at: got {at!r}, but {name!r}, which comes before it, is trained, or random in training"
                )
        if place is None:
            break
        skipped = [*skipped, *call.inside[:place]]
        call = call.inside[place]
        if at is None or call.name == at:
            found.append((call.name, skipped))
        if call.name == at:
            break
    if not found:
        raise CutError("the trained layers take part in no call" if at is None else f"at: {at!r} is never called")
    return found


def _cuts(model: nn.Module, inputs: Tensor, paths: list[tuple[str, list[Call]]], at: str | None) -> Iterator[Cut]:
    """The cuts to try: the inputs of modules, the latest first; then the outputs of the modules before them."""
    for path, skipped in reversed(paths):
        yield Cut(model, path, skipped, inputs)
    for _, skipped in reversed(paths):
        if at is None and skipped:
            yield Cut(model, skipped[-1].name, skipped[:-1], inputs, output=True)


def _record(model: nn.Module, inputs: Tensor) -> Call:
    """Run the network and record every call of a module."""
    root = Call("", model)
    stack = [root]

    def enter(name: str, module: nn.Module) -> None:
        call = Call(name, module)
        stack[-1].inside.append(call)
        stack.append(call)

    def leave(output: Any) -> None:
        stack.pop().output = output

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                before = module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m), prepend=True)
                hooks.callback(before.remove)
                hooks.callback(module.register_forward_hook(lambda _m, _i, output: leave(output)).remove)
        model.forward(inputs)
    return root


def _problem(cut: Cut, inputs: Tensor) -> str | None:
    """Why a cut can't be used; None if the network in two parts does what it does in one."""
    try:
        features = cut.features(inputs)
        if len(features) != len(inputs):
            return "it has not one row for each sample"
        # Both batches have two samples, so that they take the same kernels: with others the first digits may differ in
        # a deep network.
        pair = inputs[:2]
        beside_another, beside_itself = cut.features(pair)[:1], cut.features(pair[:1].expand_as(pair).clone())[:1]
        if not _close(beside_itself, beside_another):
            return "a sample's row depends on the other samples of the batch"
        if features.shape == inputs.shape:
            return "it has the shape of the inputs, so that the two can't be distinguished"
        for training in (True, False):
            set_training_mode(cut.model) if training else cut.model.eval()
            whole, after_whole = _trial(cut.model, cut.model.forward, inputs)
            parts, after_parts = _trial(cut.model, cut.outputs, features)
            if not _close(whole, parts) or not torch.equal(after_whole, after_parts):
                return (
                    "the outputs do not follow from it alone: a residual connection goes past it, or something random"
                )
    except Exception as error:  # whatever the network raises when it is run in parts
        return f"it can't be run from there ({type(error).__name__}: {error})"
    return None


def _trial(model: nn.Module, forward: Callable[[Tensor], Any], inputs: Tensor) -> tuple[Any, Tensor]:
    """The outputs for fixed random numbers, and the random number that follows them."""
    with torch.no_grad(), unchanged(model):
        torch.manual_seed(0)
        return forward(inputs), torch.rand(1)


def _close(one: Any, other: Any) -> bool:
    """Whether two outputs of a network are the same but for rounding."""
    ones, others = _leaves(one), _leaves(other)
    return len(ones) == len(others) and all(map(_close_leaves, ones, others))


def _close_leaves(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    scale = float(one.float().abs().max()) if one.numel() else 0.0
    coarse = max(TOLERANCE, 4 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
    return bool(((one.float() - other.float()).abs() <= coarse * scale).all())


def _leaves(value: Any) -> list[Any]:
    """`tree_leaves` that also goes into mappings that torch does not know, such as transformers' BatchEncoding."""
    return [
        inner
        for leaf in tree_leaves(value)
        for inner in (_leaves(list(leaf.values())) if isinstance(leaf, Mapping) else [leaf])
    ]


def _changes(module: nn.Module) -> bool:
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
