from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from mxtorch._structure import concatenate, describe, map_tensors, tensors_in, to_host
from mxtorch.engines import LocalEngine
from mxtorch.training.data import windows
from mxtorch.training.supervised import batch_size, split_batch


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


X, Y = torch.ones(3, 2), torch.zeros(3)


def test_taking_a_batch_apart():
    assert split_batch((X, Y)) == ((X,), {}, Y)
    assert split_batch([X, 5, Y]) == ((X, 5), {}, Y)
    assert split_batch(X) == ((X,), {}, None)
    assert split_batch((X,)) == ((X,), {}, None)
    for key in ("labels", "label", "targets", "target"):
        assert split_batch({"x": X, key: Y}) == ((), {"x": X}, Y)
    whole = {"x": X, "labels": Y}
    assert split_batch(whole, keep_labels=True) == ((), whole, Y)
    assert list(whole) == ["x", "labels"]


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((X, Y), 3),
        ({"a": "text", "b": [X]}, 3),
        (X, 3),
        (5, None),
        ((torch.tensor(1.0), X), 3),
        ([], None),
        (np.ones(4), None),
    ],
)
def test_size(batch, size):
    assert batch_size(batch) == size


def test_moving_keeps_structure():
    batch = (Pair(X, Y), {"a": [X, "text"]}, None)
    moved = map_tensors(lambda tensor: tensor.to("meta"), batch)
    assert isinstance(moved[0], Pair)
    assert moved[0].x.device.type == moved[1]["a"][0].device.type == "meta"
    assert moved[1]["a"][1:] == ["text"]


@dataclass
class Record:
    x: torch.Tensor
    inner: Any = None
    name: str = "cat"


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


class Moves:
    """As the batches of graph libraries."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Moves(self.x.to(device))


class MovesItself(Moves):
    def to(self, device):
        self.x = self.x.to(device)


class Encoding(UserDict):
    """As the BatchEncoding of transformers."""


PACKED = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
KINDS = {
    "a tensor": (X, lambda moved: [moved]),
    "a named tuple": (Pair(X, Y), lambda moved: [moved.x, moved.y]),
    "a packed sequence": (PACKED, lambda moved: [moved.data]),
    "packed, in a tuple": ((PACKED, Y), lambda moved: [moved[0].data, moved[1]]),
    "packed, in a dictionary": ({"a": [PACKED]}, lambda moved: [moved["a"][0].data]),
    "a data class": (Record(X), lambda moved: [moved.x]),
    "data classes in each other": (
        Record(X, Record(Y, [X])),
        lambda moved: [moved.x, moved.inner.x, moved.inner.inner[0]],
    ),
    "a frozen data class": ((Frozen(X), Y), lambda moved: [moved[0].x, moved[1]]),
    "an object that moves": (Moves(X), lambda moved: [moved.x]),
    "an object that moves itself": ([MovesItself(X)], lambda moved: [moved[0].x]),
    "a packed sequence in a data class": (Record(X, PACKED), lambda moved: [moved.x, moved.inner.data]),
    "another mapping": (Encoding(a=X), lambda moved: [moved["a"]]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_moves(kind):
    batch, tensors = KINDS[kind]
    engine = LocalEngine("cpu")
    engine.device, engine._moves = torch.device("meta"), True  # as on an accelerator
    moved = engine.move(batch)
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    if not isinstance(batch, Encoding):
        assert type(moved) is type(batch)
    assert X.device.type == "cpu"


def test_what_a_packed_sequence_keeps_on_the_host_stays():
    engine = LocalEngine("cpu")
    engine.device, engine._moves = torch.device("meta"), True
    assert engine.move((PACKED, Y))[0].batch_sizes.tolist() == [2, 1, 1]


def test_data_classes_are_structures():
    record = Record(X, {"y": Y})
    assert [id(tensor) for tensor in tensors_in(record)] == [id(X), id(Y)]
    assert batch_size(record) == 3
    assert describe(Frozen(X)) == "Frozen of (x=float32 tensor [3, 2])"
    detached = map_tensors(torch.Tensor.detach, Record(X.clone().requires_grad_()))
    assert not detached.x.requires_grad
    assert detached.name == "cat"


def test_to_the_host_and_joined():
    parts = [to_host({"logits": torch.ones(2, 3, dtype=torch.bfloat16), "loss": torch.tensor(1.0)})] * 2
    joined = concatenate(parts)
    assert joined["logits"].shape == (4, 3)
    assert joined["logits"].dtype == torch.float32
    assert joined["loss"].tolist() == [1.0, 1.0]
    assert concatenate([(X, "a"), (X, "b")])[1] == ["a", "b"]
    assert isinstance(concatenate([Pair(X, Y), Pair(X, Y)]), Pair)


def test_windows_know_their_samples():
    data = [(torch.ones(size, 1), torch.ones(size)) for size in (4, 4, 4, 4, 2)]
    found = list(windows(data, 2))
    assert [window.sizes for window in found] == [[4, 4], [4, 4], [2]]
    assert [window.samples for window in found] == [8, 8, 2]
    assert found[2].batches == [data[4]]
    assert not list(windows([], 3))


def test_in_words():
    batch = ({"a": torch.ones(2, 3)}, [torch.ones(2, dtype=torch.int64), "x"])
    words = "tuple of (dict of {'a': float32 tensor [2, 3]}, list of (int64 tensor [2], str))"
    assert describe(batch) == words
