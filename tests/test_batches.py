from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from mxtorch import batches


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


X, Y = torch.ones(3, 2), torch.zeros(3)


def test_taking_a_batch_apart():
    assert batches.split_batch((X, Y)) == ((X,), {}, Y)
    assert batches.split_batch([X, 5, Y]) == ((X, 5), {}, Y)
    assert batches.split_batch(X) == ((X,), {}, None)
    assert batches.split_batch((X,)) == ((X,), {}, None)
    for key in ("labels", "label", "targets", "target"):
        assert batches.split_batch({"x": X, key: Y}) == ((), {"x": X}, Y)
    whole = {"x": X, "labels": Y}
    assert batches.split_batch(whole, keep_labels=True) == ((), whole, Y)
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
    assert batches.batch_size(batch) == size


def test_moving_keeps_structure():
    batch = (Pair(X, Y), {"a": [X, "text"]}, None)
    moved = batches.move(batch, torch.device("meta"))
    assert isinstance(moved[0], Pair)
    assert moved[0].x.device.type == moved[1]["a"][0].device.type == "meta"
    assert moved[1]["a"][1:] == ["text"]
    images = torch.ones(2, 3, 4, 4)
    moved = batches.move({"images": images, "rows": X}, torch.device("cpu"), torch.channels_last)
    assert moved["images"].is_contiguous(memory_format=torch.channels_last)
    assert moved["rows"] is X


def test_to_the_host_and_joined():
    parts = [batches.to_host({"logits": torch.ones(2, 3, dtype=torch.bfloat16), "loss": torch.tensor(1.0)})] * 2
    joined = batches.concatenate(parts)
    assert joined["logits"].shape == (4, 3)
    assert joined["logits"].dtype == torch.float32
    assert joined["loss"].tolist() == [1.0, 1.0]
    assert batches.concatenate([(X, "a"), (X, "b")])[1] == ["a", "b"]
    assert isinstance(batches.concatenate([Pair(X, Y), Pair(X, Y)]), Pair)


def test_windows_know_their_samples():
    data = [(torch.ones(size, 1), torch.ones(size)) for size in (4, 4, 4, 4, 2)]
    windows = list(batches.windows(data, 2))
    assert [window.sizes for window in windows] == [[4, 4], [4, 4], [2]]
    assert [window.samples for window in windows] == [8, 8, 2]
    assert windows[2].batches == [data[4]]
    assert not list(batches.windows([], 3))


def test_in_words():
    batch = ({"a": torch.ones(2, 3)}, [torch.ones(2, dtype=torch.int64), "x"])
    words = "tuple of (dict of {'a': float32 tensor [2, 3]}, list of (int64 tensor [2], str))"
    assert batches.describe(batch) == words
