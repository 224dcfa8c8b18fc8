"""The model zoo under a name that no folder or module of a user can take.

The zoo is the top-level package `model_zoo`, in the folder that holds `mxtorch`. A user may have a `model_zoo` as well,
and theirs may come first on `sys.path` or be imported already. This module therefore finds the zoo by its place in the
file system:

- If `import model_zoo` gives the zoo, `mxtorch.model_zoo` is that module object, and the submodules are the same too.
- If it gives something else, or nothing, this module itself becomes the zoo: it runs the zoo's code under the name
  `mxtorch.model_zoo`. The zoo imports its own modules by relative imports alone, so they follow.

In no case are there two copies of the zoo because it was imported under both names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_zoo import *  # noqa: F403


def _load() -> None:
    """Put the zoo at this module's place in `sys.modules`, or make this module the zoo."""
    import importlib
    import importlib.util
    import os
    import pkgutil
    import sys
    from importlib.machinery import PathFinder
    from pathlib import Path

    root = Path(__file__).parents[2]
    zoo = PathFinder.find_spec(__name__, [str(root)])
    if zoo is None or zoo.loader is None or zoo.origin is None:
        raise ModuleNotFoundError(f"mxtorch is installed without its model zoo: {root} has no package model_zoo")

    if "model_zoo" in sys.modules:
        origin = getattr(sys.modules["model_zoo"], "__file__", None)
    else:
        origin = getattr(importlib.util.find_spec("model_zoo"), "origin", None)
    if origin is not None and os.path.realpath(origin) == os.path.realpath(zoo.origin):
        package = importlib.import_module("model_zoo")
        for found in pkgutil.walk_packages(package.__path__, "model_zoo."):
            if not found.name.endswith(".__main__"):
                sys.modules[f"mxtorch.{found.name}"] = importlib.import_module(found.name)
        sys.modules[__name__] = package  # the import system returns what stands here
        return

    here = sys.modules[__name__]
    here.__path__ = zoo.submodule_search_locations or []
    here.__file__ = zoo.origin
    zoo.loader.exec_module(here)


_load()
