"""The short trainings of a search on several processes: they run side by side, one rate on each process.

In each step, a process that trains alone takes the batches of all processes one after the other and adds up their
gradients. So each rate is tried with the batch size of the later training, and the processes exchange nothing. If fewer
rates are left than there are processes, some processes would wait. Then all processes train these rates together, one
after the other, if the measured times say that this is faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.engines.base import Engine

Found = TypeVar("Found")


def run_all(engine: Engine, rates: Sequence[float], train: Callable[[float], Found], *, together: float) -> list[Found]:
    """Return what `train` returns for each rate, the same on all processes.

    Args:
        engine: The engine of the processes that share the work.
        rates: The rates, in the order in which they are trained.
        train: A function that trains at a rate from the snapshot of the search.
        together: The time of a step that all processes take together, divided by the time of a step that one process
            takes alone with the batches of all. It is 1 / processes if they scale ideally, and 0 if a process can't
            train alone.
    """
    count = engine.world_size
    if count == 1:
        return [train(rate) for rate in rates]
    found: dict[int, Found] = {}
    for start in range(0, len(rates), count):
        places = range(start, min(start + count, len(rates)))
        if len(places) * together < 1:
            for place in places:
                found[place] = engine.broadcast(train(rates[place]))
            continue
        with engine.alone():
            own = {place: train(rates[place]) for place in places if place - start == engine.rank}
        for others in engine.gather_values(own):
            found |= others
    return [found[place] for place in range(len(rates))]


@contextlib.contextmanager
def same_random_numbers(engine: Engine) -> Iterator[None]:
    """In the block, all processes draw the main process's random numbers; afterwards each continues with its own."""
    if engine.world_size == 1:
        yield
        return
    own = random_state()
    set_random_state(engine.broadcast(own))
    try:
        yield
    finally:
        set_random_state(own)
