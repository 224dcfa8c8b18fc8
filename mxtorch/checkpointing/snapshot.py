"""A copy, in memory, of everything that a training step changes; `restore` puts it back.

One definition of this state serves three uses: the learning-rate finder (copy, search, restore), undoing a first step
that failed, and undoing a checkpoint that could be loaded only in part.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
import signal
import threading
import types
import warnings
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FrameType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from mxtorch.checkpointing.random_state import (
    generator_state,
    raw_random_state,
    set_generator_state,
    set_raw_random_state,
)
from mxtorch.checkpointing.reachable import ABSENT, Trail, Walk, bytes_of, content_of, is_of_data, name_of, slots_of

# The largest tensor or array of a loader that is copied, and the largest sum of their sizes, in bytes: orders of
# samplers, counts, small data. Larger ones are data; `restore` warns if they have changed.
LARGEST_COPIED_OF_DATA = 2**24
MOST_COPIED_OF_DATA = 2**26
_FINGERPRINT_ELEMENTS = 4096
_DATA = (DataLoader, Dataset, Sampler)


class TrainingState:
    """A copy, in memory, of all that training steps change.

    One walk (`reachable.Walk`) finds everything that can be reached from the modules, the optimizer, the owner and the
    loader: tensors, arrays, random generators, containers, attributes, and variables of closures. The values of tensors
    and arrays are copied. Of every other object, the references that it holds are copied. The state of the engine and
    of the global generators of Python, NumPy and torch is copied, too. Persistent worker processes of loaders are set
    aside, because their random states can't be read.

    Large tensors and arrays of a loader are data, and are not copied; `restore` warns if they have changed.

    Gradients of the optimizer's parameters are kept by reference: a step must start with
    `zero_grad(set_to_none=True)`, as the step of `Trainer` does. Gradients of other parameters are copied.

    Args:
        modules: The model, and a loss that is a module.
        optimizer: The optimizer, wrapped or not.
        capture_engine: Copies what a step changes in the engine, and returns a function that restores it
            (`Engine.capture`).
        loader: The source of the batches; a tuple for several loaders.
        owner: An object whose attributes a step may set (the trainer).
        others: Further objects by name, for example functions with closures. Warnings use these names.
        before_first_step: Leave out what only `optimizer.step()` changes, which are parameters and optimizer state.
            Such a copy is cheap, and is enough to undo a first step that failed before it called the optimizer.

    Warns:
        UserWarning: With a loader, unless `before_first_step`: there are objects whose state can't be restored (an open
            file, a Python generator, a thread). The warning names them.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = TrainingState([model], None)
        >>> _ = nn.init.zeros_(model.weight)
        >>> before.restore()
        >>> bool(model.weight.any())
        True
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: Optimizer | None,
        *,
        capture_engine: Callable[[], Callable[[], None]] | None = None,
        loader: Any = None,
        owner: object | None = None,
        others: Mapping[str, object] = MappingProxyType({}),
        before_first_step: bool = False,
    ) -> None:
        self._containers: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._gradients: list[tuple[Tensor, bool, Tensor | None, Tensor | None]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._not_copied: list[tuple[Any, Any, Trail]] = []
        self._bytes_left = MOST_COPIED_OF_DATA
        uncovered: list[tuple[Trail, str]] = []

        parts = [(module, "loss" if index else "model") for index, module in enumerate(modules)]
        named = ((optimizer, "optimizer"), (owner, "trainer"))
        roots: list[tuple[Any, str]] = [*parts, *((part, name) for part, name in named if part is not None)]
        roots += [(part, name) for name, part in others.items()]
        not_followed = ((Optimizer, "state"),) if before_first_step else ()
        training = Walk(lambda part: not isinstance(part, _DATA), not_followed=not_followed).search(roots)
        own = set() if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
        for tensor, trail in training.tensors:
            self._keep_gradient(tensor, by_reference=id(tensor) in own)
            if is_lazy(tensor):
                uncovered.append((trail, "has no shape before its first batch"))
            elif not (before_first_step and isinstance(tensor, nn.Parameter)):
                self._tensors.append(_values_of(tensor))
        self._arrays += [(array, array.copy()) for array, _ in training.arrays if array.flags.writeable]

        data = Walk(self._enters, after=training)
        data.search([(part, name_of(trail)) for part, trail in training.left])
        if loader is not None:
            data.search([(loader, "data")])
        for tensor, trail in data.tensors:
            self._keep_gradient(tensor, by_reference=id(tensor) in own)
            self._keep_data(tensor, trail)
        for array, trail in data.arrays:
            if array.flags.writeable:
                self._keep_data(array, trail)

        for walk in (training, data):
            self._containers += _copies(walk)
            self._generators += [(generator, generator_state(generator)) for generator, _ in walk.generators]
            uncovered += walk.uncovered
        self._restore_engine = None if capture_engine is None else capture_engine()
        self._loaders = [*training.loaders, *data.loaders]
        if not before_first_step:
            self.set_workers_aside()
        if uncovered and loader is not None and not before_first_step:
            _warn_of(uncovered)
        self._random = raw_random_state()

    @staticmethod
    def _enters(part: Any) -> bool:
        """Whether the walk enters an object that a loader refers to."""
        return True

    def restore(self) -> None:
        """Restore everything. The method can be called more than once; Ctrl-C waits until it has finished.

        Warns:
            UserWarning: Data that were too large to be copied have changed.
        """
        try:
            with deferred_interrupt():
                self._restore()
        except KeyboardInterrupt:  # Ctrl-C came before it was held back, or was held back until now
            with deferred_interrupt():
                self._restore()
            raise
        if changed := [name_of(trail) for value, before, trail in self._not_copied if _fingerprint(value) != before]:
            self._not_copied = []
            warnings.warn(
                f"{', '.join(changed)} changed and can't be restored: data of more than "
                f"{LARGEST_COPIED_OF_DATA // 2**20} MiB are not copied. Build the data again.",
                stacklevel=2,
            )

    def set_workers_aside(self) -> None:
        """Make the next pass of each loader start new workers, because persistent workers keep their random states.

        `restore` puts the persistent workers back.
        """
        for loader in self._loaders:
            if getattr(loader, "_iterator", None) is not None:
                vars(loader)["_iterator"] = None

    @torch.no_grad()
    def _restore(self) -> None:
        for put_back, live, saved in self._containers:
            put_back(live, saved)
        for tensor, values in self._tensors:
            _write(tensor, values)
        for array, saved_array in self._arrays:
            array[...] = saved_array
        for tensor, trained, gradient, gradient_values in self._gradients:
            if tensor.requires_grad != trained:
                tensor.requires_grad_(trained)
            tensor.grad = gradient
            if gradient is not None and gradient_values is not None:
                gradient.copy_(gradient_values)
        if self._restore_engine is not None:
            self._restore_engine()
        for generator, state in self._generators:
            set_generator_state(generator, state)
        set_raw_random_state(self._random)

    def _keep_gradient(self, tensor: Tensor, *, by_reference: bool) -> None:
        if not tensor.is_leaf or is_lazy(tensor):
            return
        gradient = tensor.grad
        if isinstance(tensor, nn.Parameter) or gradient is not None:
            values = None if by_reference or gradient is None else gradient.detach().clone()
            self._gradients.append((tensor, tensor.requires_grad, gradient, values))

    def _keep_data(self, value: Any, trail: Trail) -> None:
        """Copy the values of a tensor or array of a loader; of a large one, only a fingerprint."""
        if isinstance(value, Tensor) and is_lazy(value):
            return
        if bytes_of(value) > min(LARGEST_COPIED_OF_DATA, self._bytes_left) or isinstance(value, np.memmap):
            self._not_copied.append((value, _fingerprint(value), trail))
            return
        self._bytes_left -= bytes_of(value)
        if isinstance(value, Tensor):
            self._tensors.append(_values_of(value))
        else:
            self._arrays.append((value, value.copy()))


class LoaderSnapshot(TrainingState):
    """A copy of everything that decides the next pass of a loader: samplers, data set, random generators.

    A model, an optimizer or a trainer that the loader refers to is not copied.

    Args:
        loader: The source of the batches.
    """

    def __init__(self, loader: Any) -> None:
        super().__init__((), None, loader=loader, before_first_step=True)

    _enters = staticmethod(is_of_data)

    def restore_global_generators(self) -> None:
        """Restore only the global generators of Python, NumPy and torch."""
        set_raw_random_state(self._random)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, so that it can't interrupt a restore halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received and callable(previous):
        previous(*received[0])


def parts_of(loader: Any) -> list[Any]:
    """The objects that a loader consists of (samplers, data sets, transforms, generators), the nearest first."""
    walk = Walk(is_of_data).search([(loader, "data")])
    return [part for part, _ in walk.objects] + [generator for generator, _ in walk.generators]


# ---------------------------------------------------------------- containers


def _copies(walk: Walk) -> list[tuple[Callable[[Any, Any], None], Any, Any]]:
    """For each container: the function that restores it, the container, and a shallow copy of its content."""
    found: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
    found += [(_put_back_dict, live, dict(live) if live else {}) for live in walk.dicts]
    found += [(_put_back_list, live, list(live)) for live in walk.lists]
    found += [(_put_back_set, live, set(live)) for live in walk.sets]
    found += [(_put_back_deque, live, list(live)) for live in walk.deques]
    found += [(_put_back_cell, live, content_of(live)) for live in walk.cells]
    found += [
        (_put_back_slots, live, {name: getattr(live, name, ABSENT) for name in slots_of(type(live))})
        for live in walk.slotted
    ]
    found += [(_put_back_class, live, dict(vars(live))) for live in walk.classes]
    found += [(_put_back_buffer, live, bytes(memoryview(live))) for live in walk.buffers]
    return found


def _put_back_dict(live: dict[Any, Any], saved: dict[Any, Any]) -> None:
    if _are_same(live.keys(), saved.keys()) and _are_same(live.values(), saved.values()):
        return
    kind = OrderedDict if isinstance(live, OrderedDict) else dict
    kind.clear(live)
    kind.update(live, saved)


def _put_back_list(live: list[Any], saved: list[Any]) -> None:
    if not _are_same(live, saved):
        list.__setitem__(live, slice(None), saved)


def _are_same(first: Collection[Any], second: Collection[Any]) -> bool:
    return len(first) == len(second) and all(map(operator.is_, first, second))


def _put_back_set(live: set[Any], saved: set[Any]) -> None:
    if live != saved:
        set.clear(live)
        set.update(live, saved)


def _put_back_deque(live: deque[Any], saved: list[Any]) -> None:
    deque.clear(live)
    deque.extend(live, saved)


def _put_back_cell(live: types.CellType, saved: Any) -> None:
    if saved is not ABSENT:
        live.cell_contents = saved
    elif content_of(live) is not ABSENT:
        del live.cell_contents


def _put_back_slots(live: Any, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if value is not ABSENT:
            object.__setattr__(live, name, value)
        elif hasattr(live, name):
            object.__delattr__(live, name)


def _put_back_class(live: type, saved: dict[str, Any]) -> None:
    now = dict(vars(live))
    for name in now.keys() - saved.keys():
        delattr(live, name)
    for name, value in saved.items():
        if now.get(name, ABSENT) is not value:
            setattr(live, name, value)


def _put_back_buffer(live: Any, saved: bytes) -> None:
    if isinstance(live, ctypes._SimpleCData | ctypes.Array | ctypes.Structure):
        ctypes.memmove(ctypes.addressof(live), saved, len(saved))
    elif isinstance(live, bytearray):
        live[:] = saved
    else:
        del live[:]
        live.frombytes(saved)


# ---------------------------------------------------------------- tensors


def _values_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor that `_write` fills later, and a copy of its values. An expanded tensor is copied without repeats."""
    if tensor.layout is torch.strided and 0 in tensor.stride():
        tensor = tensor.detach()
        for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dimension, 0, 1)
    return tensor, tensor.detach().clone()


def _write(live: Tensor, saved: Tensor) -> None:
    if live.is_inference():
        with torch.inference_mode():
            live.copy_(saved)
    elif live.shape == saved.shape and live.dtype == saved.dtype:
        live.copy_(saved)
    else:
        live.data = saved.clone()


def _fingerprint(value: Any) -> Any:
    """A value that changes when large data change: torch's version of a tensor, a checksum of a sample of an array."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if value.size == 0 or value.dtype == object:
        return None
    step = max(1, value.size // _FINGERPRINT_ELEMENTS)
    places = np.unravel_index(np.arange(0, value.size, step), value.shape)
    return zlib.crc32(np.ascontiguousarray(value[places]).view(np.uint8).data)


def _warn_of(uncovered: list[tuple[Trail, str]]) -> None:
    found = "; ".join(f"{name_of(trail)}: {what}" for trail, what in uncovered)
    warnings.warn(
        f"Not everything can be restored afterwards: {found}. If a step or a pass over the data changes these, they "
        "stay changed.",
        stacklevel=4,
    )
