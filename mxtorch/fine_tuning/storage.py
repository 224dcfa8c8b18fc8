"""Where a large table of numbers is stored: in memory, or in a memory-mapped file."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

# "auto" takes at most this part of what is free.
LARGEST_PART = 1 / 3

Where = Literal["auto", "memory", "file"]


class Place(NamedTuple):
    """Where a table is stored: in a file in a folder, or in memory (None); and a sentence that says so."""

    folder: Path | None
    sentence: str


def free_memory() -> int | None:
    """Bytes of memory that can be taken without swapping; None where that is not known.

    It respects the limit of the process's control group, as containers have.
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


def check_where(where: Where | str | Path, argument: str) -> None:
    """Raise a ValueError unless `where` is a known name or a folder that exists."""
    if where not in get_args(Where) and not Path(where).is_dir():
        raise ValueError(f"{argument}: got {str(where)!r}; give 'auto', 'memory', 'file' or a folder that exists")


def choose_place(size: int, where: Where | str | Path, what: str) -> Place | None:
    """Where to store a table; None if there is no room for it.

    Args:
        size: Its bytes.
        where: `"memory"`, or a folder. `"file"` is a file in the folder for temporary files. `"auto"` is memory, up to
            a third of what is free, otherwise such a file, up to a third of what is free there.
        what: What the table is, for the sentence.
    """
    free = free_memory()
    table = f"{what}, {in_words(size)}"
    known = "" if free is None else f" (free: {in_words(free)})"
    if where == "memory":
        return Place(None, f"{table} in memory{known}, as asked for")
    if where == "auto" and size <= LARGEST_PART * (0 if free is None else free):
        return Place(None, f"{table} in memory{known}")
    folder = Path(tempfile.gettempdir()) if where in ("auto", "file") else Path(where)
    space = shutil.disk_usage(folder).free
    if size > space * (LARGEST_PART if where == "auto" else 1.0):
        return None
    why = "" if where != "auto" else f", as it is over a third of the free memory{known}"
    return Place(folder, f"{table} in a memory-mapped file in {folder} (free: {in_words(space)}){why}")


def table(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """An empty table, in memory or in a memory-mapped file.

    The file has no name, so the system removes it when the table is no longer used, also when the process is killed.
    Its room on the disk is reserved first: a disk that fills up later is no fault of memory then, which would end the
    process (SIGBUS).

    Args:
        shape: The numbers of rows, and whatever a row holds.
        dtype: Of its numbers.
        folder: Where the file is; None for memory.

    Raises:
        OSError: The folder can't be written, or there is no room.
    """
    size = math.prod(shape) * dtype.itemsize
    if folder is None or size == 0:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(prefix="mxtorch-", suffix=".features", dir=folder) as file:
        _reserve(file.fileno(), size)
        mapped = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(mapped, dtype=dtype).view(shape)


def _reserve(descriptor: int, size: int) -> None:
    """Take room on the disk for a file.

    Raises:
        OSError: There is not so much.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = bytes(1 << 20)  # where the system can't reserve, what is written has its room
    while size > 0:
        size -= os.write(descriptor, zeros[:size])


def in_words(size: float) -> str:
    """Bytes in a readable unit: `2.0 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
