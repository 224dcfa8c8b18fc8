"""Whether a change of the code changes a bit of what it computes: small trainings, recorded before, compared after.

    python -m benchmarks.parity record FILE [--only NAME,...] [--skip-search]
    python -m benchmarks.parity compare FILE [--only NAME,...] [--skip-search]

A setting is a training of a second or less: a precision, a schedule, a callback, a kind of data. Recorded are the
figures of every step and epoch (without times and speeds), weights and buffers, the state of the optimizers,
predictions, and where the random generators stand. `compare` runs the settings again, names the first thing that
differs in each, and exits with 1 if there is any. Bits depend on the processor and on torch, so both files have to come
from one machine.

The settings `find_lr...` record the search as well; `--skip-search` leaves them out where a change is meant to change
the search.

To record a checkout OTHER that has no such script, run this one (in HERE) from a folder that is neither:

    PYTHONPATH=OTHER:HERE python -m benchmarks.parity record FILE
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import random
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mxtorch
from benchmarks.parity import training, uses  # noqa: F401  (importing them fills SETTINGS)
from benchmarks.parity.tasks import SETTINGS

# Tensors with more elements are kept as their hash.
MOST_ELEMENTS = 20_000
SEARCH = "find_lr"


def run(name: str) -> dict[str, Any]:
    """The result of a setting, as plain values and tensors."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return plain(SETTINGS[name](Path(folder)))


def plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and tensors that share no memory with the training; what `torch.load` reads safely.

    Raises:
        TypeError: There is something else in the value.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.contiguous().clone() if value.numel() <= MOST_ELEMENTS else [list(value.shape), _hash(value)]
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, such as NumPy's float, the plain number
    raise TypeError(f"value: got {value!r}; settings give numbers, text, tensors, and lists and dictionaries of them")


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two results differ, and in what, in the order of the first one; numbers are compared by their bits."""
    if type(before) is not type(after):
        yield f"{place}: {type(before).__name__} {_short(before)} became {type(after).__name__} {_short(after)}"
    elif isinstance(before, dict):
        if missing := [key for key in before if key not in after]:
            yield f"{place}: lacks {missing[0]!r}"
        for key in before:
            if key in after:
                yield from differences(before[key], after[key], f"{place}.{key}" if place else str(key))
        if added := [key for key in after if key not in before]:
            yield f"{place}: has {added[0]!r} besides"
    elif isinstance(before, list):
        if len(before) != len(after):
            yield f"{place}: {len(before)} entries became {len(after)}"
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from differences(one, other, f"{place}[{index}]")
    elif isinstance(before, torch.Tensor):
        if before.dtype != after.dtype or before.shape != after.shape:
            yield f"{place}: {before.dtype} {list(before.shape)} became {after.dtype} {list(after.shape)}"
        elif (changed := _changed_elements(before, after)).any():
            first = int(changed.nonzero()[0])
            one, other = before.flatten()[first].item(), after.flatten()[first].item()
            yield f"{place}: {int(changed.sum())} of {before.numel()} elements, the first {one!r} became {other!r}"
    elif isinstance(before, float):
        if struct.pack("d", before) != struct.pack("d", after):
            yield f"{place}: {before!r} became {after!r}"
    elif before != after:
        yield f"{place}: {_short(before)} became {_short(after)}"


def _changed_elements(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Which elements have other bits, so that NaN equals NaN and 0 does not equal -0."""
    if before.numel() == 0:
        return torch.zeros(0, dtype=torch.bool)
    one, other = (tensor.contiguous().flatten()[:, None].view(torch.uint8) for tensor in (before, after))
    return (one != other).any(dim=1)


def _hash(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def machine() -> dict[str, str]:
    """What bits depend on beside the code."""
    return {
        "torch": str(torch.__version__),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
    }


def record(file: Path, names: list[str]) -> int:
    """Run the settings and write what they gave."""
    results = {}
    for name in names:
        started = time.perf_counter()
        results[name] = run(name)
        print(f"{name:<28} {time.perf_counter() - started:6.2f} s", flush=True)
    torch.save({"machine": machine(), "source": str(Path(mxtorch.__file__).parent), "settings": results}, file)
    print(f"{len(results)} settings recorded in {file}")
    return 0


def compare(file: Path, names: list[str]) -> int:
    """Run the settings again; 1 where a result is not, bit for bit, the one in the file."""
    recorded = torch.load(file, weights_only=True)
    print(f"compared with {recorded['source']}")
    for difference in differences(recorded["machine"], machine()):
        print(f"WARNING: another machine, so bits may differ for that reason: {difference}")
    equal = 0
    for name in names:
        started = time.perf_counter()
        if name not in recorded["settings"]:
            found = ["it was not recorded"]
        else:
            try:
                found = list(differences(recorded["settings"][name], run(name)))
            except Exception as error:  # one setting that fails is a row of the report
                found = [f"it fails: {type(error).__name__}: {error}"]
        equal += not found
        verdict = "equal" if not found else f"DIFFERS in {len(found)} places; {found[0]}"
        print(f"{name:<28} {time.perf_counter() - started:6.2f} s  {verdict}", flush=True)
    print(f"{equal} of {len(names)} settings are bit for bit equal")
    return int(equal < len(names))


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", help="names of settings, separated by commas")
    parser.add_argument("--skip-search", action="store_true", help=f"leave out the settings that begin with {SEARCH}")
    arguments = parser.parse_args()
    names = list(SETTINGS) if arguments.only is None else arguments.only.split(",")
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"--only: got {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    if arguments.skip_search:
        names = [name for name in names if not name.startswith(SEARCH)]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"mxtorch from {Path(mxtorch.__file__).parent}")
    return (record if arguments.what == "record" else compare)(arguments.file, names)


if __name__ == "__main__":
    sys.exit(main())
