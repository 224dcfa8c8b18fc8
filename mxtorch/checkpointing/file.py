"""Files: written atomically, versioned, checked for damage, safe to load; and the lock of a folder."""

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

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = "mxtorch.checkpoint"
FORMAT_VERSION = 3
# A temporary file that is older than this and that nobody holds is of a process that was killed.
SWEPT_AFTER_SECONDS = 60.0
# A checkpoint of more values than this is read again before it is put into place: it may take too much memory.
MANY_VALUES = 200_000

# Never through a planted symlink, never over a file that is there; the mode is the umask's to cut, as with `open`.
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
for _flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
    _CREATE |= getattr(os, _flag, 0)


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or is of another run; the message says which, and what differs."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file, open for writing (and reading) bytes, that takes the place of `path` when the block is done.

    `path` holds either what it held or all of what was written, also after a power cut: file and folder are synced.
    A symlink at `path` is replaced and not followed. After an error in the block nothing is left behind; what a process
    that was killed left behind is removed by the next one that writes `path`. Until then the file is at `file.name`.

    Raises:
        OSError: The file can't be written; the message has the path. What was there before is untouched.
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
            if os.name == "posix":  # elsewhere an open file can't be moved
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
    """The same as `atomic_file` for text in UTF-8; line ends are written as they are given.

    Raises:
        OSError: The file can't be written; the message has the path. What was there before is untouched.
    """
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # which flushes


def sweep(path: Path) -> None:
    """Remove what killed processes left behind while they wrote a file or a link of this name.

    A file that is being written is locked, and a new one may not be locked yet: both stay.
    """
    if fcntl is None:
        return
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another process has removed it, or it belongs to another user
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
    """Mark a file as being written, until it is closed; False where another process has, or there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None


def sync_folder(folder: str | Path) -> None:
    """Make names that were created, replaced or deleted in a folder survive a power cut."""
    if os.name != "posix":  # elsewhere folders can't be opened to be synced
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: str | Path, content: dict[str, Any] | bytes) -> None:
    """Write a checkpoint so that `path` holds either the old file or the whole new one, never a part.

    Args:
        path: The file; its folder must exist.
        content: Tensors and plain values, as `serialization` makes them; or what `packed` made of them.

    Raises:
        OSError: The file can't be written; what was there before is untouched.
    """
    with atomic_file(path) as file:
        if isinstance(content, bytes):
            file.write(content)
            return
        sink = _Sink(file)
        content, values = _with_format(content)
        torch.save(content, sink)  # type: ignore[arg-type]
        sink.raise_failure()
        if values > MANY_VALUES:
            _check_readable(file)


def packed(content: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint's file.

    Raises:
        ValueError: It holds so many small values that `read` would refuse it.
    """
    file = io.BytesIO()
    content, values = _with_format(content)
    torch.save(content, file)
    if values > MANY_VALUES:
        _check_readable(file)
    return file.getvalue()


def _with_format(content: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The content of the file, and how many values it has."""
    counted = [0]
    dense = {name: _dense(value, counted, {}) for name, value in content.items()}
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **dense}, counted[0]


def _dense(value: Any, counted: list[int], memo: dict[int, torch.Tensor]) -> Any:
    """The same value, in which no tensor is larger than its storage: `read` refuses expanded ones."""
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


def _check_readable(file: BinaryIO) -> None:
    """Refuse what `read` would refuse."""
    try:
        _untrusted().check_torch_file(file)
    except ValueError as error:
        raise ValueError(f"the checkpoint can't be written: {error}; keep many numbers in tensors") from error
    finally:
        file.seek(0, os.SEEK_END)


def _untrusted() -> ModuleType:
    # The zoo has the checks because it reads such files too, and knows nothing of training.
    return importlib.import_module("mxtorch.model_zoo.untrusted")


def read(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code that a file may carry.

    Checksums are verified first, so a file that was cut short or has a flipped bit is refused. What it describes is
    compared with its bytes before it is built: reading takes at most four times its size and 64 MiB of memory.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It can't be read.
        CheckpointError: It is no checkpoint of mxtorch, is damaged, or is of a newer version.
    """
    with open(path, "rb") as file:
        try:
            _verify(file)
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # whatever a damaged or foreign file makes the readers raise
            if isinstance(error, OSError) and error.errno not in (
                None,
                errno.EINVAL,
            ):  # a place before the file's start
                raise
            raise CheckpointError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint written by mxtorch")
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} is damaged: its format version is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this mxtorch reads {FORMAT_VERSION}: upgrade it")
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, of a mxtorch before its first release; this one reads "
            f"{FORMAT_VERSION}: load it with the mxtorch that wrote it"
        )
    return content


def check_same_tensors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], what: str = "model") -> None:
    """Raise a CheckpointError that names the differences in names and shapes, before anything is loaded."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} {_shape(found[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in found and _shape(found[name]) != _shape(expected[name])
    ]
    differences = [
        f"{label} {', '.join(map(str, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("lacks", missing), ("has besides", unexpected), ("has shapes", shapes))
        if names
    ]
    if differences:
        raise CheckpointError(f"it is a checkpoint of another {what}: it {'; it '.join(differences)}")


def link(path: str | Path, target: str) -> None:
    """Let `path` be a symlink to the file `target` in the same folder, in one step; a copy where there are none.

    Raises:
        OSError: Neither can be made.
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
    """A folder that one run has to itself, until `release` or the end of the process.

    The system gives it back when a process dies, however it dies, and processes that it forked do not hold it. Where
    there are no such locks (Windows), runs of one process alone are kept apart.

    Args:
        folder: It gets a file `.lock`.
        seconds: Wait so long for another process.

    Raises:
        OSError: The file can't be made.
        ValueError: Another run holds it.
    """

    _held: ClassVar[set[str]] = set()  # a process's own locks do not keep it out

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
        """Give the folder back."""
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
                    return  # a file system without locks
                if time.monotonic() > end:
                    os.close(self._descriptor)
                    raise ValueError(self._message()) from None
            time.sleep(0.1)

    def _message(self) -> str:
        return f"folder: another run writes its checkpoints to {self._name!r}; give this one another folder"


class _Sink:
    """A file for torch.save, whose C++ writer would tell a full disk as an error of its own position."""

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
        """`atomic_file` flushes."""

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _verify(file: BinaryIO) -> None:
    """Refuse what describes more than it holds, then compare every record with its checksum, which torch ignores."""
    _untrusted().check_torch_file(file)
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its record {damaged!r} does not match its checksum")


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"[:300]
