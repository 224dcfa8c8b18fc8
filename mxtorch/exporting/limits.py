"""Limits for an exported file: its metadata and its ONNX graph are checked before anything is built from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxtorch.exporting.facts import Facts
from mxtorch.exporting.outputs import is_multi_label

# More outputs than ImageNet-21k and the vocabularies of language models have.
MOST_OUTPUTS = 500_000
MOST_CHANNELS = 10_000
LARGEST_PICTURE = 2048  # side of an input, in pixels
LARGEST_METADATA = 2 << 20
# An ONNX file of n bytes may need MOST_TIMES * n + ALLOWANCE bytes of memory before its computation runs.
MOST_TIMES = 2
ALLOWANCE = 32 << 20
_DEEPEST = 40
# The fields with the values of an ONNX tensor that has no raw bytes. Up to four small values share one entry.
_VALUES = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
# The bits of a value, by the number of its type in ONNX. Other types have at least 8 bits.
_BITS = {1: 32, 4: 16, 5: 16, 6: 32, 7: 64, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}
_SIZES = ("size", "max_size", "padding")  # the arguments of transforms that determine the size of an input


_written_here: set[bytes] = set()  # SHA-256 of the .pt2 files of this process


def remember(content: bytes) -> None:
    """Record that this process has written a file with these bytes."""
    _written_here.add(hashlib.sha256(content).digest())


def was_written_here(content: bytes) -> bool:
    """Whether this process wrote a file with exactly these bytes. Such a file is as safe as the process itself."""
    return hashlib.sha256(content).digest() in _written_here


def read_facts(text: Any, path: Path) -> Facts:
    """The facts in a file's metadata, each of which is checked.

    Raises:
        ValueError: There are no facts, they have another version, or `Trainer.export` can't have written them.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if text is not None and len(text) > LARGEST_METADATA:
        raise ValueError(f"{path} has metadata of {len(text)} characters; at most {LARGEST_METADATA} are read")
    try:
        facts = Facts.from_json(text, path)
        problem = _problem(facts)
    except ValueError:
        raise
    except Exception as error:  # malformed metadata can make the reader raise any type
        raise ValueError(f"{path} is damaged: its metadata can't be read ({type(error).__name__})") from error
    if problem:
        raise ValueError(f"{path} is damaged: its metadata has {problem}")
    return facts


def _problem(facts: Facts) -> str:
    """The first error in the facts, as a part of a message; an empty text if there is none."""
    if not _within(facts.outputs, 0, MOST_OUTPUTS):
        return f"{str(facts.outputs)[:20]} outputs"
    # A single output may have two names: it is then the probability of the second class.
    counts = {0, facts.outputs} | ({2} if facts.outputs == 1 and is_multi_label(facts.activation) else set())
    if not all(isinstance(name, str) for name in facts.classes) or len(facts.classes) not in counts:
        return f"{len(facts.classes)} names of classes for {facts.outputs} outputs"
    if not _within(facts.channels, 1, MOST_CHANNELS):
        return f"{str(facts.channels)[:20]} channels"
    if not isinstance(facts.zoo_name, str) or len(facts.zoo_name) > 200:
        return "no name of a network"
    for name, arguments in () if facts.preprocessing is None else facts.preprocessing.steps:
        sizes = [one for key in _SIZES for one in _as_list(arguments.get(key))]
        if not all(_within(one, 0, LARGEST_PICTURE) for one in sizes):
            return f"{str(name)[:30]} with sizes of {str(sizes)[:30]} pixels"
        numbers = [one for key in ("mean", "std") for one in _as_list(arguments.get(key))]
        if len(numbers) > 8 or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
            return "means or deviations that are no numbers"
        if not all(_as_list(arguments.get("std"))):
            return "a deviation of 0"
    return ""


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _within(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def check_onnx(path: Path) -> None:
    """Check that an ONNX file needs memory in proportion to its bytes, and that it refers to no other file.

    Raises:
        ValueError: One of these is not so, or the file is damaged. The message says what is wrong.
        ModuleNotFoundError: ONNX needs the extra `onnx`.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('onnx is not installed; pip install "mxtorch[onnx]"') from error
    content = path.read_bytes()
    most = MOST_TIMES * len(content) + ALLOWANCE
    cost = 0
    for each in _costs(memoryview(content), onnx.ModelProto.DESCRIPTOR, 0):
        cost += each
        if cost > most:
            raise ValueError(f"its graph needs more than {most} bytes of memory; the file has {len(content)}")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the classes of protobuf's errors are not public
        raise ValueError(f"it is no ONNX file ({type(error).__name__})") from error
    del content
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            _check_tensor(message)
        # onnxruntime converts sparse tensors to dense ones.
        elif kind == "SparseTensorProto" and math.prod(message.dims) > 64 * math.prod(message.values.dims):
            raise ValueError("it has a sparse tensor that is much larger than its values")


def _costs(content: memoryview, message: Any, depth: int) -> Iterator[int]:
    """The bytes of memory that each part of a protobuf message needs after parsing. The message is not parsed here.

    Args:
        content: The bytes of the message.
        message: The descriptor of its type.
        depth: The number of messages that contain this one.

    Raises:
        ValueError: The bytes are not a message of this type.
    """
    if depth > _DEEPEST:
        raise ValueError(f"its messages are nested more than {_DEEPEST} times")
    fields = message.fields_by_number
    place, end = 0, len(content)
    while place < end:
        tag, place = _number(content, place)
        field, kind = fields.get(tag >> 3), tag & 7
        if kind == 0:
            _, place = _number(content, place)
            yield 16
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
            yield 16
        elif kind == 2:
            length, place = _number(content, place)
            if length > end - place:
                raise ValueError("it is truncated")
            part = content[place : place + length]
            place += length
            if field is not None and field.message_type is not None:
                yield 300
                yield from _costs(part, field.message_type, depth + 1)
            elif field is not None and field.type not in (field.TYPE_STRING, field.TYPE_BYTES):
                yield 8 * length  # packed numbers of at least one byte
            else:
                yield 64 + length
        else:
            raise ValueError("it is no ONNX file")
    if place > end:
        raise ValueError("it is truncated")


def _number(content: memoryview, place: int) -> tuple[int, int]:
    """A variable-length integer of protobuf, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it is truncated")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it is no ONNX file")


def _messages(model: Any) -> Iterator[Any]:
    """A protobuf message and all messages in it."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def _check_tensor(tensor: Any) -> None:
    """Refuse a tensor whose values are in another file, and a shape with more values than the file has."""
    if tensor.data_location or tensor.external_data:
        raise ValueError("its weights are in another file, which is not read; write everything into one file")
    lengths = [len(value) for field, value in tensor.ListFields() if field.name in _VALUES]
    room = len(tensor.raw_data) * 8 // _BITS.get(tensor.data_type, 8) if tensor.raw_data else 4 * sum(lengths)
    if any(length < 0 for length in tensor.dims) or math.prod(tensor.dims) > room:
        raise ValueError(f"its tensor {tensor.name[:80]!r} has fewer values than its shape says")
