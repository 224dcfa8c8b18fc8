"""What every tool says for every task, kept on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from mxtorch.lr_finder.estimate import Estimate, estimate
from mxtorch.lr_finder.heats import Heat
from tqdm import tqdm

import mxtorch
from benchmarks.lr_bench import peers
from benchmarks.lr_bench.data import CACHE
from benchmarks.lr_bench.oracle import USES
from benchmarks.lr_bench.tasks import TASKS, Task

Found = dict[tuple[str, str, int], dict[str, Any]]  # by task, finder, seed


def collect(tasks: Sequence[Task], finders: Sequence[str], seeds: Iterable[int], folder: Path, pool: Executor) -> Found:
    """The suggestions of each finder for each task and seed; those not in the cache are asked for."""
    digests = {task.name: task.digest(folder) for task in tasks}
    runs = [(task.name, finder, seed) for seed in seeds for finder in finders for task in tasks]
    paths = {run: _path(run, digests[run[0]]) for run in runs}
    missing = [run for run in runs if not paths[run].exists()]
    jobs = [(*run, folder) for run in missing]
    for run, found in zip(
        missing, tqdm(pool.map(_ask, jobs), total=len(jobs), desc="suggestions", disable=not jobs), strict=True
    ):
        paths[run].parent.mkdir(parents=True, exist_ok=True)
        paths[run].write_text(json.dumps(found))
    return {run: _read_again(json.loads(path.read_text())) for run, path in paths.items()}


def _read_again(said: dict[str, Any]) -> dict[str, Any]:
    """Of a recorded search, what the estimator makes of it now; a search is long, reading it is not."""
    if "search" not in said:
        return said
    reading = read(said["search"], said["held_out"])
    return {
        **said,
        **{use: reading.suggestions.get(use) for use in USES},
        "intervals": reading.intervals,
        "status": reading.status,
    }


def read(search: dict[str, Any], held_out: Iterable[Any], *, heats: bool = True) -> Estimate:
    """The estimate of a recorded search."""
    return estimate(
        search["rates"],
        search["losses"],
        [tuple(point) for point in held_out],
        ended_early=search["ended_early"],
        heats=[Heat(*heat) for heat in search["heats"]] if heats else (),
    )


def _ask(job: tuple[str, str, int, Path]) -> dict[str, Any]:
    name, finder, seed, folder = job
    task = next(task for task in TASKS if task.name == name)
    return peers.suggest(finder, task, folder, seed)


def _path(run: tuple[str, str, int], digest: str) -> Path:
    _, finder, seed = run
    key = hashlib.sha256(f"{digest} {finder} {_version(finder)} {seed}".encode()).hexdigest()[:20]
    return CACHE / "suggestions" / f"{key}.json"


def _version(finder: str) -> str:
    """A peer's version; of mxtorch the sources that search, which change more often than its version."""
    if finder.startswith("mxtorch"):
        folder = Path(mxtorch.__file__).parent / "lr_finder"
        sources = [folder / f"{name}.py" for name in ("heats", "held_out", "search", "sweep")]
        return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    package = peers.PACKAGES.get(finder.split(" ")[0])
    return "" if package is None else importlib.metadata.version(package)
