"""Training loops that take turns of a few steps, so that each sees the same moods of the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any


class _BrokenError(RuntimeError):
    """Another loop has failed."""


class Turns:
    """Whose turn it is, and what each turn took.

    Each loop runs in a thread of its own and is given its batches by `Batches`, which waits there for the loop's turn.
    One thread works at a time, and the others sleep.

    Args:
        names: The loops. Who goes first changes from round to round.
        rounds: Turns of each loop.
        steps: Batches in a turn.
        now: The time in seconds, when all that is queued is done.
    """

    def __init__(self, names: list[str], rounds: int, steps: int, now: Callable[[], float]) -> None:
        self.order = [names[(number + place) % len(names)] for number in range(rounds) for place in range(len(names))]
        self.rounds, self.steps, self.now = rounds, steps, now
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._position = 0
        self._condition = threading.Condition()
        self._leaving: str | None = None
        self._error: BaseException | None = None

    def run(self, loops: dict[str, Callable[[Any], None]], batch: Any) -> dict[str, list[float]]:
        """Run the loops, each called with its batches. Returns the seconds a step of every turn, by loop."""
        threads = {name: threading.Thread(target=self._run, args=(name, loop, batch)) for name, loop in loops.items()}
        for thread in threads.values():
            thread.start()
        for name, thread in threads.items():  # what loops do at their end is not for two threads at a time either
            with self._condition:
                self._condition.wait_for(lambda: self._error is not None or self._next is None)
                self._leaving = name
                self._condition.notify_all()
            thread.join()
        if self._error is not None:
            raise self._error
        return self.seconds

    def wait(self, name: str) -> None:
        """Wait for the turn of a loop, and when all turns are over for its turn to leave."""
        with self._condition:
            self._condition.wait_for(lambda: self._leaving == name or (self._error is None and self._next == name))
            if self._error is not None:
                raise _BrokenError

    def end(self, name: str, seconds: float) -> None:
        """Note what a turn took, and let the next loop go on."""
        with self._condition:
            self.seconds[name].append(seconds / self.steps)
            self._position += 1
            self._condition.notify_all()

    @property
    def _next(self) -> str | None:
        return self.order[self._position] if self._position < len(self.order) else None

    def _run(self, name: str, loop: Callable[[Any], None], batch: Any) -> None:
        try:
            loop(Batches(self, name, batch))
        except _BrokenError:
            pass
        except BaseException as error:  # to be raised in the main thread
            with self._condition:
                self._error = self._error or error
                self._condition.notify_all()


class Batches:
    """One batch over and over, a few at a time, whenever it is the loop's turn."""

    def __init__(self, turns: Turns, name: str, batch: Any) -> None:
        self.turns, self.name, self.batch = turns, name, batch

    def __len__(self) -> int:
        # One more than there are: what a loop does in its last step (logging, checkpoints) is in nobody's turn then.
        return self.turns.rounds * self.turns.steps + 1

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.turns.rounds):
            self.turns.wait(self.name)
            started = self.turns.now()
            for _ in range(self.turns.steps):
                yield self.batch
            self.turns.end(self.name, self.turns.now() - started)
        self.turns.wait(self.name)  # what a loop does at its end disturbs no one's turn
