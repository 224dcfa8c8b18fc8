"""An exception on one process ends the others, in seconds and with its message.

Processes that train together wait for one another in every step. One that has left with an exception, or was killed,
leaves the others waiting, for half an hour by torch's default. So each tells what ended it through torch's store (a
table that all processes can read), and in each a thread looks there, and at whether the other processes of the machine
are alive. A process that waits in vain is woken by its broken connection, and raises what the store says. Where nothing
wakes it, as in a kernel of NCCL or where the failed process lives on, the thread ends it: nothing in Python can break
off a collective that has begun.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, NoReturn

import torch.distributed as dist

from mxtorch.engines import processes

# How often the thread looks, how long a process may go on after another's failure before it is ended, and how long
# the failed one stays for the others to read its message. In seconds.
LOOK_EVERY, GRACE, LINGER = 0.25, 5.0, 5.0
# The exit status of a process that is ended from within a collective.
ENDED = 70
_CONNECTION_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "process group")


class ProcessFailedError(RuntimeError):
    """Another process failed or is gone; the message says which, and why."""


class Togetherness:
    """A block that all processes are in together.

    It may be entered again within itself: the outermost counts. At its end all processes wait for one another, so that
    none that is still in it misses one that has done its part and ended.
    """

    def __init__(self) -> None:
        import psutil  # Accelerate needs it, too

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        own = psutil.Process()
        others = processes.gather((_machine(), own.pid, own.create_time()))
        self._alive = {
            rank: (pid, born)
            for rank, (machine, pid, born) in enumerate(others)
            if machine == _machine() and rank != self.rank
        }
        store: Any = dist.distributed_c10d.PrefixStore("mxtorch", dist.distributed_c10d._get_default_store())
        self._store = store.clone() if hasattr(store, "clone") else store
        self._depth = 0
        self._block = 0  # each has its own entries in the store: processes may go on after an error of all of them
        self._look_every = LOOK_EVERY * max(1.0, self.world_size / 64)
        self._seen: str | None = None  # read while the store was there
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._acknowledged = False

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._left.clear()
            self._block += 1
            self._acknowledged, self._seen = False, None
            self._thread = threading.Thread(target=self._watch, name="watches the other processes", daemon=True)
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        try:
            if error is None:
                processes.any_of(False)  # leave together
                return
        except RuntimeError as lost:
            error = lost
        finally:
            self._left.set()
            if self._thread is not None:
                self._thread.join()
        if isinstance(error, RuntimeError) and _is_of_connection(error):
            self._raise_cause(error)
        self._tell(error)

    def _raise_cause(self, error: BaseException) -> NoReturn:
        """Raise what broke the connection."""
        end = time.monotonic() + LINGER
        while (cause := self._cause()) is None and time.monotonic() < end:
            time.sleep(0.05)
        if cause is None:
            cause = f"the connection to another process broke ({_first_line(error)}); it may have been killed"
        self._acknowledge()
        raise ProcessFailedError(self._sentence(cause)) from error

    def _tell(self, error: BaseException) -> None:
        """Let the others know what ended this process, and stay until they do."""
        try:
            what = "".join(traceback.format_exception_only(error)).strip()
            message = f"process {self.rank} of {self.world_size}: {what}"[:8000]
            self._store.compare_set(f"failure/{self._block}", "", message)
            self._acknowledge()
            end = time.monotonic() + LINGER
            while int(self._store.add(f"acknowledged/{self._block}", 0)) < self.world_size and time.monotonic() < end:
                if self._gone() is not None:
                    return
                time.sleep(0.05)
            if self.rank:
                self._store.add(f"left/{self._block}", 1)
                return
            end = time.monotonic() + 0.5  # it may have the store, which others that end as well are still looking at
            while int(self._store.add(f"left/{self._block}", 0)) < self.world_size - 1 and time.monotonic() < end:
                time.sleep(0.05)
        except RuntimeError:  # the store went with the main process
            return

    def _watch(self) -> None:
        while not self._left.wait(self._look_every):
            if (cause := self._cause()) is None:
                continue
            self._seen = cause
            self._acknowledge()
            self._abort()
            if self._left.wait(GRACE):
                return
            sys.stdout.flush()
            print(f"\nmxtorch: {self._sentence(cause)}", file=sys.stderr, flush=True)
            os._exit(ENDED)

    def _cause(self) -> str | None:
        """What ended another process, if anything did."""
        if self._seen is not None:
            return self._seen
        try:
            if self._store.check([f"failure/{self._block}"]):
                return str(self._store.get(f"failure/{self._block}").decode())
        except RuntimeError:
            return "process 0 of the others is gone, and the store with it"
        return self._gone()

    def _gone(self) -> str | None:
        """Which process of this machine is there no more."""
        import psutil

        for rank, (pid, born) in self._alive.items():
            try:
                process = psutil.Process(pid)
                if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            except psutil.NoSuchProcess:
                pass
            return f"process {rank} of {self.world_size} (pid {pid}) is gone: it was killed, or ended before the others"
        return None

    def _acknowledge(self) -> None:
        if not self._acknowledged:
            self._acknowledged = True
            try:
                self._store.add(f"acknowledged/{self._block}", 1)
            except RuntimeError:
                return

    def _abort(self) -> None:
        """Wake a process that waits in a kernel of NCCL; gloo has no such way."""
        if "nccl" in str(dist.get_backend_config()):
            abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
            if abort is not None:
                threading.Thread(target=abort, daemon=True).start()

    def _sentence(self, cause: str) -> str:
        return f"process {self.rank} of {self.world_size} ends, because another one did. {cause}"


def _is_of_connection(error: BaseException) -> bool:
    """Whether an error is what a process sees of another one's end."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _CONNECTION_WORDS)


def _machine() -> str:
    """A name of what process numbers are unique in: the machine, and the container within it."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
