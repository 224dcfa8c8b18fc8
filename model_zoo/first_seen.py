"""Trust on first use: a record of the hash of each file of weights at its first use.

The record is `first-seen.json` in the folder of downloads. A file without a whole pinned hash must have the recorded
hash at every later use. To accept another file, remove its entry.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "first-seen.json"
VERSION = 1
LOCK_SECONDS = 30.0
_LARGEST = 16 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class WeightsError(OSError):
    """Weights could not be downloaded, or a file is not the expected one."""


@dataclass(frozen=True)
class Seen:
    """A file at its first use.

    Attributes:
        sha256: All 64 digits of its hash.
        date: The day, in the form `2026-01-31`.
        source: The origin of the file: an address, or a path on this machine.
    """

    sha256: str
    date: str
    source: str


class FirstSeen:
    """The record in a folder.

    Args:
        folder: The folder of downloads; it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME

    def of(self, name: str) -> Seen | None:
        """The entry of a file; None if there is none.

        Raises:
            WeightsError: The record is damaged.
        """
        return self._read().get(name)

    def add(self, name: str, sha256: str, source: str) -> None:
        """Record a file, unless it is recorded already. The record is replaced atomically, and not through a link.

        Raises:
            OSError: The folder can't be written.
        """
        import filelock

        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock_path(self.path), timeout=LOCK_SECONDS):
            entries = self._read()
            if name in entries:
                return
            entries[name] = Seen(sha256, datetime.date.today().isoformat(), source)
            content = {"version": VERSION, "files": {key: asdict(entry) for key, entry in sorted(entries.items())}}
            for left in self.folder.glob(f".{NAME}.*.tmp"):  # this process has the lock, so killed processes left these
                left.unlink(missing_ok=True)
            temporary = self.folder / f".{NAME}.{secrets.token_hex(8)}.tmp"
            try:
                with open(temporary, "x", encoding="utf-8") as file:
                    json.dump(content, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise

    def _read(self) -> dict[str, Seen]:
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.loads(file.read(_LARGEST))
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']!r}")
            entries = {name: Seen(**entry) for name, entry in content["files"].items()}
            wrong = [name for name, entry in entries.items() if not _HASH.fullmatch(entry.sha256)]
            if wrong:
                raise ValueError(f"the hash of {wrong[0]}")
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WeightsError(
                f"{self.path} is damaged ({type(error).__name__}: {error}). It records the hashes of files without a "
                "pinned hash; restore it, or remove it to trust the present files"
            ) from error
        return entries


def lock_path(path: Path) -> str:
    """The lock file of a file. A link or another object that someone has planted at its path is removed."""
    lock = path.with_name(f"{path.name}.lock")
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):  # the lock is opened for writing
        lock.unlink()
    return str(lock)
