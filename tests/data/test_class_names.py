from __future__ import annotations

from types import SimpleNamespace

import pytest

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
def test_where_names_come_from(given, of_data, of_model, expected):
    data, model = SimpleNamespace(dataset=SimpleNamespace(classes=of_data)), SimpleNamespace(classes=of_model)
    assert class_names(given, data, model, 2) == expected
    assert class_names(["y", "z"], None, None, 2) == ("y", "z")


def test_a_wrong_number_of_names():
    with pytest.raises(ValueError, match="classes: got 3 names, but the model has 2 outputs"):
        class_names(["a", "b", "c"], None, None, 2)
