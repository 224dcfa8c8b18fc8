"""Processes that train together, for tests: forked here, so that none has to import torch again."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        status: The exit status; negative the number of the signal that killed it.
        value: What the function returned.
        output: What it wrote to standard output and error.
        seconds: When it ended, counted from the start of all.
    """

    status: int
    value: Any
    output: str
    seconds: float


def launch(count: int, function: Callable[..., Any], *arguments: Any, seconds: float = 90.0) -> list[Ended]:
    """Run `function(rank, *arguments)` in processes of one world, and wait for them.

    Args:
        count: The number of processes.
        function: Called in each.
        arguments: After the rank.
        seconds: A process that takes longer is killed, and has the status -9.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        pids = [_start(rank, count, port, folder, function, arguments) for rank in range(count)]
        ended: dict[int, Ended] = {}
        while len(ended) < count:
            for rank, pid in enumerate(pids):
                if rank in ended:
                    continue
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[rank] = _ended(folder, rank, os.waitstatus_to_exitcode(status), time.monotonic() - started)
            if time.monotonic() - started > seconds:
                for rank, pid in enumerate(pids):
                    if rank not in ended:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return [ended[rank] for rank in range(count)]


def values(ended: list[Ended]) -> list[Any]:
    """What all returned; an error that shows what they wrote where one failed."""
    if any(one.status for one in ended):
        raise AssertionError("\n".join(f"--- {rank}: {one.status}\n{one.output}" for rank, one in enumerate(ended)))
    return [one.value for one in ended]


def _ended(folder: Path, rank: int, status: int, seconds: float) -> Ended:
    result = folder / f"{rank}.value"
    value = pickle.loads(result.read_bytes()) if result.exists() else None
    return Ended(status, value, (folder / f"{rank}.output").read_text(), seconds)


def _start(
    rank: int, count: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(folder / f"{rank}.output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
        torch.set_num_threads(1)
        gc.disable()  # what the parent has left is not for the children to finalize
        _forget_accelerate()
        value = function(rank, *arguments)
        (folder / f"{rank}.value").write_bytes(pickle.dumps(value))
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _forget_accelerate() -> None:
    """Reset the state that Accelerate keeps for a process, which a test before may have set in the parent."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
