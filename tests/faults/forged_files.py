"""Forged and planted files of every format, each tried in a process of its own that reports what it asked for.

`python tests/faults/forged_files.py FOLDER 1` writes the files into a folder, tries them, and prints a line of JSON for
each: its name and bytes, the error, whether code from it ran, and how many bytes of address space were asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save as packed_safetensors
from torch import nn

import model_zoo
from mxtorch import CheckpointError, ScheduledOptim, Trainer, exporting
from mxtorch.checkpointing import file as checkpoints
from mxtorch.exporting.__main__ import main as exporting_main
from mxtorch.exporting.facts import FORMAT, KEY

SECONDS = 20
MOST_MEMORY = 6 << 30
FACTS = {
    "format": FORMAT,
    "format_version": 1,
    "classes": ["a", "b"],
    "preprocessing": {
        "size": 32,
        "resize": 36,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "channels": "RGB",
    },
    "channels": 3,
    "zoo_name": "",
    "outputs": 2,
}


def small_net() -> nn.Module:
    """What the files of networks that are not of the zoo are for."""
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))


def trainer() -> Trainer:
    """A trainer whose checkpoint is forged."""
    net = small_net()
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)


# ---------------------------------------------------------------- entry points, with the errors that are documented


def command(path: Path) -> None:
    """The command line reports errors by its status."""
    if exporting_main([str(path), str(path)]):
        raise ValueError("status 1")


def predict(path: Path) -> None:
    """A picture, with a predictor whose preprocessing scales it."""
    from mxtorch.exporting.limits import read_facts

    exporting.Predictor(lambda inputs: torch.zeros(len(inputs), 2), read_facts(json.dumps(FACTS), path)).predict(path)


ENTRIES: dict[str, tuple[Callable[[Path], Any], tuple[type[Exception], ...]]] = {
    "Trainer.load": (lambda path: trainer().load(path), (CheckpointError,)),
    "checkpointing.read": (checkpoints.read, (CheckpointError,)),
    "model_zoo.create": (lambda path: model_zoo.resnet10t(weights=path), (ValueError,)),
    "exporting.load": (exporting.load, (ValueError,)),
    "exporting.load(model=)": (lambda path: exporting.load(path, model=small_net()), (ValueError,)),
    "python -m mxtorch.exporting": (command, (ValueError,)),
    "Predictor.predict": (predict, (ValueError, OSError)),
}
_OF_ENDING = {
    ".ckpt": ("Trainer.load", "checkpointing.read"),
    ".pth": ("model_zoo.create",),
    ".safetensors": ("exporting.load", "exporting.load(model=)", "model_zoo.create"),
    ".onnx": ("exporting.load", "python -m mxtorch.exporting"),
    ".pt2": ("exporting.load",),
    ".png": ("Predictor.predict",),
}


# ---------------------------------------------------------------- files of torch.save


def zipped(content: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save writes it, with any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for name, record in (records or {"data/0": b"\0" * 64}).items():
            archive.writestr(f"archive/{name}", record)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def legacy(content: bytes, keys: bytes = b"\x80\x02]q\x00.", rest: bytes = b"") -> bytes:
    """The older format: a row of pickles, then the storages."""
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
    """Pickles that run code when a reader calls what they name."""
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
    """Files of torch.save: with code, with sizes that are lies, with structures that explode."""
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
    """An archive whose first header asks for gigabytes."""
    import tarfile

    header = tarfile.TarInfo("\x80\x02")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    return header.tobuf(tarfile.GNU_FORMAT)


# ---------------------------------------------------------------- metadata, safetensors, ONNX


def metadata() -> Iterator[tuple[str, str]]:
    """What forged files say of their models."""
    junk: list[Any] = [None, True, -1, 0, 10**9, 10**30, 1.5, "x", "", [], [1], {}, {"a": 1}, [[]]]
    for name in ("classes", "channels", "outputs", "zoo_name", "format_version", "preprocessing"):
        for value in junk:
            if value != FACTS[name]:
                yield f"{name} {value!r}", json.dumps({**FACTS, name: value})
        yield f"no {name}", json.dumps({key: value for key, value in FACTS.items() if key != name})
    for name in FACTS["preprocessing"]:  # type: ignore[attr-defined]
        for value in (None, 10**9, -1, "x", [10**9] * 3, [0, 0, 0], []):
            yield f"{name} {value!r}", json.dumps({**FACTS, "preprocessing": {**FACTS["preprocessing"], name: value}})  # type: ignore[dict-item]
    for name in ("polynet", "vgg19", "timm/vit_giant_patch14_clip_224", "timm/hf-hub:evil/evil", "timm/../x", "../x"):
        yield f"the network {name}", json.dumps({**FACTS, "zoo_name": name})
    yield "a network of many channels", json.dumps({**FACTS, "zoo_name": "resnet10t", "channels": 9999})
    yield "a network of many outputs", json.dumps({**FACTS, "zoo_name": "resnet10t", "outputs": 499_999, "classes": []})
    yield "many classes", json.dumps({**FACTS, "classes": ["a"] * 400_000, "outputs": 400_000})
    yield "depth", "[" * 100_000
    yield "lists", json.dumps({**FACTS, "classes": [[]] * 300_000})
    yield "a long number", '{"format": ' + "9" * 5000 + "}"
    yield "no JSON", "{"
    yield "nothing", ""


def of_safetensors() -> Iterator[tuple[str, bytes]]:
    """Files of safetensors whose headers are lies, or whose metadata are."""
    state = small_net().state_dict()
    for name, facts in metadata():
        yield name, packed_safetensors(state, metadata={KEY: facts})
    for number in (0, 1, 2, 100, 1 << 20, 1 << 31, (1 << 63) - 1, (1 << 64) - 1):
        yield f"a header of {number}", struct.pack("<Q", number) + b"{}" + b" " * 90

    def with_header(header: Any, body: bytes = b"\0" * 64) -> bytes:
        line = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(line)) + line + body

    about = {"__metadata__": {KEY: json.dumps(FACTS)}}
    for kind, shape, places in (
        ("F32", [1 << 30], [0, 64]),
        ("F32", [1 << 40, 1 << 40], [0, 64]),
        ("F32", [-16], [0, 64]),
        ("F32", [16], [0, 1 << 40]),
        ("F32", [16], [64, 0]),
        ("F32", [0, 1 << 62], [0, 0]),
        ("F99", [16], [0, 64]),
        ("F32", ["x"], [0, 64]),
        ("F32", [16.5], [0, 64]),
        ("BOOL", [64], [0, 64]),
        ("F32", [1] * 100_000, [0, 4]),
    ):
        entry = {"dtype": kind, "shape": shape, "data_offsets": places}
        yield f"a tensor {kind} {shape[:3]} at {places}", with_header({**about, "0.weight": entry})
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "many empty tensors", with_header({**about, **{f"t{n}": empty for n in range(100_000)}}, b"")
    yield (
        "a long shape",
        with_header(b'{"a":{"dtype":"F32","shape":[' + b"0," * 3_500_000 + b'0],"data_offsets":[0,0]}}', b""),
    )
    yield "a long header", with_header(b"{" + b" " * (40 << 20) + b"}", b"")
    yield "depth", with_header(b"[" * 1_000_000)


def of_onnx(folder: Path) -> Iterator[tuple[str, bytes]]:
    """ONNX files that read other files, that compute without inputs, and whose parts do not fit."""

    def model(nodes: list[Any], initializers: list[Any], facts: str = json.dumps(FACTS), **more: Any) -> bytes:
        inputs = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 4])]
        outputs = [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, None)]
        graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(made, {KEY: facts})
        for name, value in more.items():
            getattr(made, name).extend(value)
        return bytes(made.SerializeToString())

    node, weight = helper.make_node, helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.0] * 8)
    good = [node("MatMul", ["inputs", "w"], ["outputs"])]
    for name, facts in metadata():
        yield f"metadata {name}", model(good, [weight], facts)
    (folder / "secret").write_bytes(b"\1" * 32)
    for location in ("secret", "../secret", str(folder / "secret"), "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""):
        outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 2])
        outside.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "32")):
            outside.external_data.add(key=key, value=value)
        yield f"weights in {location[:10]!r}", model(good, [outside])
        held = node("Constant", [], ["w"])
        held.attribute.append(helper.make_attribute("value", outside))
        yield f"a constant in {location[:10]!r}", model([held, *good], [])
    size = helper.make_tensor("n", TensorProto.INT64, [1], [1 << 30])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    ends = [
        helper.make_tensor(name, TensorProto.INT64, [], [number])
        for name, number in (("a", 0), ("b", 1 << 30), ("c", 1))
    ]
    total = node("ReduceSum", ["big"], ["s"], keepdims=0)
    after = [total, node("MatMul", ["inputs", "w"], ["m"]), node("Add", ["m", "s"], ["outputs"])]
    yield "a constant of a shape", model([node("ConstantOfShape", ["n"], ["big"]), *after], [weight, size])
    yield "an expansion", model([node("Expand", ["one", "n"], ["big"]), *after], [weight, one, size])
    yield "tiles", model([node("Tile", ["one", "n"], ["big"]), *after], [weight, one, size])
    yield (
        "a range",
        model([node("Range", ["a", "b", "c"], ["r"]), node("Cast", ["r"], ["big"], to=1), *after], [weight, *ends]),
    )
    yield "random numbers", model([node("RandomNormal", [], ["big"], shape=[1 << 30]), *after], [weight])
    for dims in ([1 << 30], [4, 1 << 40], [-4, 2], [1 << 62, 1 << 62]):
        lie = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * 32)
        yield f"dimensions {dims}", model(good, [lie])
    for kind in (0, 8, 23, 99):
        yield f"type {kind}", model(good, [TensorProto(name="w", data_type=kind, dims=[4, 2], raw_data=b"\0" * 8)])
    base = model(good, [weight])

    def part(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    yield "many nodes", base + part(7, part(1, b"") * 2_000_000)
    yield "many attributes", base + part(7, part(1, part(5, b"") * 2_000_000))
    yield "many numbers", base + part(7, part(5, part(7, b"\1" * 40_000_000)))
    yield "many names", base + part(7, part(1, part(1, b"") * 3_000_000))
    nested = b""
    for _ in range(400):
        nested = part(1, part(5, part(6, nested)))
    yield "nested graphs", base + part(7, nested)
    sparse = onnx.SparseTensorProto(dims=[1 << 30])
    sparse.values.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [5]))
    constant = node("Constant", [], ["big"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    yield "a sparse constant", model([constant, *after], [weight])
    yield "an unknown operator", model([node("Evil", ["inputs"], ["outputs"], domain="evil")], [])
    yield "a cycle", model([node("Add", ["inputs", "outputs"], ["outputs"])], [])
    yield "no nodes", model([], [])
    yield "cut short", base[: len(base) // 2]
    yield "a length", base + b"\x3a\xff\xff\xff\xff\x7f"
    yield "no message", b"\xff" * 200
    yield "nothing", b""


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


# ---------------------------------------------------------------- pictures and others


def of_pictures(proof: str) -> Iterator[tuple[str, bytes]]:
    """Pictures whose sizes are lies, and formats that start programs."""

    def png(width: int, height: int, body: bytes = zlib.compress(b"\0" * 100)) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    for width, height in ((0, 0), (60_000, 60_000), (13_000, 13_000), (1, 40_000_000), (40_000_000, 1), (1 << 31, 1)):
        yield f"a picture {width} x {height}", png(width, height)
    yield "a damaged picture", png(8, 8, b"\xff" * 50)
    yield "a cut picture", png(200, 200)[:60]
    for kind in ("GIF", "BMP", "TIFF", "JPEG", "WEBP"):
        out = io.BytesIO()
        Image.new("RGB", (16, 16)).save(out, kind)
        yield f"half a {kind}", out.getvalue()[: len(out.getvalue()) // 2]
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch {proof}) (r) file\n"
    yield "a program of PostScript", script.encode()
    yield "an icon", b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0"
    yield "text", b"not a picture"


def mutations(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """A good file with bytes changed, cut out, or put in."""
    chance = random.Random(len(content))
    for number in range(count):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            kind = chance.randrange(3)
            if kind == 0:
                changed[place] ^= 1 << chance.randrange(8)
            elif kind == 1:
                changed[place : place + chance.randint(1, 60)] = chance.randbytes(chance.randint(0, 60))
            else:
                changed[place : place + 8] = struct.pack("<Q", 1 << chance.randrange(64))
        yield f"mutation {number}", bytes(changed)


def files(folder: Path, proof: str) -> Iterator[tuple[str, str, bytes]]:
    """The ending, name and content of every file."""
    for ending in (".ckpt", ".pth"):
        for name, content in of_torch(proof):
            yield ending, name, content
    yield from ((".safetensors", name, content) for name, content in of_safetensors())
    yield from ((".onnx", name, content) for name, content in of_onnx(folder))
    yield from ((".png", name, content) for name, content in of_pictures(proof))
    yield from ((".pt2", name, content) for name, content in list(of_torch(proof))[:4])
    checkpoint = io.BytesIO()
    torch.save(trainer().checkpoint_content(), checkpoint)
    for ending, good in ((".ckpt", checkpoint.getvalue()), (".onnx", next(of_onnx(folder))[1])):
        yield from ((ending, name, content) for name, content in mutations(good, 30))
    good = packed_safetensors(small_net().state_dict(), metadata={KEY: json.dumps(FACTS)})
    yield from ((".safetensors", name, content) for name, content in mutations(good, 30))


# ---------------------------------------------------------------- measuring


def memory() -> dict[str, int]:
    """Address space of this process in bytes: now, and at most since it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmSize", "VmPeak"))}


def attempt(entry: str, path: Path) -> dict[str, Any]:
    """Try a file in a forked process; what it asked for counts even if it was never touched."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        before = memory()["VmSize"]
        resource.setrlimit(resource.RLIMIT_AS, (before + MOST_MEMORY, before + MOST_MEMORY))
        function, documented = ENTRIES[entry]
        outcome = {"error": "", "documented": True}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(path)
        except documented as error:
            outcome["error"] = f"{type(error).__name__}: {error}"[:300]
        except BaseException as error:
            outcome = {"error": f"{type(error).__name__}: {error}"[:300], "documented": False}
        os.write(writing, json.dumps({**outcome, "asked": memory()["VmPeak"] - before}).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        line = stream.read()
    _, status = os.waitpid(child, 0)
    if not line:
        return {"error": f"ended with status {status}", "documented": False, "asked": 0}
    return json.loads(line)  # type: ignore[no-any-return]


def warm_up(folder: Path, proof: str) -> None:
    """Import what the entry points import, which no file is to blame for."""
    samples: dict[str, bytes] = {".ckpt": zipped(b"\x80\x02N."), ".png": b"", ".pt2": b""}
    samples[".pth"] = samples[".ckpt"]
    samples[".safetensors"] = packed_safetensors(small_net().state_dict(), metadata={KEY: json.dumps(FACTS)})
    for ending, content in samples.items():
        path = folder / f"warm{ending}"
        path.write_bytes(content)
        for entry in _OF_ENDING[ending]:
            with contextlib.suppress(Exception):
                ENTRIES[entry][0](path)
    import onnxruntime  # noqa: F401 - the threads of a session do not outlive a fork, so none is made


def main() -> None:
    """Try every n-th file by one entry point; with 1, all files by all of them."""
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    proof = folder / "proof"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the runtimes' own messages
    warm_up(folder, str(proof))
    for number, (ending, name, content) in enumerate(files(folder, str(proof))):
        if number % step:
            continue
        path = folder / f"{number}{ending}"
        path.write_bytes(content)
        entries = _OF_ENDING[ending]
        for entry in entries if step == 1 else entries[number // step % len(entries) :][:1]:
            result = attempt(entry, path)
            ran = proof.exists()
            proof.unlink(missing_ok=True)
            row = {"entry": entry, "file": f"{name} ({ending})", "size": len(content), "ran": ran, **result}
            print(json.dumps(row), flush=True)
        path.unlink()


if __name__ == "__main__":
    main()
