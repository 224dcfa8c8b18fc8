from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "model_zoo.grouping",
    "mxtorch.callbacks.freezing",
    "mxtorch.fine_tuning.feature_cache",
    "mxtorch.fine_tuning.grouping",
    "mxtorch.fine_tuning.recipe",
    "mxtorch.fine_tuning.split_point",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
