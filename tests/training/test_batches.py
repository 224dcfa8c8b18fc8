from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from mxtorch._structure import concatenate, describe, map_tensors, to_host
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
