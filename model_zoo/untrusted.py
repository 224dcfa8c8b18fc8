"""Checks of files that may be forged. The sizes that a file states are compared with its bytes before it is read.

A file of torch or of safetensors can describe tensors that are larger than the file, and a pickle of a few bytes can
describe millions of objects. Reading a file that passes these checks needs memory in proportion to its bytes.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

# A file of n bytes may need MOST_TIMES * n + ALLOWANCE bytes of memory.
MOST_TIMES = 4
ALLOWANCE = 64 << 20
# The largest networks of timm have several thousand tensors. A tensor costs about 1 kB, whatever its size.
MOST_TENSORS = 20_000
MOST_RECORDS = 50_000
# The names, shapes and places of 20,000 tensors take 3 MB. A parsed header of a forged file takes 18 times its bytes.
LARGEST_HEADER = 4 << 20
DEEPEST = 64

# The memory of an object in bytes, by the pickle instruction that makes it. Others take a slot and their argument.
_COSTS = {
    "EMPTY_LIST": 80,
    "EMPTY_DICT": 80,
    "EMPTY_SET": 230,
    "TUPLE": 60,
    "TUPLE1": 56,
    "TUPLE2": 64,
    "TUPLE3": 72,
    "REDUCE": 1000,
    "BINPERSID": 300,
    "BINPUT": 100,
    "LONG_BINPUT": 100,
    "BUILD": 200,
    "MARK": 120,
    "GLOBAL": 100,
}
_SLOT = 40
_STORAGES = {  # the bytes of one item
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "QInt8Storage", "QUInt8Storage"), 1),
    **dict.fromkeys(("QUInt4x2Storage", "QUInt2x4Storage", "UntypedStorage"), 1),
    "ComplexDoubleStorage": 16,
}
# The instructions that `torch.load(weights_only=True)` knows, except the one that calls constructors.
_INSTRUCTIONS = frozenset(
    (
        *_COSTS,
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "BININT"),
        *("BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINGET", "LONG_BINGET", "LONG1"),
        *("PROTO", "STOP"),
    )
)
_KEYS = (str, int, float, bool, bytes, complex, type(None))
_LARGEST_KEY = 1 << 60  # a file can have many larger integers with the same hash, which makes dictionaries slow


def check_torch_file(file: IO[bytes]) -> None:
    """Check that a file of `torch.save` describes nothing larger than the file, and no code.

    Both formats are checked: the zip archive, and the older format of several pickles.

    Args:
        file: A seekable file that is open for reading. Afterwards, it is at its start.

    Raises:
        ValueError: The file is forged, damaged, or no file of `torch.save`. The message says what is wrong.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    try:
        if head.startswith(b"PK\x03\x04"):
            _check_zip(file, size)
        elif head.startswith(b"\x80"):
            _check_legacy(file, size, head)
        else:
            raise ValueError("it is no file of torch.save")
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # the readers of pickles and zip archives raise many types for damaged files
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
    finally:
        file.seek(0)


def check_safetensors(path: Path) -> None:
    """Check the size of the header of a safetensors file. The library itself checks the sizes of tensors.

    Raises:
        ValueError: The header is larger than the file, or than the header of any real network, or the file is
            truncated.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ValueError("it is truncated, or no safetensors file")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes; at most {LARGEST_HEADER} are read")
        tensors = file.read(length).count(b"data_offsets")
    if tensors > MOST_TENSORS:
        raise ValueError(f"it has {tensors} tensors; at most {MOST_TENSORS} are read")


def _check_zip(file: IO[bytes], size: int) -> None:
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError("it has two records with the same name")
        ends = [entry.header_offset for entry in entries[1:]] + [archive.start_dir]
        for entry, end in zip(entries, ends, strict=True):
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its record {entry.filename[:80]!r} is compressed, which torch does not write")
            if entry.header_offset + 30 + entry.file_size > end:
                raise ValueError(f"its record {entry.filename[:80]!r} is larger than its space in the file")
        if len({name.partition("/")[0] for name in names}) != 1:
            raise ValueError("its records are not in one folder")
        records = {entry.filename.partition("/")[2]: entry for entry in entries}
        if "data.pkl" not in records or "constants.pkl" in records:
            raise ValueError("it is no file of tensors from torch.save")
        content = archive.read(records["data.pkl"])
        sizes = {name[5:]: entry.file_size for name, entry in records.items() if name.startswith("data/")}
    _Inspector(io.BytesIO(content), size, len(content), sizes).inspect()


def _check_directory(file: IO[bytes], size: int) -> None:
    """Check that Python and torch will read the same list of records, and that the list is not too long."""
    end = size - 22
    file.seek(max(0, end))
    fields = struct.unpack("<4s4H2LH", file.read(22)) if end > 0 else (b"",)
    if fields[0] != b"PK\x05\x06" or fields[7]:
        raise ValueError("it is damaged: it does not end like a file of torch.save")
    count, length, start = fields[4:7]
    if end >= 76:
        file.seek(end - 20)
        locator = struct.unpack("<4sLQL", file.read(20))
        if locator[0] == b"PK\x06\x07":
            end -= 76
            file.seek(end)
            record = struct.unpack("<4sQ2H2L4Q", file.read(56))
            if locator[2] != end or record[0] != b"PK\x06\x06":
                raise ValueError("it is damaged: the list of its records is not at its end")
            count, length, start = record[7:10]
    if start + length != end or count > MOST_RECORDS or length > count * 512:
        raise ValueError("it is damaged: the list of its records does not fit")
    file.seek(start)
    if file.read(length).count(b"PK\x01\x02") != count:
        raise ValueError("it is damaged: the list of its records does not fit")
    file.seek(0)


def _check_legacy(file: IO[bytes], size: int, head: bytes) -> None:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        pass
    else:
        raise ValueError("it is a tar archive, which torch reads only by unpickling")
    for part in ("magic number", "protocol", "system", "content", "keys"):
        inspector = _Inspector(_Clipped(file, size), size, size, None)
        inspector.inspect()
        if part == "content":
            needed = sum(storage.size for storage in inspector.storages.values())
    if needed > size - file.tell():
        raise ValueError(f"it describes {needed} bytes of tensors, but has {size - file.tell()}")


class _Clipped(io.RawIOBase):
    """A file whose `read` never requests more bytes than it has, because Python allocates them before it reads."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._bytes = file, size

    def read(self, size: int = -1) -> bytes:
        rest = self._bytes - self._file.tell()
        return self._file.read(rest if size < 0 else min(size, rest))

    def readline(self, size: int | None = -1) -> bytes:
        return self._file.readline(-1 if size is None else size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)


@dataclass(eq=False)
class _Storage:
    """The description of a storage in a file: the bytes of all items, and of one item."""

    size: int
    item: int


@dataclass(eq=False)
class _StorageType:
    item: int


@dataclass(eq=False)
class _Tensor:
    """The description of a tensor in a file: its bytes."""

    size: int


class _Inspector(pickle._Unpickler):
    """Reads one pickle of a file of torch. It builds no tensors, and calls no function that the pickle names.

    Args:
        file: A file at the start of the pickle.
        size: The size of the whole file in bytes.
        length: The size of the pickle in bytes, or more.
        records: The bytes of each storage by its key; None in the older format, in which storages have no records.
    """

    # Python's reader takes the instructions from a table. Here it is a copy, with three instructions replaced.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, size: int, length: int, records: dict[str, int] | None) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[Any, _Storage] = {}
        self._source, self._size, self._length, self._records = file, size, length, records
        self._aside: list[Any] = []  # attributes of containers, such as the versions in a state_dict
        self._tensors = 0
        self._bytes = 0
        self._measured: dict[int, tuple[int, int]] = {}

    def inspect(self) -> None:
        """Read the pickle and measure it.

        Raises:
            ValueError: The pickle describes more than the file can hold, or other things than tensors and values.
        """
        start = self._source.tell()
        self._check_cost()
        self._source.seek(start)
        content = [self.load(), self._aside]
        nodes, _ = self._measure(content)
        if nodes > MOST_TIMES * self._length + 10_000:
            raise ValueError("it repeats the same values too often")
        if self._tensors > MOST_TENSORS or self._bytes > MOST_TIMES * self._size + ALLOWANCE:
            raise ValueError(f"it describes {self._tensors} tensors of {self._bytes} bytes, but has {self._size} bytes")

    def _check_cost(self) -> None:
        cost, most = 0, MOST_TIMES * self._size + ALLOWANCE
        for instruction, argument, _ in pickletools.genops(self._source):
            if instruction.name not in _INSTRUCTIONS:
                raise ValueError(f"it has the instruction {instruction.name}, which torch.save does not write")
            cost += _COSTS.get(instruction.name, _SLOT)
            if isinstance(argument, (str, bytes)):
                cost += 2 * len(argument)
            if cost > most:
                raise ValueError(f"its objects need more than {most} bytes of memory, but it has {self._size} bytes")

    def find_class(self, module: str, name: str) -> Any:
        """A harmless replacement for the function or class that the file names.

        Raises:
            ValueError: The name does not occur in files of tensors.
        """
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in _FUNCTIONS:
            return getattr(self, _FUNCTIONS[full])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, (torch.dtype, torch.qscheme)):
            return value
        raise ValueError(f"it holds {full[:80]}, which is neither a tensor nor a plain value")

    def persistent_load(self, pid: Any) -> _Storage:
        """The description of a storage, after its size was compared with the bytes in the file."""
        kind, key, _, count = pid[1:5]
        if not isinstance(kind, _StorageType) or not _is_count(count) or not isinstance(key, (str, int)):
            raise _unknown("a storage")
        size = count * kind.item
        known = self.storages.setdefault(key, _Storage(size, kind.item))
        room = self._size if self._records is None else self._records.get(str(key), -1)
        if size > room or known.size != size:
            raise ValueError(f"its storage {str(key)[:40]!r} is described with {size} bytes, but has {max(room, 0)}")
        if self._records is None and len(pid) > 5 and pid[5] is not None:
            _, offset, view = pid[5]
            if not _is_count(offset) or not _is_count(view) or (offset + view) * kind.item > size:
                raise ValueError(f"its storage {str(key)[:40]!r} has a view beyond its end")
            return _Storage(view * kind.item, kind.item)
        return _Storage(size, kind.item)

    # ------------------------------------------------ replacements for the functions that a file names

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> _Tensor:
        dtypes = [each for each in more if isinstance(each, torch.dtype)]
        if (
            not isinstance(storage, _Storage)
            or not all(_is_count(number) for number in (offset, *shape, *stride))
            or len(shape) != len(stride)
            or len(shape) > DEEPEST
        ):
            raise _unknown("a tensor")
        item, count, last = dtypes[0].itemsize if dtypes else storage.item, 1, offset
        for length, step in zip(shape, stride, strict=True):
            count *= length
            last += (length - 1) * step
        if count and ((last + 1) * item > storage.size or count * item > storage.size):
            raise ValueError(f"it describes a tensor {list(shape)[:8]}, but its storage has {storage.size} bytes")
        self._keep(more)
        return _Tensor(count * item)

    def _parameter(self, tensor: Any, *more: Any) -> Any:
        self._keep(more)
        return tensor

    def _typed(self, function: Callable[..., Any], kind: Any, arguments: Any, state: Any) -> Any:
        if getattr(function, "__self__", None) is not self:
            raise _unknown("a tensor")
        self._keep(state)
        return function(*arguments)

    def _sparse(self, layout: Any, parts: Any) -> list[Any]:
        return [layout, parts]

    def _mapping(self, pairs: Any = ()) -> dict[Any, Any]:
        for key, _ in pairs:
            _check_key(key)
        return dict(pairs)

    def _collection(self, items: Any = ()) -> list[Any]:
        if not isinstance(items, (list, tuple)):
            raise _unknown("a collection")
        for item in items:
            _check_key(item)
        return list(items)

    def _size_of_tensor(self, numbers: Any = ()) -> tuple[Any, ...]:
        return tuple(numbers) if isinstance(numbers, (list, tuple)) else ()

    def _bytes_of(self, text: Any = b"", *_: Any) -> bytes:
        if not isinstance(text, (str, bytes)):
            raise _unknown("bytes")
        return text.encode("latin1") if isinstance(text, str) else text

    def _value(self, *values: Any) -> tuple[Any, ...]:
        if not all(isinstance(value, _KEYS) for value in values):
            raise _unknown("a value")
        return values

    def _kind(self, *_: Any) -> None:
        raise ValueError("it builds a tensor without values")

    def _keep(self, value: Any) -> None:
        self._aside.append(value)

    # ------------------------------------------------ instructions

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise _unknown("an object")
        self._keep(state)

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _unknown("a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            target[key] = value

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.SETITEM[0]] = _set_item

    def _measure(self, value: Any) -> tuple[int, int]:
        """The number of values in a value, with each repetition counted, and the depth of the value."""
        if isinstance(value, _Tensor):
            if id(value) not in self._measured:
                self._measured[id(value)] = (1, 0)
                self._tensors += 1
                self._bytes += value.size
            return 1, 0
        if not isinstance(value, (dict, list, tuple)):
            return 1, 0
        known = self._measured.get(id(value))
        if known is None:
            self._measured[id(value)] = (0, DEEPEST)  # a value that contains itself is too deep
            inner = [self._measure(item) for item in (value.values() if isinstance(value, dict) else value)]
            known = 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            self._measured[id(value)] = known
        if known[1] > DEEPEST:
            raise ValueError(f"its values are nested more than {DEEPEST} times")
        return known


_FUNCTIONS = {
    "torch._utils._rebuild_tensor": "_tensor",
    "torch._utils._rebuild_tensor_v2": "_tensor",
    "torch._utils._rebuild_tensor_v3": "_tensor",
    "torch._utils._rebuild_qtensor": "_tensor",
    "torch._utils._rebuild_parameter": "_parameter",
    "torch._utils._rebuild_parameter_with_state": "_parameter",
    "torch._tensor._rebuild_from_type_v2": "_typed",
    "torch._utils._rebuild_sparse_tensor": "_sparse",
    "torch.serialization._get_layout": "_value",
    "torch.Tensor": "_kind",
    "torch.nn.parameter.Parameter": "_kind",
    "torch.Size": "_size_of_tensor",
    "torch.device": "_value",
    "collections.OrderedDict": "_mapping",
    "builtins.set": "_collection",
    "builtins.complex": "_value",
    "builtins.bytearray": "_bytes_of",
    "_codecs.encode": "_bytes_of",
}


def _unknown(what: str) -> ValueError:
    return ValueError(f"it describes {what} in a way that torch.save does not write")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _check_key(key: Any, depth: int = 0) -> None:
    """Refuse keys that make dictionaries slow: nested tuples, and large integers with the same hash."""
    if isinstance(key, tuple) and len(key) <= 16 and depth < 4:
        for item in key:
            _check_key(item, depth + 1)
    elif not isinstance(key, (*_KEYS, torch.dtype)) or (type(key) is int and abs(key) > _LARGEST_KEY):
        raise ValueError(f"it has a dictionary key that is not allowed: a {type(key).__name__}")
