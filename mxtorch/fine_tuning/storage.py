"""How much memory there is, and where a large table of numbers goes."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# More than this part of what is free is taken only when asked for.
LARGEST_PART = 1 / 3

Where = Literal["auto", "memory", "file"]


class Place(NamedTuple):
    """Where a table goes: memory, or a file in a folder; and how it is told."""

    folder: Path | None
    sentence: str


def free_memory() -> int | None:
    """Bytes of memory that can be taken without anything being swapped out; None where that is not known.

    A limit on the process's control group, as containers have, counts.
    """
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            found.append(max(0, int((group / limit).read_text()) - int((group / used).read_text())))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found) if found else None


def choose_place(size: int, where: Where | str | Path, what: str) -> Place | None:
    """Where a table of so many bytes goes; None if there is no room for it.

    Args:
        size: Bytes.
        where: `"memory"` and a folder are taken as asked for. `"auto"` takes memory up to a third of what is free, else
            a file in the folder for temporary files, up to a third of what is free there. `"file"` is such a file.
        what: What the table is, for the sentence.
    """
    free = free_memory()
    told = f"{what}, {in_words(size)}"
    known = "" if free is None else f" (free: {in_words(free)})"
    if where == "memory":
        return Place(None, f"{told} in memory{known}, as asked for")
    if where == "auto" and size <= LARGEST_PART * (0 if free is None else free):
        return Place(None, f"{told} in memory{known}")
    folder = Path(tempfile.gettempdir()) if where in ("auto", "file") else Path(where)
    space = shutil.disk_usage(folder).free
    if size > space * (LARGEST_PART if where == "auto" else 1.0):
        return None
    why = "" if where != "auto" else f", as it is over a third of the free memory{known}"
    return Place(folder, f"{told} in a memory-mapped file in {folder} (free: {in_words(space)}){why}")


def table(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> tuple[Tensor, Path | None]:
    """An empty table, in memory or in a memory-mapped file that is to be removed after use."""
    if folder is None:
        return torch.empty(shape, dtype=dtype), None
    descriptor, name = tempfile.mkstemp(prefix="mxtorch-", suffix=".features", dir=folder)
    os.close(descriptor)
    values = torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype)
    return values.view(shape), Path(name)


def in_words(size: float) -> str:
    """Bytes as a person says them: `2.0 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
