"""Predictions with an exported file, without a trainer and without the code that trained the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch import model_zoo
from mxtorch._checks import closest
from mxtorch._structure import describe
from mxtorch.exporting.facts import KEY, Facts
from mxtorch.exporting.outputs import is_multi_label, probabilities

BATCH_SIZE = 32


class Predictor:
    """A network from a file, with its preprocessing and the names of its classes.

    Args:
        run: Computes outputs [N, ...] from inputs [N, ...], on the CPU.
        facts: What the file says about its model.

    Attributes:
        classes: The names of the outputs; their numbers if they have no names.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
        activation: What the outputs are: `"softmax"`, `"sigmoid"`, `"exp"`, `"probabilities"` or `"raw"`; see
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
        """Classify pictures, or give the numbers that a model computes from them.

        What is done to the outputs is in the file, because it follows from the loss that the model was trained with.

        Args:
            pictures: A file, a picture of PIL, or a list of these; or inputs [N, ...] that are already preprocessed. A
                file is opened as the data sets of torchvision do: transparency is dropped, EXIF data are ignored.

        Returns:
            A dictionary for each. Where one class is right: the `class`, its `probability`, and the `probabilities` of
            all classes by name. Where several can be right (sigmoid): the `classes` with a probability of at least a
            half, and the `probabilities`. Where outputs are numbers (raw): the `outputs` by name.

        Raises:
            ValueError: The file does not say how pictures are preprocessed; a picture has more than 8 bits a channel;
                the outputs are not [N, k].
            OSError: A picture can't be read; it is named.
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
                    f"the outputs are a {describe(outputs)}; predict takes models with outputs [N, k], so call the "
                    "predictor itself, which gives the outputs"
                )
            rows += self._rows(outputs)
        return rows

    def _rows(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The answers for outputs [N, k]."""
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
        """The input for a picture or its file; `index` is its place in the list, for messages."""
        from PIL import Image

        if self.preprocessing is None:
            raise ValueError(
                "pictures: the file does not say how a picture becomes an input; give tensors [N, ...], or export the "
                "model with preprocessing="
            )
        named = isinstance(picture, (str, Path))
        place = f"pictures: number {index}, {picture if named else 'a picture of PIL'},"
        try:
            if not named:
                return self.preprocessing(picture)
            with Image.open(picture) as opened:
                opened.load()  # a truncated file is found here
                return self.preprocessing(opened)
        except (FileNotFoundError, TypeError):
            raise
        except OSError as error:
            raise OSError(f"{place} can't be read: {error}") from error
        except (SyntaxError, EOFError, Image.DecompressionBombError) as error:  # how Pillow answers some damaged files
            raise OSError(f"{place} can't be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"{place} can't be taken: {error}") from error


def load(path: str | Path, *, model: nn.Module | None = None) -> Predictor:
    """Open a file that `Trainer.export` wrote. Of the file, only the exported computation is run, no Python code.

    Args:
        path: `.safetensors`, `.pt2` or `.onnx`.
        model: The network that gets the weights. Needed for a `.safetensors` of a network that is not of the zoo.

    Returns:
        A function of inputs, which also classifies pictures: see `Predictor.predict`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It was not written by `Trainer.export`, or it is damaged; the model is missing, or does not fit.
        ModuleNotFoundError: ONNX needs the extra `onnx`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    if path.suffix not in _READERS:
        raise ValueError(f"path: got the ending {path.suffix!r}{closest(path.suffix, _READERS)}")
    return _READERS[path.suffix](path, model)


def _safetensors(path: Path, model: nn.Module | None) -> Predictor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = Facts.from_json((file.metadata() or {}).get(KEY), path)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if model is None and not facts.zoo_name:
        raise ValueError(f"{path} holds weights of a network that is not of the zoo; give load(path, model=...)")
    net = model_zoo.create(facts.zoo_name, in_channels=facts.channels) if model is None else model
    if model is None:
        _fit_head(net, state, facts)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    return Predictor(net.eval(), facts)


def _fit_head(net: Any, state: dict[str, Tensor], facts: Facts) -> None:
    """Give the network a linear head of the size that the file has, with or without a bias."""
    weight = state.get(f"{net._head_name}.weight")
    if weight is None:
        raise ValueError("path: the head of the file's network is not one of the zoo; give load(path, model=...)")
    if weight.shape != net.fc.weight.shape or (f"{net._head_name}.bias" in state) != (net.fc.bias is not None):
        net.fc = nn.Linear(net.fc.in_features, facts.outputs, bias=f"{net._head_name}.bias" in state)


def _torch_export(path: Path, model: nn.Module | None) -> Predictor:
    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ValueError(f"{path} is damaged or no file of torch.export: {type(error).__name__}") from error
    text: Any = extra[KEY]
    facts = Facts.from_json(text.decode() if isinstance(text, bytes) else text, path)
    return Predictor(program.module(), facts)


def _onnx(path: Path, model: nn.Module | None) -> Predictor:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('onnxruntime is missing; pip install "mxtorch[onnx]"') from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of onnxruntime have no other common class
        raise ValueError(f"{path} is damaged or no ONNX file: {type(error).__name__}") from error
    facts = Facts.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])

    return Predictor(run, facts)


_READERS: dict[str, Callable[[Path, nn.Module | None], Predictor]] = {
    ".safetensors": _safetensors,
    ".pt2": _torch_export,
    ".onnx": _onnx,
}
