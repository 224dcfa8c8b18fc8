"""Files: written atomically, versioned, safe to load."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "mxtorch.checkpoint"
FORMAT_VERSION = 1


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old file or the whole new one, never a part.

    Raises:
        OSError: The file can't be written; what was there before is untouched.
    """
    path = Path(path)
    payload = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # elsewhere folders can't be opened to be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code that a file may carry.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of mxtorch, or one of a newer version.
    """
    content = torch.load(path, map_location=map_location, weights_only=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint written by Trainer.save")
    if content["format_version"] > FORMAT_VERSION:
        version = content["format_version"]
        raise ValueError(f"{path} has format version {version}; this mxtorch reads up to {FORMAT_VERSION}: upgrade it")
    return content


def check_same_tensors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], path: str | Path) -> None:
    """Raise a ValueError that names the differences in names and shapes, before anything is loaded."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    differences = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("lacks", missing), ("has besides", unexpected), ("has shapes", shapes))
        if names
    ]
    if differences:
        raise ValueError(f"{path} is a checkpoint of another model: it {'; it '.join(differences)}")
