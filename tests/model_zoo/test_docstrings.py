"""The examples in docstrings run without a connection and give the shown results."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import model_zoo

MODULES = [found.name for found in pkgutil.walk_packages(model_zoo.__path__, "model_zoo.")]


@pytest.mark.parametrize("name", ["model_zoo", *(name for name in MODULES if not name.endswith("__main__"))])
def test_examples(name, monkeypatch):
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name", ["create", "features", "fuse", "imagenet_classes", "info", "list_models", "preprocess", "taps"]
)
def test_public_functions_have_examples(name):
    assert ">>> " in getattr(model_zoo, name).__doc__
