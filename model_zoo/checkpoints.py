"""Loading a file of weights into a network. No code from the file runs, and every name and shape must fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .catalogue import PACKAGED
from .heads import head_of
from .renames import rename
from .untrusted import check_safetensors, check_torch_file

IMAGENET_CLASSES = 1000
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_IN_ORDER = {Path(file.name).name for file in PACKAGED.values()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Only tensors are unpickled, and nothing larger than the file is built.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged, can only be read by unpickling, or does not hold a state_dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            check_safetensors(path)
            return load_safetensors(str(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"weights: {path} is not a safetensors file ({error})") from error
    try:
        with open(path, "rb") as file:
            check_torch_file(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's reader raises many types for damaged files
        raise ValueError(
            f"weights: {path} can't be read as plain tensors ({type(error).__name__}: {_first_line(error)}). The file "
            "is damaged or forged, or it needs unpickling, which can run any code and is refused; open it with the "
            "program that made it, and save its state_dict with torch.save or safetensors"
        ) from error
    return _tensors(state, path)


def load_state(net: nn.Module, state: dict[str, Tensor], family: str, path: Path) -> bool:
    """Load tensors into a network of the zoo. If a name or shape does not fit, the network is not changed.

    Names of pretrained-models.pytorch are replaced by those of the network. Networks from TensorFlow have a background
    class before the 1000 classes; its row is left out. If the file's classifier has 1000 classes and the network's
    classifier has another number, the network keeps its own classifier.

    Args:
        net: The network, with the number of classes that the user wants.
        state: The tensors by name.
        family: The network's family, a key of `families.FAMILIES`, or an empty string.
        path: The file of the tensors, for messages.

    Returns:
        Whether the classifier was loaded, too.

    Raises:
        ValueError: Tensors have other names or shapes, or the classifier has another number of classes.
    """
    expected = net.state_dict()
    if path.name in _IN_ORDER and len(state) == len(expected):
        # The names in this file are those of another library, but the tensors are in timm's order.
        state = dict(zip(expected, state.values(), strict=True))
    state = rename(state, family, expected)
    for name, tensor in expected.items():
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = tensor  # files of torch before 0.4.1 do not have this counter
    state, with_head = _fit_head(net, state, path)
    wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    unexpected = [name for name in state if name not in expected]
    if wrong or unexpected:
        detail = "; ".join(_difference(name, expected, state) for name in wrong[:3]) or f"unexpected {unexpected[:3]}"
        raise ValueError(
            f"weights: {path} is for another model: {len(wrong)} of {len(expected)} tensors do not fit and "
            f"{len(unexpected)} are unexpected ({detail})"
        )
    net.load_state_dict(state)
    return with_head


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"weights: {path} does not hold a state_dict; save net.state_dict() and give that file")
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0][:200]


def _fit_head(net: nn.Module, state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], bool]:
    head = net._head_name
    own = {f"{head}.{name}": tensor for name, tensor in head_of(net).state_dict().items()}
    weight = state.get(f"{head}.weight")
    if weight is None or f"{head}.weight" not in own:
        return state, True
    rows, wanted = len(weight), len(own[f"{head}.weight"])
    if rows == IMAGENET_CLASSES + 1:
        state = {name: tensor[1:] if name in own else tensor for name, tensor in state.items()}
        rows -= 1
    if rows == wanted:
        return state, True
    if rows == IMAGENET_CLASSES:
        return {**state, **own}, False
    raise ValueError(
        f"weights: the classifier in {path} has {rows} classes, but num_classes is {wanted}; give num_classes={rows}, "
        "and assign net.fc afterwards for another number"
    )


def _difference(name: str, expected: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    if name not in state:
        return f"{name} is missing"
    return f"{name} is {list(state[name].shape)} instead of {list(expected[name].shape)}"
