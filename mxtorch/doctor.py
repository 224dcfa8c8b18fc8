"""What an installation consists of: versions, devices, caches, what is missing and what is wrong."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from mxtorch._version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "torchmetrics", "tensorboard", "numpy", "matplotlib", "safetensors")
# Loader processes hand batches over in shared memory, of which containers have 64 MiB unless they are given more.
_LEAST_SHARED_MEMORY = 256 * 2**20
_LEAST_FREE_DISK = 2**30
# A CPU-only wheel of torch in which torchvision's operators can't be registered.
_BROKEN_TORCH = "2.13.0+cpu"


@dataclass
class Report:
    """What was found. Printing it gives a section for each part.

    Attributes:
        sections: Lines by the title of their section.
        faults: What will not work, and what to do about it.
    """

    sections: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = dict(self.sections)
        parts["what is wrong"] = self.faults or ["nothing that could be seen"]
        return "\n".join(line for title, lines in parts.items() for line in [title, *(f"  {line}" for line in lines)])


def examine() -> Report:
    """Look at this installation. No file is written, and no address is asked.

    Example:
        >>> report = examine()
        >>> list(report.sections)
        ['versions', 'devices', 'caches', 'extras']
    """
    report = Report()
    report.sections["versions"] = _versions(report.faults)
    report.sections["devices"] = _devices(report.faults)
    report.sections["caches"] = _caches(report.faults)
    report.sections["extras"] = [f"{name}: {state}" for name, state in missing_by_extra().items()]
    return report


def _versions(faults: list[str]) -> list[str]:
    lines = [f"mxtorch {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    for name in _PACKAGES:
        version = _version_of(name)
        lines.append(f"{name} {version or 'is missing'}")
        if version is None:
            faults.append(f"{name} is missing: pip install {name}")
    if torch.__version__ == _BROKEN_TORCH:
        faults.append(f"torch {_BROKEN_TORCH} breaks torchvision: pip install 'torch!=2.13.0'")
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # operators of another version of torch
        faults.append(f"torchvision can't be imported with this torch: pip install -U torch torchvision ({error})")
    else:
        lines.append(f"torchvision works with this torch ({len(torchvision.models.list_models())} models)")
    return lines


def _devices(faults: list[str]) -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"cpu: {cores} cores, {torch.get_num_threads()} threads of torch"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            half = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16"
            lines.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {half}")
    elif torch.version.cuda is not None:
        lines.append(f"cuda: torch was built for CUDA {torch.version.cuda}, and finds no GPU")
    if torch.backends.mps.is_available():
        lines.append("mps: there")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        lines.append(f"shared memory for loader processes: {_in_words(size)}")
        if size < _LEAST_SHARED_MEMORY:
            faults.append(
                f"/dev/shm has {_in_words(size)}: loader processes may die of it; give the container more "
                "(docker run --shm-size=8g), or DataLoader(num_workers=0)"
            )
    return lines


def _caches(faults: list[str]) -> list[str]:
    from mxtorch import model_zoo

    weights = importlib.import_module(f"{model_zoo.__name__}.weights")
    zoo = weights.cache_folder()
    lines = []
    for name, folder in (("weights of the zoo", zoo), ("torch", Path(torch.hub.get_dir()) / "checkpoints")):
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        size = _in_words(sum(path.stat().st_size for path in files))
        lines.append(f"{name}: {folder}, {len(files)} files, {size}")
    mirror = os.environ.get("MXTORCH_WEIGHTS_MIRROR")
    lines.append(f"mirror: {mirror or 'none (MXTORCH_WEIGHTS_MIRROR)'}")
    lines.append(f"offline: {os.environ.get('MXTORCH_OFFLINE') or 'no (MXTORCH_OFFLINE)'}")
    here = [
        name
        for name in model_zoo.list_models()
        if any(weights.find_here(one, []) for one in model_zoo.info(name).weights)
    ]
    lines.append(f"pretrained and on this machine: {', '.join(here) or 'none'}")
    existing = next(folder for folder in (zoo, *zoo.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        faults.append(f"{existing} can't be written, so weights can't be kept; set MXTORCH_HOME to another folder")
    elif shutil.disk_usage(existing).free < _LEAST_FREE_DISK:
        faults.append(f"the disk of {existing} is nearly full; set MXTORCH_HOME to another folder")
    return lines


def missing_by_extra() -> dict[str, str]:
    """For each extra of this package "installed", or what is missing with the command that installs it."""
    try:
        about = metadata.metadata("mxtorch")
        requirements = metadata.requires("mxtorch") or []
    except metadata.PackageNotFoundError:
        return {"unknown": "mxtorch is used from its sources without being installed: pip install -e ."}
    states = {}
    for extra in about.get_all("Provides-Extra") or []:
        names = [
            match[1]
            for line in requirements
            if (match := re.match(r"([\w.-]+)", line)) and re.search(rf"extra == ['\"]{extra}['\"]", line)
        ]
        missing = sorted(name for name in names if name != "mxtorch" and _version_of(name) is None)
        states[extra] = f'lacks {", ".join(missing)}: pip install "mxtorch[{extra}]"' if missing else "installed"
    return states


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _in_words(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
