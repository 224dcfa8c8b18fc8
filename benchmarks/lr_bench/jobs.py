"""Jobs for worker processes, whose answers are appended to a journal: a file with a line of JSON for each answer."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Line = dict[str, Any]


def read_journal(path: Path) -> list[Line]:
    """All whole lines; none if there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the last one, when the call was killed
            lines.append(json.loads(text))
    return lines


def run_jobs(
    ask: Callable[[Job], Line | None],
    jobs: Sequence[Job],
    journal: Path,
    *,
    workers: int,
    until: float,
    method: str = "fork",
    on_line: Callable[[Line], None] = lambda line: None,
) -> int:
    """Do jobs on worker processes and append each answer to the journal; returns the number of answers.

    An exception of one job is printed, and the others continue.

    Args:
        ask: Does a job, in a worker process. None is no answer: there was no time for the job.
        jobs: What `ask` is given, in this order.
        journal: The file; its folder is made.
        workers: The number of worker processes.
        until: The time, as `time.time()` has it, at which jobs that still run are ended.
        method: How workers are started: `"fork"`, or `"spawn"` where a GPU is used.
        on_line: Called with each answer after it was written.
    """
    count = 0
    journal.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context(method).Pool(workers) as pool, journal.open("a") as file:
        answers = pool.imap_unordered(ask, jobs)
        while time.time() < until:
            try:
                line = answers.next(timeout=1)
            except multiprocessing.TimeoutError:
                continue
            except StopIteration:
                break
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                continue
            if line is not None:
                count += 1
                file.write(json.dumps(line) + "\n")
                file.flush()
                on_line(line)
        pool.terminate()
    return count
