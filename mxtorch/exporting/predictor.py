"""Predictions with an exported file, without a trainer and without the code that trained the model."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch import model_zoo
from mxtorch._checks import closest
from mxtorch._structure import describe
from mxtorch.checkpointing.file import first_line
from mxtorch.exporting.facts import KEY, Facts
from mxtorch.exporting.limits import check_onnx, read_facts, was_written_here
from mxtorch.exporting.outputs import is_multi_label, probabilities

BATCH_SIZE = 32
# Decoding takes 4 bytes for each pixel, even if the file is small.
MOST_PIXELS = 50_000_000
# The formats that Pillow decodes itself. For others, such as EPS, it starts another program.
_PICTURES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Predictor:
    """A network from a file, with its preprocessing and the names of its classes. `load` makes it.

    Args:
        run: Computes outputs [N, ...] from inputs [N, ...], on the CPU.
        facts: The description of the model in its file.

    Attributes:
        classes: The names of the outputs; their numbers if they have no names.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
        activation: The meaning of the outputs: `"softmax"`, `"sigmoid"`, `"exp"`, `"probabilities"` or `"raw"`; see
            `mxtorch.exporting.export`.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], facts: Facts) -> None:
        self._run = run
        self._facts = facts
        self.classes = facts.classes or tuple(str(index) for index in range(facts.outputs))
        self.preprocessing = facts.preprocessing
        self.activation = facts.activation

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of the network, [N, ...], for inputs [N, ...] that are already preprocessed."""
        with torch.no_grad():
            return self._run(inputs)

    def predict(self, pictures: Any) -> list[dict[str, Any]]:
        """Classify pictures, or return the numbers that a model computes from them.

        The file says how outputs become probabilities, because this follows from the loss of the training.

        Args:
            pictures: A file, a PIL picture, or a list of these; or inputs [N, ...] that are already preprocessed. A
                file is opened as torchvision's data sets open it: transparency is dropped, and EXIF data are ignored.

        Returns:
            A dictionary for each picture. If one class is right: the `class`, its `probability`, and the
            `probabilities` of all classes by name. If several classes can be right (sigmoid): the `classes` with a
            probability of at least 0.5, and the `probabilities`. If the outputs are numbers (raw): the `outputs` by
            name.

        Raises:
            ValueError: The file does not say how pictures are preprocessed, a picture has more than 8 bits for each
                channel, or the outputs are not [N, k].
            OSError: A picture can't be read, has another format than BMP, GIF, JPEG, PNG, TIFF or WebP, or has more
                than 50 million pixels before or after its shorter side is resized. The message names the picture.
        """
        if not isinstance(pictures, Tensor):
            many = isinstance(pictures, Sequence) and not isinstance(pictures, str)
            pictures = list(pictures) if many else [pictures]
        rows = []
        for start in range(0, len(pictures), BATCH_SIZE):
            part = pictures[start : start + BATCH_SIZE]
            if isinstance(part, Tensor):
                inputs = part
            else:
                inputs = torch.stack([self._prepared(picture, start + index) for index, picture in enumerate(part)])
            outputs = self(inputs)
            if outputs.ndim != 2:
                raise ValueError(
                    f"the outputs are a {describe(outputs)}; predict needs a model with outputs [N, k]. Call the "
                    "predictor itself, which returns the outputs"
                )
            rows += self._rows(outputs)
        return rows

    def _rows(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The rows of `predict` for outputs [N, k]."""
        if self.activation == "raw":
            return [{"outputs": dict(zip(self.classes, row.tolist(), strict=True))} for row in outputs]
        several = is_multi_label(self.activation)
        values = probabilities(outputs, self.activation)
        if several and values.shape[1] == 1 and len(self.classes) == 2:
            values, several = torch.cat([1 - values, values], 1), False
        rows: list[dict[str, Any]] = []
        for row in values.tolist():
            named = dict(zip(self.classes, row, strict=True))
            if several:
                rows.append({"classes": [name for name in named if named[name] >= 0.5], "probabilities": named})
            else:
                best = max(named, key=named.__getitem__)
                rows.append({"class": best, "probability": named[best], "probabilities": named})
        return rows

    def _prepared(self, picture: Any, index: int) -> Tensor:
        """The input for a picture or its file. `index` is its place in the list, for messages."""
        from PIL import Image

        if self.preprocessing is None:
            raise ValueError(
                "pictures: the model's file does not say how a picture becomes an input; give tensors [N, ...], or "
                "export the model with preprocessing="
            )
        named = isinstance(picture, (str, Path))
        place = f"pictures: number {index}, {picture if named else 'a picture of PIL'},"
        try:
            if not named:
                _check_pixels(picture, self.preprocessing.largest_resize)
                return self.preprocessing(picture)
            with Image.open(picture, formats=_PICTURES) as opened:
                _check_pixels(opened, self.preprocessing.largest_resize)
                opened.load()  # this raises an error for a truncated file
                return self.preprocessing(opened)
        except (FileNotFoundError, TypeError):
            raise
        except OSError as error:
            raise OSError(f"{place} can't be read: {error}") from error
        except (SyntaxError, EOFError, Image.DecompressionBombError) as error:  # Pillow raises these, too
            raise OSError(f"{place} can't be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"{place} can't be used: {error}") from error


def _check_pixels(picture: Any, resize: int) -> None:
    """Refuse a picture that has too many pixels, before or after its shorter side is resized."""
    size = getattr(picture, "size", None)
    width, height = size if isinstance(size, tuple) else (1, 1)  # an object that is no picture is refused later
    resized = resize * resize * max(width, height) // max(1, min(width, height))
    if width * height > MOST_PIXELS or resized > MOST_PIXELS:
        raise OSError(f"a picture of {width} x {height} pixels is too large; at most {MOST_PIXELS} pixels are read")


def load(path: str | Path, *, model: nn.Module | None = None, trusted: bool = False) -> Predictor:
    """Open a file that `Trainer.export` wrote.

    A `.safetensors` file runs no code. The computation in an `.onnx` file is run by onnxruntime, without Python code;
    it may be any computation. The sizes that these files state are compared with their bytes before anything is built.
    Opening a `.pt2` can run any code, because torch.export unpickles parts of it.

    Args:
        path: A file `.safetensors` or `.onnx`, or a file `.pt2` with `trusted=True`.
        model: The network that gets the weights. It is needed for a `.safetensors` of a network that is not of the zoo.
        trusted: Whether you trust the author of the file as you trust the author of a program that you run. It is not
            needed for a file that the same process wrote.

    Returns:
        A function of inputs, which also classifies pictures: see `Predictor.predict`.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file can't be read.
        ValueError: `Trainer.export` did not write the file; it is damaged or forged; it is a `.pt2` that is not
            trusted; or the model is missing or does not fit.
        ModuleNotFoundError: ONNX needs the extra `onnx`.

    Example:
        >>> from mxtorch import Trainer
        >>> net = nn.Linear(4, 2)
        >>> trainer = Trainer(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1), progress=False)
        >>> path = trainer.export("net.safetensors", example=torch.zeros(2, 4))
        >>> load(path, model=nn.Linear(4, 2))(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise ValueError(f"path: got the ending {path.suffix!r}{closest(path.suffix, _READERS)}")
    if path.suffix == ".pt2" and not trusted:
        content = path.read_bytes()  # read once, so that the compared bytes are those that are opened
        if was_written_here(content):
            return _torch_export(path, model, io.BytesIO(content))
        raise ValueError(
            f"{path}: opening a .pt2 can run any code, because torch.export unpickles parts of it. If you trust its "
            "author, give trusted=True; otherwise ask for a .safetensors or .onnx file, which run no Python code"
        )
    return read(path, path.suffix, model)


def read(path: Path, suffix: str, model: nn.Module | None = None) -> Predictor:
    """The same as `load`, for a file of any name in the format `suffix`. A `.pt2` is trusted."""
    try:
        return _READERS[suffix](path, model)
    except (ValueError, OSError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # a forged file can make the readers raise any type
        raise ValueError(f"{path} is damaged, or does not fit the network: {first_line(error)}") from error


def _safetensors(path: Path, model: nn.Module | None) -> Predictor:
    from safetensors import SafetensorError, safe_open

    untrusted = importlib.import_module("mxtorch.model_zoo.untrusted")
    try:
        untrusted.check_safetensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        with safe_open(path, "pt") as file:
            facts = read_facts((file.metadata() or {}).get(KEY), path)
            if model is None and not facts.zoo_name:
                raise ValueError(
                    f"{path} holds the weights of a network that is not of the zoo; give load(path, model=...)"
                )
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            if model is None:
                with torch.device("meta"):  # a forged file may name any network; tensors on this device take no memory
                    _check_fit(path, shapes, _of_the_zoo(facts, shapes))
            else:
                _check_fit(path, shapes, model)
            state = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    net = _of_the_zoo(facts, shapes) if model is None else model
    expected = net.state_dict()
    for name, tensor in state.items():
        kind = expected[name].dtype
        if tensor.dtype != kind and not (tensor.dtype in _FLOATS and kind in _FLOATS):
            raise ValueError(f"{path} does not fit the network: {name} is {tensor.dtype} instead of {kind}")
    net.load_state_dict(state)
    return Predictor(net.eval(), facts)


def _of_the_zoo(facts: Facts, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """The network that a file names, with a linear head of the size in the file, with or without a bias."""
    if not facts.zoo_name.startswith("timm/"):
        # The zoo's counts are for 1000 classes. Without its head, every network of the list has more than half of them.
        count = sum(math.prod(shape) for shape in shapes.values())
        if 4 * count < model_zoo.info(facts.zoo_name).parameters:
            raise ValueError(f"path: the file has only {count} numbers, so it is not for {facts.zoo_name}")
    net: Any = model_zoo.create(facts.zoo_name, in_channels=facts.channels)
    weight = shapes.get(f"{net._head_name}.weight")
    if weight is None:
        raise ValueError("path: the head of the network in the file is not one of the zoo; give load(path, model=...)")
    with_bias = f"{net._head_name}.bias" in shapes
    if weight != tuple(net.fc.weight.shape) or with_bias != (net.fc.bias is not None):
        net.fc = nn.Linear(net.fc.in_features, facts.outputs, bias=with_bias)
    assert isinstance(net, nn.Module)
    return net


def _check_fit(path: Path, shapes: dict[str, tuple[int, ...]], net: nn.Module) -> None:
    """Raise a ValueError unless the network has tensors of the same names and shapes as a file."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wrong = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} does not fit the network: {len(wrong)} tensors differ; for example {name[:80]} is "
            f"{list(shapes[name])[:8] if name in shapes else 'missing'} in the file and "
            f"{list(expected[name]) if name in expected else 'missing'} in the network"
        )


def _torch_export(path: Path, model: nn.Module | None, content: io.BytesIO | None = None) -> Predictor:
    extra = {KEY: ""}
    try:
        with open(path, "rb") if content is None else content as file:
            program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # a damaged file can make the reader raise any type
        raise ValueError(f"{path} is damaged or no file of torch.export: {type(error).__name__}") from error
    return Predictor(program.module(), read_facts(extra[KEY], path))


def _onnx(path: Path, model: nn.Module | None) -> Predictor:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('onnxruntime is not installed; pip install "mxtorch[onnx]"') from error
    try:
        check_onnx(path)
        # Constant folding would compute parts of the graph when the file is opened, and these may need any memory.
        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except (ModuleNotFoundError, OSError):
        raise
    except Exception as error:  # the errors of onnxruntime have no common class
        raise ValueError(f"{path} is damaged or no ONNX file: {type(error).__name__}: {error}"[:400]) from error
    facts = read_facts(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(session.get_outputs()) != 1:
        raise ValueError(f"{path} was not written by Trainer.export: it has {len(inputs)} inputs")
    name = inputs[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])

    return Predictor(run, facts)


_READERS: dict[str, Callable[[Path, nn.Module | None], Predictor]] = {
    ".safetensors": _safetensors,
    ".pt2": _torch_export,
    ".onnx": _onnx,
}
