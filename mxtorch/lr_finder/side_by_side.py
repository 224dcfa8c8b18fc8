"""The short trainings of a search on several processes: side by side, one rate a process.

A process that trains alone takes in each step the batches of all processes one after the other, and adds their
gradients up. So the rate is tried with the batch that the training will have, and the trainings exchange nothing. Where
there are fewer rates left than processes, some would have nothing to do: then the rates are trained one after the other
by all processes together, if that takes less time as measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.engines.base import Engine

Found = TypeVar("Found")


def run_all(engine: Engine, rates: Sequence[float], train: Callable[[float], Found], *, together: float) -> list[Found]:
    """What `train` returns for each rate, the same on all processes.

    Args:
        engine: Whose processes share the work.
        rates: In their order.
        train: Trains at a rate from the snapshot of the search.
        together: The time that a step of all processes takes beside one that a process takes alone, with the batches of
            all: 1 / processes where they scale ideally; 0 where a process can't train alone.
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
    """In the block all processes draw what the main one draws; afterwards they go on where they were."""
    if engine.world_size == 1:
        yield
        return
    own = random_state()
    set_random_state(engine.broadcast(own))
    try:
        yield
    finally:
        set_random_state(own)
