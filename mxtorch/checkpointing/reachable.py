"""One walk over every object that can be reached from some roots. The walk finds the objects that may hold state.

The walk follows attributes (`__dict__` and `__slots__`), containers, keys, closures, partial functions and bound
methods. It also follows attributes of classes and global variables of functions, unless a library defines them. The
depth is not limited. A long container of plain data (numbers, text, tensors) is not searched element by element, so the
cost does not grow with the size of a data set. A function that is registered as a hook observes a training, so the walk
does not follow its closure.
"""

from __future__ import annotations

import array
import ctypes
import dataclasses
import enum
import functools
import io
import itertools
import operator
import random
import re
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mxtorch.checkpointing.random_state import is_generator

# In a container with more elements, the walk first looks at a selection. If these are plain data, it stops there.
LONG_CONTAINER = 1024
SELECTED_ELEMENTS = 256
# About a second of work. If there are more objects, the walk reports this.
MOST_OBJECTS = 200_000

# This object represents a variable or an attribute without a value.
ABSENT = object()

# The place of an object: the trail of its holder, a name or key in the holder, and whether this is an attribute name.
Trail = tuple[Any, Any, bool]

_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "torchvision", "torchmetrics", "torchdata", "mxtorch"}
_LIBRARIES |= {"fastai", "fastcore"}
# Objects of these modules belong to the machinery around a training, or hold data that do not change in place.
_NOT_ENTERED = (
    *("mxtorch.training.", "mxtorch.callbacks.", "mxtorch.engines.", "mxtorch.checkpointing.", "mxtorch.lr_finder."),
    *("mxtorch.fine_tuning.feature_bank", "mxtorch.fine_tuning.feature_cache"),
    *("torch._", "torch.fx", "torch.export", "torch.distributed", "torch.autograd", "torch.cuda", "torch.profiler"),
    *("inspect", "logging", "typing", "ast", "importlib", "pathlib", "datetime", "decimal", "fractions", "uuid", "abc"),
    *("_thread", "threading", "multiprocessing", "warnings", "contextlib", "_pytest", "pytest", "unittest", "tqdm"),
    *("pandas", "pyarrow", "PIL", "matplotlib", "IPython", "ipykernel"),
    *("lightning.pytorch.trainer", "pytorch_lightning.trainer"),
)
# Exceptions: objects of these modules are entered.
_ENTERED = ("multiprocessing.sharedctypes", "torch.autograd.variable")
# Objects of these modules have a state outside of Python, which can't be restored.
_NOT_RESTORABLE = (
    *("queue", "_queue", "asyncio", "concurrent", "sqlite3", "torch.utils.tensorboard", "tensorboard", "tensorboardX"),
    *("multiprocessing.queues", "multiprocessing.connection", "multiprocessing.process", "multiprocessing.pool"),
    *("multiprocessing.managers", "wandb", "mlflow"),
)
# Other special methods are usually made by decorators, such as `dataclass`, and hold nothing that changes.
_SEARCHED_METHODS = ("__call__", "__getitem__", "__getitems__", "__iter__", "__len__", "__next__")
# The walk has handlers for roots of these classes. It enters roots of all other classes, whatever their module.
_WITH_HANDLERS = (dict, list, set, deque, types.FunctionType, functools.partial)
_PLAIN_DICTS = (dict, OrderedDict, defaultdict, Counter)
ATOMS: frozenset[type] = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented)),
        *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, types.ModuleType, re.Pattern),
        *(types.CodeType, type, weakref.ref, operator.itemgetter, operator.attrgetter),
    )
)


class Walk:
    """The objects that were found, each object once, in the order of their distance from the roots.

    Args:
        enters: Returns whether the walk enters an object with attributes. Objects that it does not enter are in `left`.
        after: An earlier walk over other roots. Objects that it has found are not found again.
        not_followed: Attributes that are not followed, each with its class.

    Attributes:
        dicts, lists, sets, deques: Containers that can be changed. `dicts` includes the `__dict__` of each object.
        cells: Variables of closures.
        slotted: Objects with `__slots__`.
        classes: Classes of the program whose instances were found.
        buffers: Byte arrays, arrays of the standard library, values of ctypes.
        tensors, arrays, generators: These objects, each with its trail.
        objects: Objects with attributes, each with its trail.
        functions: Functions with a closure, each with its trail.
        loaders: DataLoaders.
        left: Objects that `enters` excluded, each with its trail.
        uncovered: Objects whose state can't be read: the trail and a description of each.
    """

    def __init__(
        self,
        enters: Callable[[Any], bool] = lambda part: True,
        *,
        after: Walk | None = None,
        not_followed: tuple[tuple[type, str], ...] = (),
    ) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.sets: list[set[Any]] = []
        self.deques: list[deque[Any]] = []
        self.cells: list[types.CellType] = []
        self.slotted: list[Any] = []
        self.classes: list[type] = []
        self.buffers: list[Any] = []
        self.tensors: list[tuple[Tensor, Trail]] = []
        self.arrays: list[tuple[np.ndarray[Any, Any], Trail]] = []
        self.generators: list[tuple[Any, Trail]] = []
        self.objects: list[tuple[Any, Trail]] = []
        self.functions: list[tuple[types.FunctionType, Trail]] = []
        self.loaders: list[DataLoader[Any]] = []
        self.left: list[tuple[Any, Trail]] = []
        self.uncovered: list[tuple[Trail, str]] = []
        self._enters = enters
        # The iterator of persistent workers is replaced, so its attributes are not followed.
        self._not_followed = ((DataLoader, "_iterator"), *not_followed)
        # By id. The objects are kept alive, because Python gives the id of a deleted object to a new one.
        self._seen: dict[int, Any] = {} if after is None else after._seen
        for part, _ in () if after is None else after.left:
            del self._seen[id(part)]
        # Functions, not methods bound to this walk: such a cycle would keep all that was found until it is collected.
        self._handlers: dict[type, Callable[[Walk, Any, Trail], None] | None] = dict.fromkeys(ATOMS)
        self._queue: deque[tuple[Any, Trail]] = deque()

    def search(self, roots: Iterable[tuple[Any, str]]) -> Walk:
        """Search from these roots, each of which has a name; returns the walk itself."""
        for root, name in roots:
            trail = (None, name, True)
            if id(root) in self._seen:
                continue
            self._seen[id(root)] = root
            if _has_attributes(type(root)) and not isinstance(root, _WITH_HANDLERS):
                self._object(root, trail)  # a root is entered, whatever its class
            else:
                self._queue.append((root, trail))
        queue, handlers, left = self._queue, self._handlers, MOST_OBJECTS
        while queue:
            value, trail = queue.popleft()
            kind = type(value)
            try:
                handler = handlers[kind]
            except KeyError:
                handler = handlers[kind] = self._handler(kind)
            if handler is not None:
                handler(self, value, trail)
            left -= 1
            if left == 0:
                self.uncovered.append((_root_of(trail), f"holds more than {MOST_OBJECTS:,} objects"))
                queue.clear()
        return self

    # ---------------------------------------------------------------- kinds

    def _handler(self, kind: type) -> Callable[[Walk, Any, Trail], None] | None:
        """The method for objects of a type; None for a type without state."""
        name = _handler_name(kind)
        if name == "_object":
            self._class(kind)
        return None if name is None else getattr(type(self), name)

    def _push(self, value: Any, trail: Trail) -> None:
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self._queue.append((value, trail))

    def _push_items(self, items: Iterable[tuple[Any, Any]], trail: Trail, are_attributes: bool) -> None:
        seen, queue, handlers = self._seen, self._queue, self._handlers
        for name, value in items:
            if handlers.get(type(value), 0) is not None and id(value) not in seen:
                seen[id(value)] = value
                queue.append((value, (trail, name, are_attributes)))

    def _push_elements(self, elements: Any, names: Iterable[Any], trail: Trail) -> None:
        """Add the elements of a container to the queue. A long container is skipped if a selection is plain data."""
        if ATOMS.issuperset(set(map(type, elements))):
            return
        if len(elements) > LONG_CONTAINER:
            step = len(elements) // SELECTED_ELEMENTS
            if all(_is_data(element) for element in itertools.islice(elements, 0, None, step)):
                return
        self._push_items(zip(names, elements, strict=False), trail, are_attributes=False)

    # ---------------------------------------------------------------- what is found

    def _tensor(self, tensor: Tensor, trail: Trail) -> None:
        self.tensors.append((tensor, trail))
        if tensor.__dict__:
            self._attributes(tensor, trail)

    def _array(self, values: np.ndarray[Any, Any], trail: Trail) -> None:
        self.arrays.append((values, trail))
        if values.dtype == object:
            self._push_elements(values.reshape(-1).tolist(), itertools.count(), trail)

    def _generator(self, generator: Any, trail: Trail) -> None:
        self.generators.append((generator, trail))
        if type(generator).__dictoffset__:
            self._attributes(generator, trail)

    def _dict(self, mapping: dict[Any, Any], trail: Trail) -> None:
        self.dicts.append(mapping)
        if mapping:
            self._push_elements(mapping.values(), mapping.keys(), trail)
            self._push_elements(mapping.keys(), itertools.repeat("key"), trail)
        if type(mapping) not in _PLAIN_DICTS:
            self._object(mapping, trail)

    def _list(self, elements: list[Any], trail: Trail) -> None:
        self.lists.append(elements)
        self._push_elements(elements, itertools.count(), trail)
        if type(elements) is not list:
            self._object(elements, trail)

    def _set_or_deque(self, elements: Any, trail: Trail) -> None:
        (self.sets if isinstance(elements, set) else self.deques).append(elements)
        self._push_elements(elements, itertools.count(), trail)
        if type(elements) not in (set, deque):
            self._object(elements, trail)

    def _constant(self, elements: Any, trail: Trail) -> None:
        values = elements.values() if isinstance(elements, types.MappingProxyType) else elements
        self._push_elements(values, itertools.count(), trail)
        if type(elements).__dictoffset__:
            self._attributes(elements, trail)

    def _object(self, part: Any, trail: Trail) -> None:
        if not self._enters(part):
            self.left.append((part, trail))
            return
        self.objects.append((part, trail))
        if type(part).__dictoffset__:
            self._attributes(part, trail)
        if names := slots_of(type(part)):
            self.slotted.append(part)
            self._push_items([(name, getattr(part, name)) for name in names if hasattr(part, name)], trail, True)

    def _attributes(self, part: Any, trail: Trail) -> None:
        attributes = object.__getattribute__(part, "__dict__")
        self.dicts.append(attributes)
        if isinstance(part, DataLoader):
            self.loaders.append(part)
        if hidden := {name for kind, name in self._not_followed if isinstance(part, kind)}:
            self._push_items([item for item in attributes.items() if item[0] not in hidden], trail, True)
        else:
            self._push_items(attributes.items(), trail, True)

    def _function(self, function: types.FunctionType, trail: Trail) -> None:
        is_hook = trail[0] is not None and str(trail[0][1]).endswith("_hooks")
        if is_hook or _of_library(function.__module__):  # what a hook records during a search must stay
            return
        self._globals(function)
        if function.__closure__ and function.__code__.co_freevars != ("__class__",):
            self.functions.append((function, trail))
            names = function.__code__.co_freevars
            for name, cell in zip(names, function.__closure__, strict=True):
                self._push(cell, (trail, name, True))
        for defaults in (function.__defaults__, function.__kwdefaults__):
            if defaults:
                self._push(defaults, (trail, "default", True))
        if function.__dict__:
            self._attributes(function, trail)

    def _cell(self, cell: types.CellType, trail: Trail) -> None:
        self.cells.append(cell)
        if (content := content_of(cell)) is not ABSENT:
            self._push(content, trail)

    def _method(self, method: Any, trail: Trail) -> None:
        """A bound method. The class may be written in C, as that of `random.Random(0).random`."""
        self._push(method.__self__, (trail, "__self__", True))
        if isinstance(method, types.MethodType):
            self._push(method.__func__, trail)

    def _partial(self, partial: functools.partial[Any], trail: Trail) -> None:
        for name in ("func", "args", "keywords"):
            self._push(getattr(partial, name), (trail, name, True))

    def _buffer(self, buffer: Any, trail: Trail) -> None:
        self.buffers.append(buffer)

    def _file(self, file: Any, trail: Trail) -> None:
        standard = (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)
        if not file.closed and not any(file is stream for stream in standard):
            self.uncovered.append((trail, f"an open file ({type(file).__name__})"))

    def _thread(self, thread: threading.Thread, trail: Trail) -> None:
        if thread.is_alive():
            self._uncovered(thread, trail)

    def _uncovered(self, part: Any, trail: Trail) -> None:
        self.uncovered.append((trail, f"a {type(part).__module__}.{type(part).__name__}".replace(" builtins.", " ")))

    def _class(self, kind: type) -> None:
        """Search the attributes of the program's own classes, and the generators that their methods use."""
        for base in kind.__mro__:
            if id(base) in self._seen or _of_library(base.__module__):
                continue
            self._seen[id(base)] = base
            self.classes.append(base)
            trail = (None, base.__qualname__, True)
            for name, value in list(vars(base).items()):
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if isinstance(function, types.FunctionType):
                    self._globals(function)
                    if not name.startswith("__") or name in _SEARCHED_METHODS:
                        self._push(function, (trail, name, True))
                elif not name.startswith("__") and not isinstance(value, types.MemberDescriptorType):
                    self._push(value, (trail, name, True))

    def _globals(self, function: types.FunctionType) -> None:
        """Search the random generators among the global variables that a function uses."""
        for name in _names_in(function.__code__):
            value = function.__globals__.get(name)
            if is_generator(value) or isinstance(value, random.SystemRandom):
                self._push(value, ((None, function.__module__, True), name, True))


# The method of `Walk` for instances of a class and its subclasses, None if they have no state. The first match counts.
_BY_BASE: tuple[tuple[Any, str | None], ...] = (
    ((type, enum.Enum, weakref.ref, weakref.WeakSet, weakref.WeakKeyDictionary), None),
    (weakref.WeakValueDictionary, None),
    (Tensor, "_tensor"),
    (np.ndarray, "_array"),
    (random.SystemRandom, "_uncovered"),
    ((torch.Generator, random.Random, np.random.Generator), "_generator"),
    ((np.random.RandomState, np.random.BitGenerator), "_generator"),
    (dict, "_dict"),
    (list, "_list"),
    ((set, deque), "_set_or_deque"),
    (tuple(ATOMS), None),
    ((tuple, frozenset, types.MappingProxyType), "_constant"),
    (types.FunctionType, "_function"),
    ((types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType), "_method"),
    (functools.partial, "_partial"),
    (types.CellType, "_cell"),
    ((bytearray, array.array, ctypes._SimpleCData, ctypes.Array, ctypes.Structure), "_buffer"),
    (io.IOBase, "_file"),
    ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), "_uncovered"),
    ((socket.socket, subprocess.Popen, _BaseDataLoaderIter, itertools.count), "_uncovered"),
    (threading.Thread, "_thread"),
)


@functools.lru_cache(maxsize=4096)
def _handler_name(kind: type) -> str | None:
    for base, handler in _BY_BASE:
        if issubclass(kind, base):
            return handler
    module = str(kind.__module__)
    if module.startswith(_NOT_RESTORABLE):
        return "_uncovered"
    if module.startswith(_NOT_ENTERED) and not module.startswith(_ENTERED):
        return None
    if _has_attributes(kind):
        return "_object"
    return "_uncovered" if hasattr(kind, "__next__") else None


def _has_attributes(kind: type) -> bool:
    return bool(kind.__dictoffset__) or any(slots_of(kind))


def name_of(trail: Trail) -> str:
    """The place of an object as a Python expression, such as `data.dataset.transforms[2].generator`."""
    parts: list[str] = []
    step: Any = trail
    while step is not None:
        holder, name, is_attribute = step
        if holder is not None and holder[1] in ("_modules", "_parameters", "_buffers"):  # attributes of a module
            holder, is_attribute = holder[0], True
        parts.append(str(name) if holder is None else f".{name}" if is_attribute else f"[{name!r}]")
        step = holder
    return "".join(reversed(parts))


def is_of_data(part: Any) -> bool:
    """Whether an object can be a part of a loader: it is no trainer, optimizer, scheduler or trainable model."""
    if isinstance(part, nn.Module):
        return not any(parameter.requires_grad for parameter in part.parameters())
    return not isinstance(part, (Optimizer, LRScheduler)) and not is_trainer(part)


def is_trainer(part: Any) -> bool:
    """Whether an object is a `Trainer`. This module can't import the class, so it compares the name of the module."""
    return any(base.__module__ == "mxtorch.trainer" for base in type(part).__mro__)


def bytes_of(value: Any) -> int:
    """The size of a tensor or an array in bytes; 0 for a sparse tensor, which is small, and for other objects."""
    if isinstance(value, Tensor):
        return value.nbytes if value.layout is torch.strided else 0
    return value.nbytes if isinstance(value, np.ndarray) else 0


def content_of(cell: types.CellType) -> Any:
    """The value of a variable of a closure; `ABSENT` if the variable has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def slots_of(kind: type) -> tuple[str, ...]:
    """The names in `__slots__` of a type and its bases, as the classes store them."""
    return _slots_of(kind)  # mypy does not let the callers pass a type to a cached function


@functools.cache
def _slots_of(kind: type) -> tuple[str, ...]:
    return tuple(
        name
        for base in kind.__mro__
        if "__slots__" in vars(base) and not _of_library(base.__module__)
        for name, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType)
    )


def is_plain_object(part: Any) -> bool:
    """Whether an object is an instance of a dataclass that its fields describe completely."""
    return dataclasses.is_dataclass(part) and not isinstance(part, (type, nn.Module, Dataset, Sampler))


@functools.cache
def _names_in(code: types.CodeType) -> frozenset[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*map(_names_in, inner))


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _is_data(value: Any, depth: int = 3) -> bool:
    """Whether a value consists of numbers, text, tensors and arrays."""
    kind = type(value)
    if kind in ATOMS or issubclass(kind, (Tensor, np.ndarray, np.generic, enum.Enum)):
        return True
    if depth == 0 or not issubclass(kind, (tuple, list, dict, set, frozenset)):
        return False
    elements = list(itertools.islice(value.values() if isinstance(value, dict) else value, LONG_CONTAINER))
    return all(_is_data(element, depth - 1) for element in elements)


def _root_of(trail: Trail) -> Trail:
    while trail[0] is not None:
        trail = trail[0]
    return trail
