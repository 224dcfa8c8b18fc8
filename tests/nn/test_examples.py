"""The examples in the docstrings of mxtorch.nn and mxtorch.init run and print what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import mxtorch.init
import mxtorch.nn
from mxtorch.init import registry

PUBLIC = [getattr(package, name) for package in (mxtorch.nn, mxtorch.init) for name in package.__all__]
MODULES = [
    importlib.import_module(f"{package.__name__}.{module.name}")
    for package in (mxtorch.nn, mxtorch.init)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module, monkeypatch):
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    torch.manual_seed(0)
    assert doctest.testmod(module).failed == 0


def test_there_are_some():
    examples = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(examples) >= 20
    named = {test.name.rpartition(".")[2] for test in examples}
    assert named <= {getattr(public, "__name__", "") for public in PUBLIC}
