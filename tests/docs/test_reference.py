"""The reference has every public name, and most of them have an example that is run."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys

import pytest
from blocks import ROOT

import mxtorch

sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
import reference_index

ROOMS = [
    f"mxtorch.{module.name}"
    for module in pkgutil.iter_modules(mxtorch.__path__)
    if not module.name.startswith("_") and hasattr(importlib.import_module(f"mxtorch.{module.name}"), "__all__")
]


def public():
    """Every public function and class by its name, but for the functions of models, which are one with 62 names."""
    models = set(mxtorch.model_zoo.list_models())
    found = {}
    for room in ["mxtorch", *ROOMS]:
        module = importlib.import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            if name in models:
                continue
            if (inspect.isclass(value) or inspect.isfunction(value)) and "<locals>" not in value.__qualname__:
                found[id(value)] = (f"{room}.{name}", value)
    return dict(found.values())


def test_every_room_and_name_is_in_its_index():
    listed = {name for names in reference_index.sections().values() for name in names}
    short_names = {"mixing", "balance"}  # of modules of data
    assert set(mxtorch.__all__) - {"__version__"} <= listed | short_names
    assert {room.removeprefix("mxtorch.") for room in ROOMS} <= listed


def test_the_site_has_every_name():
    inventory = ROOT / "docs" / "_build" / "objects.inv"
    if not inventory.exists():
        pytest.skip("the site has not been built")
    sphinx_inventory = pytest.importorskip("sphinx.util.inventory")
    with inventory.open("rb") as file:
        loaded = sphinx_inventory.InventoryFile.load(file, "", lambda base, path: path)
    described = {name.rsplit(".", 1)[-1] for kind in loaded if kind.startswith("py:") for name in loaded[kind]}
    missing = [name for name in public() if name.rsplit(".", 1)[-1] not in described]
    assert not missing


def test_names_have_examples():
    names = public()
    assert len(names) > 80
    without = [
        name
        for name, value in names.items()
        if ">>>" not in (inspect.getdoc(value) or "")
        and not (
            inspect.isclass(value)
            and any(">>>" in (getattr(member, "__doc__", "") or "") for member in vars(value).values())
        )
    ]
    share = 1 - len(without) / len(names)
    assert share >= 0.8, f"{share:.0%} have an example; these do not: {', '.join(without)}"
