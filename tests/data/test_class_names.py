from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split

from mxtorch.data.class_names import class_names


@pytest.mark.parametrize(
    ("given", "of_data", "of_model", "expected"),
    [
        (["a", "b"], ["c", "d"], ["e", "f"], ("a", "b")),
        (None, ["c", "d"], ["e", "f"], ("c", "d")),
        (None, ["c", "d", "x"], ["e", "f"], ("e", "f")),
        (None, None, [1, 2], ("1", "2")),
        (None, None, None, ()),
        (None, ["c"], ["e"], ()),
    ],
)
def test_sources_of_names(given, of_data, of_model, expected):
    data, model = SimpleNamespace(dataset=SimpleNamespace(classes=of_data)), SimpleNamespace(classes=of_model)
    assert class_names(given, data, model, 2) == expected
    assert class_names(["y", "z"], None, None, 2) == ("y", "z")


def test_a_wrong_number_of_names():
    with pytest.raises(ValueError, match="classes: got 3 names, but the model has 2 outputs"):
        class_names(["a", "b", "c"], None, None, 2)


class Named(TensorDataset):
    def __init__(self, *names):
        super().__init__(torch.zeros(4, 1))
        self.classes = names


class Wrapper(TensorDataset):
    def __init__(self, dataset):
        super().__init__(torch.zeros(4, 1))
        self.dataset = dataset


WRAPPERS = {
    "random_split": lambda data: random_split(data, [2, 2])[0],
    "subset": lambda data: Subset(data, [0]),
    "subset of a subset": lambda data: Subset(Subset(data, [0, 1]), [1]),
    "concatenation": lambda data: ConcatDataset([data, Subset(data, [1])]),
    "subset of a concatenation": lambda data: Subset(ConcatDataset([data, data]), [1]),
    "a wrapper of one's own": Wrapper,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_names_are_found_inside_other_data_sets(kind):
    loader = DataLoader(WRAPPERS[kind](Named("cat", "dog")))
    assert class_names(None, loader, None, 2) == ("cat", "dog")
    assert class_names(None, loader, None, 3) == ()


def test_data_sets_with_different_names_have_no_names():
    for other in (Named("dog", "cat"), TensorDataset(torch.zeros(4, 1))):
        assert class_names(None, DataLoader(ConcatDataset([Named("cat", "dog"), other])), None, 2) == ()


@pytest.mark.parametrize("source", ["given", "data", "model"])
def test_one_name_for_two_classes_is_refused(source):
    sources = {"given": None, "data": None, "model": None} | {source: Named("cat", "dog", "cat")}
    given = None if sources["given"] is None else sources["given"].classes
    loader = None if sources["data"] is None else DataLoader(sources["data"])
    with pytest.raises(ValueError, match="classes: got 'cat' for 2 classes"):
        class_names(given, loader, sources["model"], 3)
