"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import matplotlib.pyplot as plt
import pytest
import torch

import mxtorch
from mxtorch.init import registry

# Integrations import their libraries, which takes seconds; tests/integrations runs their examples.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(mxtorch.__path__, "mxtorch.")
    if not module.name.endswith("__main__") and not module.name.startswith("mxtorch.integrations.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for examples that write files
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))  # for those that register an initialiser
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    plt.close("all")
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) >= 5
