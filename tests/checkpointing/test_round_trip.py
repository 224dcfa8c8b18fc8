"""A checkpoint restores an attribute of a module of any kind, or saving is refused with the name of the attribute."""

from __future__ import annotations

import array
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import random
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mxtorch.checkpointing.serialization import Attributes, frozen

Point = namedtuple("Point", "x y")


class Phase(enum.Enum):
    WARM = 1
    COLD = "cold"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Record:
    name: str
    values: list = field(default_factory=list)
    rate: torch.Tensor | None = None


@dataclass(frozen=True)
class Constant:
    x: int
    y: tuple


@dataclass
class Slim:
    __slots__ = ("count", "names")
    count: int
    names: list


class Helper:
    def __init__(self, **values):
        vars(self).update(values)


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, first, second):
        self.first, self.second = first, second


integers = st.integers(-(2**70), 2**70)
floats = st.floats(allow_nan=False)
text = st.text(max_size=5)
hashables = st.one_of(
    st.none(), st.booleans(), integers, floats, text, st.binary(max_size=5), st.tuples(integers, text)
)


def arrays(kind):
    return st.lists(st.integers(0, 100), max_size=4).map(lambda values: np.array(values).astype(kind))


def tensors(kind):
    return st.lists(st.integers(0, 100), max_size=4).map(lambda values: torch.tensor(values).to(kind))


KINDS = {
    "none": st.none(),
    "bool": st.booleans(),
    "int": integers,
    "float": floats,
    "complex": st.complex_numbers(allow_nan=False),
    "str": text,
    "bytes": st.binary(max_size=9),
    "bytearray": st.binary(max_size=9).map(bytearray),
    "Ellipsis": st.just(...),
    "range": st.builds(range, st.integers(0, 9), st.integers(9, 20), st.integers(1, 3)),
    "slice": st.builds(slice, st.integers(0, 9), st.integers(9, 20)),
    "Size": st.lists(st.integers(0, 9), max_size=4).map(torch.Size),
    "dtype": st.sampled_from([torch.float32, torch.int8, torch.bfloat16, torch.complex64]),
    "device": st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)]),
    "path": text.filter(lambda one: "\0" not in one).map(pathlib.Path),
    "pure path": st.just(pathlib.PurePosixPath("a/b")),
    "Windows path": st.just(pathlib.PureWindowsPath("C:/b")),
    "Decimal": st.decimals(allow_nan=False),
    "Fraction": st.fractions(),
    "UUID": st.uuids(),
    "datetime": st.datetimes(timezones=st.just(datetime.timezone.utc)),
    "date": st.dates(),
    "time": st.times(),
    "timedelta": st.timedeltas(),
    "enum": st.sampled_from(Phase),
    "int enum": st.sampled_from(Level),
    "named tuple": st.builds(Point, integers, st.lists(text, max_size=2)),
    "dataclass": st.builds(Record, text, st.lists(integers, max_size=3), st.none() | tensors(torch.float32)),
    "frozen dataclass": st.builds(Constant, st.integers(), st.tuples(text, floats)),
    "dataclass with slots": st.builds(Slim, st.integers(), st.lists(text, max_size=2)),
    "list": st.lists(hashables, max_size=4),
    "tuple": st.tuples(hashables, st.lists(integers, max_size=2)),
    "set": st.sets(hashables, max_size=4),
    "frozenset": st.frozensets(hashables, max_size=4),
    "deque": st.builds(deque, st.lists(hashables, max_size=4), st.sampled_from([None, 5])),
    "dict": st.dictionaries(text, hashables, max_size=4),
    "dict with tuple keys": st.dictionaries(st.tuples(st.integers(), text), st.lists(floats, max_size=2), max_size=4),
    "dict with mixed keys": st.dictionaries(
        hashables | st.just(Phase.WARM) | st.just(Point(1, 2)), hashables, max_size=4
    ),
    "OrderedDict": st.permutations(list("abc")).map(lambda keys: OrderedDict((key, 1) for key in keys)),
    "ordered dict in a dict": st.permutations(list("abc")).map(lambda keys: {"inner": {key: [1] for key in keys}}),
    "Counter": text.map(Counter),
    "defaultdict": st.dictionaries(text, integers, max_size=3).map(lambda items: defaultdict(int, items)),
    "defaultdict of lists": st.just(defaultdict(list, a=[1, {"b": {2}}])),
    "nested": st.recursive(
        hashables, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
    ),
    "tuples of tensors": st.tuples(tensors(torch.float32), st.tuples(tensors(torch.int64))),
    "dict of tensors": st.dictionaries(text, tensors(torch.float32), max_size=3),
    "object array": st.just(np.array([1, "a", None, (2, 3)], dtype=object)),
    "text array": st.just(np.array(["ab", "c"])),
    "date array": st.just(np.array(["2020-01-02"], dtype="datetime64[D]")),
    "wide array": st.just(np.arange(12.0).reshape(3, 4)),
    "big-endian array": st.just(np.arange(3, dtype=">i4")),
    "scalar text": st.just(np.str_("ab")),
    "scalar date": st.just(np.datetime64("2020-01-02")),
    "sparse tensor": st.just(torch.eye(3).to_sparse()),
    "Parameter": tensors(torch.float32).map(lambda one: [nn.Parameter(one)]),
    "generator": st.integers(0, 9).map(lambda seed: torch.Generator().manual_seed(seed)),
    "Random": st.integers(0, 9).map(random.Random),
    "RandomState": st.integers(0, 9).map(np.random.RandomState),
}
for _kind in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
    KINDS[f"array {_kind}"] = arrays(_kind)
    KINDS[f"scalar {_kind}"] = st.integers(0, 1).map(np.dtype(_kind).type)
for _kind in ("float16", "float32", "float64", "complex64", "complex128"):
    KINDS[f"array {_kind}"] = arrays(_kind)
    KINDS[f"scalar {_kind}"] = st.integers(0, 9).map(np.dtype(_kind).type)
for _kind in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64):
    KINDS[f"tensor {_kind}"] = tensors(_kind)
for _kind in ("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"):
    _bits = getattr(np.random, _kind)
    KINDS[f"bits {_kind}"] = st.integers(0, 9).map(_bits)
    KINDS[f"generator {_kind}"] = st.integers(0, 9).map(lambda seed, bits=_bits: np.random.Generator(bits(seed)))


def equal(a, b):
    """Whether two values have the same type and content, and the same order if they have one."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and all(map(equal, a.ravel().tolist(), b.ravel().tolist()))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(equal, a.keys(), b.keys())) and all(map(equal, a.values(), b.values()))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0) and all(map(equal, a, b))
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, random.Random):
        return a.getstate() == b.getstate()
    if isinstance(a, np.random.RandomState):
        return a.rand(5).tolist() == b.rand(5).tolist()
    if isinstance(a, np.random.BitGenerator):
        return a.random_raw(9).tolist() == b.random_raw(9).tolist()
    if isinstance(a, np.random.Generator):
        return a.random(5).tolist() == b.random(5).tolist()
    if isinstance(a, Record):
        return equal(vars(a), vars(b))
    if isinstance(a, (Helper, Slotted)):
        return all(equal(getattr(a, name), getattr(b, name)) for name in (getattr(a, "__slots__", None) or vars(a)))
    return a == b


def through_a_file(content):
    file = io.BytesIO()
    torch.save(frozen(content, "attributes"), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def written_and_read(make, change):
    """A new module from `make`, as in a new process, after it has loaded the state of a changed module."""
    module, new = make(), make()
    attributes, others = Attributes({"model": module}), Attributes({"model": new})
    change(module)
    others.load_state_dict(through_a_file(attributes.state_dict()))
    return module, new


def module_with(value):
    module = nn.Linear(1, 1)
    module.kept = value
    return module


@pytest.mark.filterwarnings(
    "ignore:Validating sparse tensor invariants"
)  # torch warns for each file with a sparse tensor
@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_of_every_kind(kind):
    """The attribute is first made in `forward`, and then changed to another value."""

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(KINDS[kind])
    def check(value):
        for make in (lambda: nn.Linear(1, 1), lambda: module_with(None), lambda: module_with([1])):
            module, new = written_and_read(make, lambda module: setattr(module, "kept", value))
            assert equal(new.kept, module.kept)

    check()


def test_there_are_many_kinds():
    assert len(KINDS) >= 60


def changed_order(module):
    module.kept.move_to_end("a")


def changed_in_place(module):
    module.kept.values.append(3)
    module.kept.inner.count += 1


HELD = {
    "order": (lambda: module_with(OrderedDict(a=1, b=2)), changed_order),
    "plain dict order": (lambda: module_with({"a": 1, "b": 2}), lambda m: m.kept.update(a=m.kept.pop("a"))),
    "helper": (lambda: module_with(Helper(values=[1], inner=Helper(count=0))), changed_in_place),
    "slots": (lambda: module_with(Slotted(1, [2])), lambda m: m.kept.second.append(5)),
    "bool to int": (lambda: module_with(True), lambda m: setattr(m, "kept", 1)),
    "module in a list": (lambda: module_with([nn.Linear(2, 2)]), lambda m: nn.init.zeros_(m.kept[0].weight)),
    "batch norm in a dict": (
        lambda: module_with({"a": (nn.BatchNorm1d(2),)}),
        lambda m: m.kept["a"][0](torch.arange(6.0).reshape(3, 2)),
    ),
    "counter of a module in a list": (
        lambda: module_with([module_with(0)]),
        lambda m: setattr(m.kept[0], "kept", 4),
    ),
    "modules change places": (lambda: module_with([nn.Linear(1, 1), nn.ReLU()]), lambda m: m.kept.reverse()),
    "itself": (lambda: module_with({}), lambda m: m.kept.update(me=m.kept)),
}


@pytest.mark.parametrize("kind", HELD)
def test_attributes_of_objects(kind):
    make, change = HELD[kind]

    def seeded():
        torch.manual_seed(len(kind))
        return make()

    module, new = written_and_read(seeded, change)
    first, second = Attributes({"model": module}), Attributes({"model": new})
    assert through_a_file(first.state_dict()).keys() == through_a_file(second.state_dict()).keys()
    kept, read = module.kept, new.kept
    if kind == "itself":
        assert read["me"] is read
    elif kind == "helper":
        assert (read.values, read.inner.count) == ([1, 3], 1)
    elif "module" in kind or "batch" in kind:
        for a, b in zip(modules_in(kept), modules_in(read), strict=True):
            assert type(a) is type(b)
            assert getattr(a, "kept", 0) == getattr(b, "kept", 0)
            assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    else:
        assert equal(kept, read)


def modules_in(value):
    return list(value) if isinstance(value, list) else list(value["a"])


def test_buffers_that_are_not_persistent():
    def make():
        module = nn.Module()
        module.register_buffer("mean", torch.zeros(2), persistent=False)
        return module

    module, new = written_and_read(make, lambda module: module.mean.add_(1))
    assert new.mean.tolist() == module.mean.tolist() == [1, 1]
    assert "mean" in new._buffers


def test_variables_of_closures():
    def make():
        count = 0

        def activation(x):
            nonlocal count
            count += 1
            return x + count

        return module_with(activation)

    module, new = written_and_read(make, lambda module: [module.kept(0) for _ in range(3)])
    assert new.kept(0) == module.kept(0) == 4


class OwnList(list):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Helper(a=1),
        (one for one in ()),
        io.BytesIO(),
        object(),
        lambda: 1,
        nn.Linear(1, 1).forward,
        np.zeros(2, dtype=[("a", "i4")]),
        OwnList(),
        [Helper(a=1)],
        {"a": {"b": object()}},
        iter([1]),
        array.array("d", [1.0]),
        memoryview(b"a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_attribute_that_can_not_be_restored_is_refused_by_name(value):
    module = nn.Sequential(nn.Linear(1, 1))
    attributes = Attributes({"model": module})
    module[0].cache = value
    with pytest.raises(TypeError, match=r"model\.0\.cache"):
        attributes.state_dict()


def test_an_unchanged_object_of_the_program_does_not_prevent_saving():
    module = module_with([Helper(a=1), io.BytesIO(), lambda: 1, object(), OwnList([1])])
    assert Attributes({"model": module}).state_dict() == {}


def test_a_local_type_defined_later_is_refused():
    class Local(enum.Enum):
        ONE = 1

    module = nn.Linear(1, 1)
    attributes = Attributes({"model": module})
    module.kept = Local.ONE
    with pytest.raises(TypeError, match=r"model\.kept is a .*Local.*outside of functions"):
        attributes.state_dict()


def test_values_of_callbacks_are_read_back():
    content = {
        "size": torch.Size([1, 2]), "complex": 1j, "scalar": np.float32(1.5), "bytes": b"a", "set": {1},
        ("a", 1): np.arange(3), "decimals": [decimal.Decimal("0.1")][:0], "ordered": OrderedDict(b=1, a=2),
    }  # fmt: skip
    read = through_a_file(content)
    assert read["size"] == (1, 2)
    assert read["complex"] == 1j
    assert read["scalar"] == 1.5
    assert list(read["ordered"]) == ["b", "a"]
    assert read[("a", 1)].tolist() == [0, 1, 2]
    for value in (Point(1, 2), uuid.uuid4(), fractions.Fraction(1, 2), range(3), frozenset([1]), np.datetime64("2020")):
        with pytest.raises(TypeError, match=r"attributes\['a'\] is a"):
            frozen({"a": value}, "attributes")
