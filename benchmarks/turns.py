"""Training loops that take turns of a few steps, so that each sees the same moods of the machine."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

Loop = Callable[[str, "Batches"], None]


def take_turns(loop: Loop, names: list[str], rounds: int, steps: int) -> dict[str, list[float]]:
    """Run `loop(name, batches)` for each name in a process of its own; one works at a time, the others wait.

    Args:
        loop: A function of a module. It prepares itself, gives `batches` its batch, and trains on them.
        names: The loops. Who goes first changes from round to round.
        rounds: Turns of each loop.
        steps: Batches in a turn.

    Returns:
        The seconds a step of every turn, by name.

    Raises:
        RuntimeError: A loop failed; the message has its traceback.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        process = spawn.Process(target=_run, args=(loop, name, Batches(theirs, rounds, steps)), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        _answer(name, pipes[name])  # ready
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            pipes[name].send("go")
            seconds[name].append(_answer(name, pipes[name]) / steps)
    for name in names:  # what loops do at their end
        pipes[name].send("end")
        _answer(name, pipes[name])
    for process in processes:
        process.join()
    return seconds


class Batches:
    """One batch over and over, a few at a time, whenever it is the loop's turn.

    A loop sets `batch`, `now`, which gives the time in seconds once all that is queued is done, and `rest`, which gives
    memory back at the end of a turn. The first step of a turn, which takes it again, is not timed.
    """

    def __init__(self, connection: Connection, rounds: int, steps: int) -> None:
        self.connection, self.rounds, self.steps = connection, rounds, steps
        self.batch: Any = None
        self.now: Callable[[], float]
        self.rest: Callable[[], None]

    def __len__(self) -> int:
        # One more than there are: what a loop does in its last step (logging, checkpoints) is in nobody's turn then.
        return self.rounds * (self.steps + 1) + 1

    def __iter__(self) -> Iterator[Any]:
        self.connection.send(None)  # ready
        for _ in range(self.rounds):
            self.connection.recv()
            yield self.batch
            started = self.now()
            for _ in range(self.steps):
                yield self.batch
            taken = self.now() - started
            self.rest()
            self.connection.send(taken)
        self.connection.recv()


def _run(loop: Loop, name: str, batches: Batches) -> None:
    try:
        loop(name, batches)
        batches.connection.send(None)
    except BaseException:
        batches.connection.send(traceback.format_exc())
        raise


def _answer(name: str, pipe: Connection) -> float:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended without a word") from None
    if isinstance(answer, str):
        raise RuntimeError(f"{name} failed:\n{answer}")
    return answer or 0.0
