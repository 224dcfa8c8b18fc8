"""Writes the front page of the reference from the map of public names in the docstring of `mxtorch`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import mxtorch

SECTION = re.compile(r"^(?P<title>[A-Z][a-z -]+(?: [a-z-]+)*)\n(?P<entries>(?:    .*\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    (?P<name>\w+) ", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    """The public names by the sections of the map; then the packages that say what is public in them, and no more."""
    text = inspect.cleandoc(mxtorch.__doc__ or "") + "\n"
    found = {match["title"]: ENTRY.findall(match["entries"]) for match in SECTION.finditer(text)}
    listed = {name for names in found.values() for name in names}
    others = [name for name in mxtorch.__all__ if name not in listed and name != "__version__"]
    rooms = [
        module.name
        for module in pkgutil.iter_modules(mxtorch.__path__)
        if module.name not in listed | set(others)
        and hasattr(importlib.import_module(f"mxtorch.{module.name}"), "__all__")
    ]
    others = [name for name in others if not _is_short_name(name)]
    return found | {"Beside these": [*others, *rooms]}


def write(folder: Path) -> None:
    """Write `index.rst` into a folder, if it is not there with the same content."""
    lead = "Every public name, from its docstring. The examples in them are run by the tests."
    lines = ["Reference", "=========", "", lead, ""]
    for title, names in sections().items():
        lines += [title, "-" * len(title), ""]
        for is_module in (False, True):
            chosen = [name for name in names if is_module == isinstance(_value(name), ModuleType)]
            if chosen:
                lines += [".. autosummary::", "   :toctree: generated", "   :nosignatures:"]
                lines += [f"   :template: autosummary/{'module' if is_module else 'class'}.rst", ""]
                lines += [f"   mxtorch.{name}" for name in chosen] + [""]
    path, text = folder / "index.rst", "\n".join(lines)
    if not path.exists() or path.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _is_short_name(name: str) -> bool:
    """Whether it is another name of a module of a room, as `mixing` is of `data.mixing`."""
    value = _value(name)
    return isinstance(value, ModuleType) and value.__name__ not in (f"mxtorch.{name}", name)


def _value(name: str) -> object:
    return getattr(mxtorch, name, None) or importlib.import_module(f"mxtorch.{name}")
