"""Parts that trainings are composed of, with state in all kinds of places: samplers, data sets, modules, losses."""

from __future__ import annotations

import array
import ctypes
import functools
import multiprocessing
import random
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, random_split

# ---- random numbers: an object with `draw() -> float`, by the kind of generator


def drawing(kind, seed=5):
    """A function that draws a float in [0, 1) from a generator of that kind."""
    if kind == "python global":
        return random.random
    if kind == "numpy global":
        return np.random.rand
    if kind == "torch global":
        return lambda: float(torch.rand(()))
    if kind == "python":
        return random.Random(seed).random
    if kind == "torch":
        generator = torch.Generator().manual_seed(seed)
        return lambda: float(torch.rand((), generator=generator))
    if kind == "RandomState":
        return np.random.RandomState(seed).rand
    generator = np.random.Generator(getattr(np.random, kind)(seed))
    return lambda: float(generator.random())


RANDOM = (
    *("python global", "numpy global", "torch global", "python", "torch", "RandomState"),
    *("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"),
)


class Slotted:
    __slots__ = ("count", "draw")

    def __init__(self, draw):
        self.draw, self.count = draw, 0

    def __call__(self):
        self.count += 1
        return self.draw() + self.count / 1000


@dataclass(eq=False)
class Recorded:
    draw: object
    seen: list = field(default_factory=list)

    def __call__(self):
        self.seen.append(self.draw())
        return self.seen[-1] + len(self.seen) / 1000


class Remembers:
    def __init__(self, draw):
        self.draw = draw
        self.history = {"last": deque([0.0], maxlen=3), "counts": Counter(), "all": {0.0}}

    def __call__(self):
        value = self.draw()
        self.history["last"].append(value)
        self.history["counts"][round(value)] += 1
        self.history["all"].add(round(value, 2))
        return value + sum(self.history["last"]) + self.history["counts"][1] + len(self.history["all"])

    def method(self):
        return self()


def closure(draw):
    count, kept = 0, [0.0]

    def call():
        nonlocal count
        count += 1
        kept[0] += draw()
        return kept[0] + count

    return call


def default_argument(draw):
    def call(kept=[0.0]):  # noqa: B006
        kept.append(draw())
        return sum(kept)

    return call


def shared_memory(draw):
    count, values, raw = multiprocessing.Value("i", 0), array.array("d", [0.0]), bytearray(1)
    number = ctypes.c_double(0)

    def call():
        count.value += 1
        values[0] += 0.5
        raw[0] = (raw[0] + 1) % 256
        number.value += 1
        return draw() + count.value + values[0] + raw[0] + number.value

    return call


def object_array(draw):
    holder = np.array([draw, [0]], dtype=object)

    def call():
        holder[1][0] += 1
        return holder[0]() + holder[1][0]

    return call


WRAPPED = {
    "bare": lambda draw: draw,
    "slots": Slotted,
    "dataclass": Recorded,
    "object": Remembers,
    "bound method": lambda draw: Remembers(draw).method,
    "closure": closure,
    "default argument": default_argument,
    "partial": lambda draw: functools.partial(closure(draw)),
    "lambda": lambda draw: lambda: draw() * 2,
    "shared memory": shared_memory,
    "object array": object_array,
}


def nested(kinds, draw):
    """Wrapped again and again: how deep does not matter."""
    for kind in kinds:
        draw = WRAPPED[kind](draw)
    return draw


class InAttributes:
    """Further hiding places on the way to something that draws."""

    def __init__(self, draw, place):
        self.place = place
        self.held = {
            "list": [[draw]],
            "tuple": ((draw,),),
            "dict": {"a": {1: draw}},
            "namespace": SimpleNamespace(inner=SimpleNamespace(draw=draw)),
            "key": {draw: 1},
        }[place]

    def __call__(self):
        held = self.held
        if self.place == "namespace":
            return held.inner.draw()
        if self.place == "key":
            return next(iter(held))()
        return held["a"][1]() if self.place == "dict" else held[0][0]()


PLACES = ("list", "tuple", "dict", "namespace", "key")

# ---- samplers


class ShufflesInPlace(Sampler):
    def __init__(self, count, draw, kind):
        self.kind = kind
        self.draw = draw
        self.epoch = 0
        self.indices = {
            "list": lambda: list(range(count)),
            "long list": lambda: list(range(5000)),
            "deque": lambda: deque(range(count)),
            "array": lambda: np.arange(count),
            "tensor": lambda: torch.arange(count),
            "array module": lambda: array.array("l", range(count)),
            "list of tuples": lambda: [(index,) for index in range(2000)],
        }[kind]()
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        self.epoch += 1
        size = len(self.indices)
        for _ in range(5):
            a, b = int(self.draw() * 997) % size, int(self.draw() * 1009) % size
            first, second = self.indices[a], self.indices[b]
            if self.kind == "tensor":
                first, second = int(first), int(second)
            self.indices[a], self.indices[b] = second, first
        if self.kind == "deque":
            self.indices.rotate(self.epoch)
        taken = [one[0] if isinstance(one, tuple) else int(one) for one in self.indices]
        return iter([one for one in taken if one < self.count])


class Lazy(Sampler):
    def __init__(self, count, draw):
        self.count, self.draw = count, draw

    def __len__(self):
        return self.count

    def __iter__(self):
        for _ in range(self.count):
            yield int(self.draw() * 997) % self.count


class Growing(Sampler):
    """A batch sampler whose batches grow, by a counter on its class."""

    begun = 0

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count // 4

    def __iter__(self):
        type(self).begun += 1
        size = 2 + type(self).begun % 3
        return iter([[(i + k) % self.count for k in range(size)] for i in range(0, self.count, 4)])


SAMPLERS = (
    *("torch", "sequential", "torch with a generator", "lazy", "growing"),
    *("list", "long list", "deque", "array", "tensor", "array module", "list of tuples"),
)

# ---- data sets


class Augmented(Dataset):
    def __init__(self, draw, cached=False):
        self.inputs = torch.arange(32 * 6, dtype=torch.float32).reshape(32, 6).sin()
        self.draw, self.cache, self.taken = draw, {} if cached else None, 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.taken += 1
        if self.cache is not None:
            if index not in self.cache:
                self.cache[index] = self.draw()
            noise = self.cache[index]
        else:
            noise = self.draw() % 1 + self.taken / 1000
        return self.inputs[index] + 0.01 * (float(noise) % 1), int(self.inputs[index].sum() > 0)


class WritesItself(Augmented):
    """Its inputs drift as they are read, in place."""

    def __getitem__(self, index):
        self.inputs[index] *= 1.01
        return super().__getitem__(index)


class InAList(list):
    """A data set that is a list, with a transform."""

    draw = None

    def __getitem__(self, index):
        assert not isinstance(index, slice), "data sets are not sliced"
        inputs, label = super().__getitem__(index)
        return inputs + 0.01 * (float(self.draw()) % 1), label


class Endless(IterableDataset):
    def __init__(self, draw):
        self.draw, self.place = draw, 0

    def __iter__(self):
        for _ in range(32):
            self.place += 1
            yield torch.full((6,), float(self.place)).sin() + 0.01 * (float(self.draw()) % 1), self.place % 2


def in_a_list(draw):
    data = InAList((torch.full((6,), float(k)).sin(), k % 2) for k in range(32))
    data.draw = draw
    return data


DATA = {
    "augmented": Augmented,
    "cached": lambda draw: Augmented(draw, cached=True),
    "writes itself": WritesItself,
    "list": in_a_list,
    "split": lambda draw: random_split(Augmented(draw), [24, 8], torch.Generator().manual_seed(1))[0],
    "deep": lambda draw: functools.reduce(lambda data, _: Subset(data, range(len(data))), range(9), Augmented(draw)),
    "endless": Endless,
    "batches": lambda draw: [Augmented(draw)[0] and (torch.randn(4, 6), torch.arange(4) % 2) for _ in range(8)],
}


class Wrapper:
    """A loader around a loader, with a counter."""

    def __init__(self, loader, draw):
        self.loader, self.draw, self.epoch = loader, draw, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.epoch += 1
        for inputs, labels in self.loader:
            yield inputs + 0.01 * (float(self.draw()) % 1) + self.epoch / 100, labels


def loader_of(data, sampler, draw, wrapped):
    made = DATA[data](draw)
    if data == "batches":
        loader = made
    elif data == "endless" or sampler == "sequential":
        loader = DataLoader(made, 4)
    elif sampler == "torch":
        loader = DataLoader(made, 4, shuffle=True)
    elif sampler == "torch with a generator":
        loader = DataLoader(made, 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    elif sampler == "lazy":
        loader = DataLoader(made, 4, sampler=Lazy(len(made), draw))
    elif sampler == "growing":
        loader = DataLoader(made, batch_sampler=Growing(len(made)))
    else:
        loader = DataLoader(made, 4, sampler=ShufflesInPlace(len(made), draw, sampler))
    return Wrapper(loader, draw) if wrapped else loader


# ---- modules


class Stateful(nn.Module):
    """One more thing that a step changes, in a place of its kind."""

    def __init__(self, kind, draw):
        super().__init__()
        self.kind, self.draw = kind, draw
        self.inner = nn.Linear(6, 6)
        if kind == "tuple of tensors":
            self.lstm, self.state = nn.LSTM(6, 6), None
            self.state = (torch.zeros(1, 6), torch.zeros(1, 6))
        elif kind == "teacher in a list":
            self.teachers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))]
        elif kind == "teacher in a dict":
            self.teachers = {"deep": {"a": (nn.Linear(6, 6), nn.BatchNorm1d(6))}}
        elif kind == "many buffers":
            for index in range(100):
                self.register_buffer(f"b{index}", torch.zeros(1))
            self.many = [torch.zeros(1) for _ in range(100)]
        elif kind == "ordered":
            self.order = OrderedDict((key, float(key)) for key in range(5))
        elif kind == "helper":
            self.helper = SimpleNamespace(count=0, inner=SimpleNamespace(values=[0.0], mean=np.zeros(6)))
        elif kind == "expanded":
            self.register_buffer("gain", torch.ones(1).expand(6))
        elif kind == "inference":
            with torch.inference_mode():
                self.register_buffer("gain", torch.ones(6))
        elif kind == "frozen":
            self.extra = nn.Parameter(torch.zeros(6))
            self.extra.grad = torch.ones(6)
        elif kind == "closure":
            self.activation = closure(draw)
        elif kind == "switches":
            self.other = nn.Linear(6, 6)
        elif kind == "attribute of a parameter":
            self.inner.weight.count = [0]
        elif kind == "made in forward":
            pass
        elif kind == "sparse":
            self.sparse = torch.eye(6).to_sparse()

    def forward(self, x):
        y = self.inner(x)
        with torch.no_grad():
            extra = self.change(x) if self.training else 0.0
        return y + (self.extra if self.kind == "frozen" else 0.0) + 0.01 * (extra % 1)

    def change(self, x):
        kind = self.kind
        if kind == "tuple of tensors":
            self.state[0].add_(x.mean())
            self.state = (self.state[0] + 1, self.state[1] + 0.5)
            return float(self.state[0].mean())
        if kind.startswith("teacher"):
            teacher = self.teachers[0] if kind.endswith("list") else nn.Sequential(*self.teachers["deep"]["a"])
            teacher[0].weight.mul_(0.9).add_(self.inner.weight, alpha=0.1)
            return float(teacher(x).mean() + teacher[1].running_mean.sum())
        if kind == "many buffers":
            self.b99.add_(1)
            self.many[90].add_(1)
            return float(self.b99 + self.many[90])
        if kind == "ordered":
            self.order.move_to_end(next(iter(self.order)))
            return next(iter(self.order.values()))
        if kind == "helper":
            self.helper.count += 1
            self.helper.inner.values.append(float(self.helper.count))
            self.helper.inner.mean += 1
            return sum(self.helper.inner.values[-3:]) + float(self.helper.inner.mean.sum())
        if kind == "expanded":
            self.gain[:1].add_(1)
            return float(self.gain[0])
        if kind == "inference":
            with torch.inference_mode():
                self.gain.add_(1)
            return float(self.gain.sum())
        if kind == "closure":
            return float(self.activation())
        if kind == "switches":
            self.inner.bias.requires_grad_(not self.inner.bias.requires_grad)
            self.inner, self.other = self.other, self.inner
            return 0.0
        if kind == "attribute of a parameter":
            self.inner.weight.count[0] += 1
            return float(self.inner.weight.count[0])
        if kind == "made in forward":
            self.made = getattr(self, "made", 0) + 1
            return float(self.made)
        if kind == "sparse":
            self.sparse = self.sparse * 1.1
            return float(self.sparse.to_dense().sum())
        return float(self.draw())


MODULES = (
    *("plain", "tuple of tensors", "teacher in a list", "teacher in a dict", "many buffers", "ordered", "helper"),
    *("expanded", "inference", "frozen", "closure", "switches", "attribute of a parameter", "made in forward"),
    *("sparse",),
)


# ---- losses


def loss_of(kind, draw):
    cross_entropy = nn.CrossEntropyLoss()
    if kind == "module":
        return cross_entropy
    if kind == "closure":
        weight = closure(draw)
        return lambda outputs, targets: cross_entropy(outputs, targets) * (1 + 0.1 * (float(weight()) % 1))
    if kind == "partial":

        def weighted(draw, outputs, targets):
            return cross_entropy(outputs, targets) * (1 + 0.1 * (float(draw()) % 1))

        return functools.partial(weighted, nested(["object", "slots"], draw))

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = [Recorded(draw)]

        def forward(self, outputs, targets):
            return cross_entropy(outputs, targets) * (1 + 0.1 * (float(self.kept[0]()) % 1))

    return Loss()


LOSSES = ("module", "closure", "partial", "module with state")
