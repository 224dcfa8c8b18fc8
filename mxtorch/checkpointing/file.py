"""Files that are written atomically, have a version, are checked for damage, and load safely; the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib
import io
import os
import secrets
import shutil
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, ClassVar, TextIO

import torch

from mxtorch._checks import shortened

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = "mxtorch.checkpoint"
FORMAT_VERSION = 3
# A temporary file that is older than this, and that no process has locked, was left by a process that was killed.
SWEPT_AFTER_SECONDS = 60.0
# A checkpoint with more values than this is checked before it gets its name: reading it may take too much memory.
MANY_VALUES = 200_000

# Flags that create a new file: they follow no symlink and overwrite no file that someone else has put there.
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
for _flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
    _CREATE |= getattr(os, _flag, 0)


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or is from another run. The message says which, and what differs.

    Example:
        >>> issubclass(CheckpointError, ValueError)
        True
    """


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file, open for writing and reading bytes, that replaces `path` at the end of the block.

    `path` holds either the old file or the whole new one, also after a power cut, because file and folder are synced.
    A symlink at `path` is replaced and not followed. Until the end of the block, the new file is at `file.name`. After
    an error in the block, the new file is removed. If the process is killed, the next process that writes `path`
    removes the new file.

    Raises:
        OSError: The file can't be written. The message has the path, and the old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.tmp")
    try:
        sweep(path)
        with open(temporary, "w+b", opener=lambda name, _: os.open(name, _CREATE, 0o666)) as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":  # on other systems an open file can't be moved
                os.replace(temporary, path)
        if os.name != "posix":
            os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, f"{error.strerror or 'failed'}, while writing", str(path)) from error
        raise


@contextlib.contextmanager
def atomic_text(path: str | Path) -> Iterator[TextIO]:
    """The same as `atomic_file` for text in UTF-8. Line ends are not changed.

    Raises:
        OSError: The file can't be written. The message has the path, and the old file is unchanged.
    """
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # this flushes


def sweep(path: Path) -> None:
    """Remove the temporary files and links that killed processes have left for this path.

    A file that a process is writing is locked, and a new file may not be locked yet. Both stay.
    """
    if fcntl is None:
        return
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another process has removed the file, or it belongs to another user
            if time.time() - left.lstat().st_mtime < SWEPT_AFTER_SECONDS:
                continue
            if not left.is_symlink():
                descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if not _lock(descriptor):
                        continue
                finally:
                    os.close(descriptor)
            left.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}."


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed. False if another process has locked it, or the system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None


def sync_folder(folder: str | Path) -> None:
    """Sync a folder, so that names that were created, replaced or deleted in it survive a power cut."""
    if os.name != "posix":  # on other systems a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: str | Path, content: dict[str, Any] | bytes) -> None:
    """Write a checkpoint. `path` holds either the old file or the whole new one, never a part.

    Args:
        path: The file; its folder must exist.
        content: Tensors and plain values, as `serialization` makes them; or the bytes that `packed` made from them.

    Raises:
        OSError: The file can't be written; the old file is unchanged.
        ValueError: The content holds so many small values that `read` would refuse the file.

    Example:
        >>> write("net.pt", {"weight": torch.ones(2)})
        >>> read("net.pt")["weight"]
        tensor([1., 1.])
    """
    with atomic_file(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            _save(content, file)


def packed(content: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file.

    Raises:
        ValueError: The content holds so many small values that `read` would refuse the file.
    """
    file = io.BytesIO()
    _save(content, file)
    return file.getvalue()


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """Write a content with its format to a file, and refuse a content that `read` would refuse."""
    counted = [0]
    dense = {name: _dense(value, counted, {}) for name, value in content.items()}
    sink = _Sink(file)
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **dense}, sink)  # type: ignore[arg-type]
    sink.raise_failure()
    if counted[0] > MANY_VALUES:
        try:
            _untrusted().check_torch_file(file)
        except ValueError as error:
            raise ValueError(f"the checkpoint can't be written: {error}; keep many numbers in tensors") from error
        finally:
            file.seek(0, os.SEEK_END)


def _dense(value: Any, counted: list[int], memo: dict[int, torch.Tensor]) -> Any:
    """The same value without expanded tensors, which are larger than their storage and which `read` refuses.

    Args:
        value: A value of the content.
        counted: A list with the number of values; this function increases it.
        memo: The copies of expanded tensors, by the id of the tensor.
    """
    counted[0] += 1
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.nbytes <= value.untyped_storage().nbytes():
            return value
        return memo.setdefault(id(value), value.contiguous())
    kind = type(value)
    if kind in (dict, OrderedDict):
        items = {name: _dense(item, counted, memo) for name, item in value.items()}
        if all(items[name] is item for name, item in value.items()):
            return value
        changed = kind(items)
        if kind is OrderedDict:
            vars(changed).update(vars(value))
        return changed
    if kind in (list, tuple):
        return kind(_dense(item, counted, memo) for item in value)
    return value


def _untrusted() -> ModuleType:
    # The checks are in the zoo, because it reads such files, too, and must not import mxtorch.
    return importlib.import_module("mxtorch.model_zoo.untrusted")


def read(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code that the file may contain.

    The sizes that the file states are compared with its bytes before memory is allocated: reading takes at most four
    times the size of the file and 64 MiB of memory. Then the checksums are verified, so that a truncated file or a
    flipped bit is found.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file can't be read.
        CheckpointError: The file is no checkpoint of mxtorch, is damaged, or has another format version.
    """
    with open(path, "rb") as file:
        try:
            _verify(file)
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # a damaged or foreign file can make the readers raise any type
            # EINVAL: a damaged file has made a reader seek before the start of the file.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise CheckpointError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint written by mxtorch")
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} is damaged: its format version is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this mxtorch reads {FORMAT_VERSION}: upgrade it")
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, which was never released; this mxtorch reads {FORMAT_VERSION}: load "
            "the file with the mxtorch that wrote it"
        )
    return content


def check_same_tensors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], what: str = "model") -> None:
    """Raise a CheckpointError that names the differences in names and shapes of tensors."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} {_shape(found[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in found and _shape(found[name]) != _shape(expected[name])
    ]
    differences = [
        f"{label} {shortened(names, 3)}"
        for label, names in (("does not have", missing), ("also has", unexpected), ("has the shapes", shapes))
        if names
    ]
    if differences:
        raise CheckpointError(f"it is a checkpoint of another {what}: it {'; it '.join(differences)}")


def link(path: str | Path, target: str) -> None:
    """Make `path` a symlink to the file `target` in the same folder, atomically; a copy if links can't be made.

    Raises:
        OSError: Neither a link nor a copy can be made.
    """
    path = Path(path)
    sweep(path)
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.tmp")
    try:
        os.symlink(target, temporary)
    except (OSError, NotImplementedError):
        with open(path.with_name(target), "rb") as source, atomic_file(path) as copy:
            shutil.copyfileobj(source, copy)
        return
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


class FolderLock:
    """The lock of a folder, which only one run holds, until `release` or the end of the process.

    The system releases the lock when the process ends, also if the process is killed. Forked processes do not hold the
    lock. Windows has no such locks; there, only runs of the same process exclude each other.

    Args:
        folder: The folder, in which a file `.lock` is created.
        seconds: How long to wait for another process.

    Raises:
        OSError: The file can't be created.
        ValueError: Another run holds the lock.
    """

    _held: ClassVar[set[str]] = set()  # the system's lock does not exclude other runs of the same process

    def __init__(self, folder: Path, seconds: float) -> None:
        self._name = str(folder.resolve())
        self._descriptor: int | None = None
        if self._name in self._held:
            raise ValueError(self._message())
        if fcntl is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(folder / ".lock", flags, 0o666)
            self._wait(seconds)
        self._held.add(self._name)

    def release(self) -> None:
        """Release the lock."""
        self._held.discard(self._name)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait(self, seconds: float) -> None:
        assert fcntl is not None
        assert self._descriptor is not None
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return  # the file system has no locks
                if time.monotonic() > end:
                    os.close(self._descriptor)
                    raise ValueError(self._message()) from None
            time.sleep(0.1)

    def _message(self) -> str:
        return f"folder: another run writes its checkpoints to {self._name!r}; give this run another folder"


class _Sink:
    """A file for `torch.save` that keeps an OSError, such as a full disk; torch's C++ writer would hide the cause."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self._failure is None:
            try:
                return self._file.write(data)
            except OSError as failure:
                self._failure = failure
        return len(data)

    def flush(self) -> None:
        """Nothing: `atomic_file` flushes."""

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _verify(file: BinaryIO) -> None:
    """Refuse a file that states larger sizes than it has, then verify all checksums, which torch does not read."""
    _untrusted().check_torch_file(file)
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its record {damaged!r} does not match its checksum")


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message, at most 300 characters, for another error message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"[:300]
