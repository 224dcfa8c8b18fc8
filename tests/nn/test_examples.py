"""The public names of mxtorch.nn and mxtorch.init have examples; tests/docs/test_docstrings.py runs them."""

import doctest
import importlib
import pkgutil

import mxtorch.init
import mxtorch.nn

PUBLIC = [getattr(package, name) for package in (mxtorch.nn, mxtorch.init) for name in package.__all__]
MODULES = [
    importlib.import_module(f"{package.__name__}.{module.name}")
    for package in (mxtorch.nn, mxtorch.init)
    for module in pkgutil.iter_modules(package.__path__)
]


def test_there_are_some():
    examples = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(examples) >= 20
    named = {test.name.rpartition(".")[2] for test in examples}
    assert named <= {getattr(public, "__name__", "") for public in PUBLIC}
