"""Predictions with an exported file, without a trainer and without the code that trained the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch import model_zoo
from mxtorch._checks import closest
from mxtorch.exporting.facts import KEY, Facts

BATCH_SIZE = 32


class Predictor:
    """A network from a file, with its preprocessing and the names of its classes.

    Args:
        run: Computes outputs [N, ...] from inputs [N, ...], on the CPU.
        facts: What the file says about its model.

    Attributes:
        classes: The names of the outputs; their numbers if they have no names.
        preprocessing: How a picture becomes an input; None if inputs are not pictures.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], facts: Facts) -> None:
        self._run = run
        self._facts = facts
        self.classes = facts.classes or tuple(str(index) for index in range(facts.outputs))
        self.preprocessing = facts.preprocessing

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of the network, [N, ...], for inputs [N, ...] that are already preprocessed."""
        with torch.no_grad():
            return self._run(inputs)

    def predict(self, pictures: Any) -> list[dict[str, Any]]:
        """Classify pictures.

        Args:
            pictures: A file, a picture of PIL, or a list of these; or inputs [N, ...] that are already preprocessed.

        Returns:
            A dictionary for each: the `class`, its `probability`, and the `probabilities` of all classes by name.

        Raises:
            ValueError: The file does not say how pictures are preprocessed.
            OSError: A picture can't be read.
        """
        if not isinstance(pictures, Tensor):
            many = isinstance(pictures, Sequence) and not isinstance(pictures, str)
            pictures = list(pictures) if many else [pictures]
        rows = []
        for start in range(0, len(pictures), BATCH_SIZE):
            part = pictures[start : start + BATCH_SIZE]
            inputs = part if isinstance(part, Tensor) else torch.stack([self._prepared(picture) for picture in part])
            for probabilities in self(inputs).softmax(1):
                named = dict(zip(self.classes, probabilities.tolist(), strict=True))
                best = max(named, key=named.__getitem__)
                rows.append({"class": best, "probability": named[best], "probabilities": named})
        return rows

    def _prepared(self, picture: Any) -> Tensor:
        if self.preprocessing is None:
            raise ValueError("pictures: the file does not say how a picture becomes an input; give tensors [N, ...]")
        if isinstance(picture, (str, Path)):
            from PIL import Image

            with Image.open(picture) as opened:
                picture = opened.convert("RGB")
        prepared = self.preprocessing.transforms(channels=self._facts.channels)(picture)
        assert isinstance(prepared, Tensor)
        return prepared


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
