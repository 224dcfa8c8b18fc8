"""Forged files of every format. They are opened in separate processes, which report the memory that they requested.

`python tests/faults/forged_files.py FOLDER 1` writes the files into a folder, tries them, and prints a line of JSON for
each: its name and size, the error, whether its code ran, and how many bytes of address space were requested.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import os
import random
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from export_forgeries import FACTS, of_onnx, of_pictures, of_safetensors, small_net
from safetensors.torch import save as packed_safetensors
from torch import nn
from torch_forgeries import of_torch, zipped

import model_zoo
from mxtorch import CheckpointError, ScheduledOptim, Trainer, exporting
from mxtorch.checkpointing import file as checkpoints
from mxtorch.exporting.__main__ import main as exporting_main
from mxtorch.exporting.facts import KEY

SECONDS = 20
MOST_MEMORY = 6 << 30
LITTLE, LARGE = 16 << 20, 100_000


def trainer() -> Trainer:
    """A trainer for the forged checkpoints."""
    net = small_net()
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)


# ---------------------------------------------------------------- entry points, with the errors that are documented


def command(path: Path) -> None:
    """The command line reports errors by its status."""
    if exporting_main([str(path), str(path)]):
        raise ValueError("status 1")


def predict(path: Path) -> None:
    """Predict a picture with a predictor that resizes it."""
    from mxtorch.exporting.limits import read_facts

    exporting.Predictor(lambda inputs: torch.zeros(len(inputs), 2), read_facts(json.dumps(FACTS), path)).predict(path)


ENTRIES: dict[str, tuple[Callable[[Path], Any], tuple[type[Exception], ...]]] = {
    "Trainer.load": (lambda path: trainer().load(path), (CheckpointError,)),
    "checkpointing.read": (checkpoints.read, (CheckpointError,)),
    "model_zoo.create": (lambda path: model_zoo.resnet10t(weights=path), (ValueError,)),
    "exporting.load": (exporting.load, (ValueError,)),
    "exporting.load(model=)": (lambda path: exporting.load(path, model=small_net()), (ValueError,)),
    "python -m mxtorch.exporting": (command, (ValueError,)),
    "Predictor.predict": (predict, (ValueError, OSError)),
}
_OF_ENDING = {
    ".ckpt": ("Trainer.load", "checkpointing.read"),
    ".pth": ("model_zoo.create",),
    ".safetensors": ("exporting.load", "exporting.load(model=)", "model_zoo.create"),
    ".onnx": ("exporting.load", "python -m mxtorch.exporting"),
    ".pt2": ("exporting.load",),
    ".png": ("Predictor.predict",),
}


def mutations(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Copies of a valid file with bytes changed, removed, or inserted."""
    chance = random.Random(len(content))
    for number in range(count):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            kind = chance.randrange(3)
            if kind == 0:
                changed[place] ^= 1 << chance.randrange(8)
            elif kind == 1:
                changed[place : place + chance.randint(1, 60)] = chance.randbytes(chance.randint(0, 60))
            else:
                changed[place : place + 8] = struct.pack("<Q", 1 << chance.randrange(64))
        yield f"mutation {number}", bytes(changed)


def files(folder: Path, proof: str) -> Iterator[tuple[str, str, bytes]]:
    """The ending, name and content of every file."""
    for ending in (".ckpt", ".pth"):
        for name, content in of_torch(proof):
            yield ending, name, content
    yield from ((".safetensors", name, content) for name, content in of_safetensors())
    yield from ((".onnx", name, content) for name, content in of_onnx(folder))
    yield from ((".png", name, content) for name, content in of_pictures(proof))
    yield from ((".pt2", name, content) for name, content in itertools.islice(of_torch(proof), 4))
    checkpoint = io.BytesIO()
    torch.save(trainer().checkpoint_content(), checkpoint)
    for ending, good in ((".ckpt", checkpoint.getvalue()), (".onnx", next(of_onnx(folder))[1])):
        yield from ((ending, name, content) for name, content in mutations(good, 30))
    good = packed_safetensors(small_net().state_dict(), metadata={KEY: json.dumps(FACTS)})
    yield from ((".safetensors", name, content) for name, content in mutations(good, 30))


# ---------------------------------------------------------------- measuring


def memory() -> dict[str, int]:
    """The address space of this process in bytes: the present size and the largest size since its start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmSize", "VmPeak"))}


class Opener:
    """A forked process that opens files. Requested memory counts even if it was never used.

    Attributes:
        fresh: Whether it has opened none yet.
    """

    def __init__(self) -> None:
        files, mine = os.pipe()
        self._results, results = os.pipe()
        self.fresh = True
        self._process = os.fork()
        if self._process == 0:
            os.close(mine)
            _open_files(files, results)
            os._exit(0)
        os.close(files)
        os.close(results)
        self._files, self._lines = mine, os.fdopen(self._results, "rb")

    def open(self, entry: str, path: Path) -> dict[str, Any]:
        """What came of a file: the error, whether it is documented, and the memory that was asked for so far."""
        self.fresh = False
        os.write(self._files, json.dumps([entry, str(path)]).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            return {"error": f"ended with status {self.end()}", "documented": False, "asked": 0}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> int:
        """End the process; its status."""
        os.close(self._files)
        self._lines.close()
        return os.waitpid(self._process, 0)[1]


def _open_files(files: int, results: int) -> None:
    start = memory()["VmSize"]
    resource.setrlimit(resource.RLIMIT_AS, (start + MOST_MEMORY, start + MOST_MEMORY))
    for line in os.fdopen(files, "rb"):
        entry, path = json.loads(line)
        function, documented = ENTRIES[entry]
        outcome = {"error": "", "documented": True}
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(Path(path))
        except documented as error:
            outcome["error"] = f"{type(error).__name__}: {error}"[:300]
        except BaseException as error:
            outcome = {"error": f"{type(error).__name__}: {error}"[:300], "documented": False}
        signal.alarm(0)
        os.write(results, json.dumps({**outcome, "asked": memory()["VmPeak"] - start}).encode() + b"\n")


class Openers:
    """Opens a file in a process that may have opened others, and again in a fresh one if anything is to be seen.

    Large files are opened in a fresh process at once. A process that has asked for little in all has asked for no more
    for each of its files. Each fork costs more than most files.

    Args:
        shares: Whether a process opens more than one file.
    """

    def __init__(self, shares: bool) -> None:
        self._opener, self._shares = Opener(), shares

    def open(self, entry: str, path: Path) -> dict[str, Any]:
        """What came of a file."""
        if path.stat().st_size > LARGE and not self._opener.fresh:
            self._opener.end()
            self._opener = Opener()
        while True:
            fresh, result = self._opener.fresh, self._opener.open(entry, path)
            seen = not result["documented"] or result["asked"] > LITTLE
            if seen or not self._shares:
                if not result["error"].startswith("ended"):
                    self._opener.end()
                self._opener = Opener()
            if fresh or not seen:
                return result


def warm_up(folder: Path, proof: str) -> None:
    """Import the modules of all entry points, so that their memory is not attributed to a file."""
    samples: dict[str, bytes] = {".ckpt": zipped(b"\x80\x02N."), ".png": b"", ".pt2": b""}
    samples[".pth"] = samples[".ckpt"]
    samples[".safetensors"] = packed_safetensors(small_net().state_dict(), metadata={KEY: json.dumps(FACTS)})
    for ending, content in samples.items():
        path = folder / f"warm{ending}"
        path.write_bytes(content)
        for entry in _OF_ENDING[ending]:
            with contextlib.suppress(Exception):
                ENTRIES[entry][0](path)
    import onnxruntime  # noqa: F401 - no session is made, because its threads do not survive a fork


def main() -> None:
    """Open every n-th file with one entry point; with n = 1, open all files with all entry points."""
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    proof = folder / "proof"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discard the messages of the runtimes
    warm_up(folder, str(proof))
    gc.freeze()  # a forked process that looked through all of this would copy it
    openers = Openers(shares=step > 1)
    for number, (ending, name, content) in enumerate(files(folder, str(proof))):
        if number % step:
            continue
        path = folder / f"{number}{ending}"
        path.write_bytes(content)
        entries = _OF_ENDING[ending]
        for entry in entries if step == 1 else entries[number // step % len(entries) :][:1]:
            result = openers.open(entry, path)
            ran = proof.exists()
            proof.unlink(missing_ok=True)
            row = {"entry": entry, "file": f"{name} ({ending})", "size": len(content), "ran": ran, **result}
            print(json.dumps(row), flush=True)
        path.unlink()


if __name__ == "__main__":
    main()
