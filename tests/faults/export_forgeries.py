"""Forged exports: safetensors and ONNX files with wrong metadata, sizes and graphs; and forged pictures."""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save as packed_safetensors
from torch import nn

from mxtorch.exporting.facts import FORMAT, FORMAT_VERSION, KEY

PREPROCESSING: dict[str, Any] = {
    "mode": "RGB",
    "steps": [
        ["v2.Resize", {"size": [36], "interpolation": "bilinear", "max_size": None, "antialias": True}],
        ["v2.CenterCrop", {"size": [32, 32]}],
        ["v2.ToImage", {}],
        ["v2.ToDtype", {"dtype": "float32", "scale": True}],
        ["v2.Normalize", {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}],
    ],
}
FACTS: dict[str, Any] = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "classes": ["a", "b"],
    "preprocessing": PREPROCESSING,
    "channels": 3,
    "zoo_name": "",
    "outputs": 2,
    "activation": "softmax",
}


def small_net() -> nn.Module:
    """The network for files that are not of the zoo."""
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))


def metadata() -> Iterator[tuple[str, str]]:
    """The metadata of forged files."""
    junk: list[Any] = [None, True, -1, 0, 10**9, 10**30, 1.5, "x", "", [], [1], {}, {"a": 1}, [[]]]
    for name in ("classes", "channels", "outputs", "zoo_name", "activation", "format_version", "preprocessing"):
        for value in junk:
            if value != FACTS[name]:
                yield f"{name} {value!r}", json.dumps({**FACTS, name: value})
        yield f"no {name}", json.dumps({key: value for key, value in FACTS.items() if key != name})
    for place, (step, arguments) in enumerate(PREPROCESSING["steps"]):
        for name in arguments:
            for value in (None, 10**9, -1, "x", [10**9] * 3, [0, 0, 0], []):
                forged = copy.deepcopy(PREPROCESSING)
                forged["steps"][place][1][name] = value
                yield f"{step} with {name} {value!r}", json.dumps({**FACTS, "preprocessing": forged})
    for mode, steps in (("CMYK", []), (None, []), ("RGB", [["v2.Evil", {}]]), ("RGB", [["v2.Resize", {"evil": 1}]])):
        yield f"mode {mode} with {steps}", json.dumps({**FACTS, "preprocessing": {"mode": mode, "steps": steps}})
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
    """Safetensors files with wrong headers or wrong metadata."""
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
    """ONNX files that read other files, that compute without inputs, or whose parts do not fit."""

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
    """Pictures with wrong sizes, and formats that start programs."""

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
