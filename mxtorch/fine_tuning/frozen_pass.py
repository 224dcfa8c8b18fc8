"""One pass of many batches through frozen layers, as fast as the processor allows.

On a CPU each of torch's threads takes batches of its own, in place of sharing the work of every operator: threads that
share an operator wait for one another at its end, and where something else wants the processor (the processes that
read the pictures), all of them wait for the one that was interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch.engines.base import Engine
from mxtorch.fine_tuning.cut import Cut

# Batches that wait for a thread, for each thread: enough that none is idle, few enough to keep in memory.
WAITING = 2
# How far features of folded layers may differ by rounding, relative to their scale.
TOLERANCE = 1e-3


class FrozenPass:
    """Computes features with copies of a network, which share its parameters, one for each thread.

    Args:
        cut: The place in the network.
        engine: Where it runs; the memory format has been tried.
        features: The features of a batch by the network itself: where a copy can't be made, or fails.
        probe: Some inputs, on the engine's device, that folded layers are tried with.
        exact: Whether batch normalisation is left as it is.
        threads: How many batches are computed at once; on an accelerator always one.

    Attributes:
        is_folded: Whether batch normalisation was folded into the convolutions before it.
        threads: The argument.
    """

    def __init__(
        self,
        cut: Cut,
        engine: Engine,
        features: Callable[[Tensor], Tensor],
        probe: Tensor,
        *,
        exact: bool,
        threads: int,
    ) -> None:
        self._cut = cut
        self._engine = engine
        self._features = features
        folded = None if exact else self._folded(probe)
        self.is_folded = folded is not None
        self.threads = threads
        self._at_once = threads if engine.device.type == "cpu" else 1
        self._twins = [] if self._at_once == 1 and folded is None else self._copies(folded or cut.model)

    def __call__(self, batches: Iterable[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Inputs and rest of each batch, with the features, in the order of the batches."""
        if not self._twins:
            for inputs, rest in batches:
                yield inputs, rest, self._features(inputs)
            return
        with contextlib.ExitStack() as ends:
            free: deque[Callable[[Tensor], Tensor]] = deque(
                ends.enter_context(self._cut.computing(twin)) for twin in self._twins
            )
            if self._at_once == 1:
                for inputs, rest in batches:
                    yield inputs, rest, self._computed(free[0], inputs)
                return
            ends.callback(torch.set_num_threads, torch.get_num_threads())
            pool = ends.enter_context(
                ThreadPoolExecutor(self._at_once, "features", torch.set_num_threads, initargs=(1,))
            )

            def work(inputs: Tensor) -> Tensor:
                compute = free.popleft()
                try:
                    return self._computed(compute, inputs)
                finally:
                    free.append(compute)

            waiting: deque[tuple[Tensor, Any, Future[Tensor]]] = deque()
            for inputs, rest in batches:
                waiting.append((inputs, rest, pool.submit(work, inputs)))
                if len(waiting) > WAITING * self._at_once:
                    yield self._done(*waiting.popleft())
            while waiting:
                yield self._done(*waiting.popleft())

    def _done(self, inputs: Tensor, rest: Any, future: Future[Tensor]) -> tuple[Tensor, Any, Tensor]:
        """A batch whose features are there; those that a copy failed at are computed by the network itself."""
        try:
            return inputs, rest, future.result()
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # as of a memory format that batches of another shape can't be in; it raises anew, if so
            return inputs, rest, self._features(inputs)

    def _computed(self, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with self._engine.autocast():
            return compute(self._engine.move(inputs))

    def _copies(self, model: nn.Module) -> list[nn.Module]:
        """Copies that share parameters and buffers; none where the network can't be copied."""
        shared = {id(value): value for value in itertools.chain(model.parameters(), model.buffers())}
        try:
            return [copy.deepcopy(model, dict(shared)) for _ in range(self._at_once)]
        except Exception:  # whatever the objects in a network raise when they are copied
            return []

    def _folded(self, probe: Tensor) -> nn.Module | None:
        """The network with batch normalisation folded, if that is known to be right before the cut."""
        from mxtorch import model_zoo  # imported on first use

        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self._cut.model.modules()):
            return None
        try:
            model = model_zoo.fuse(self._cut.model)
            with self._cut.computing(model) as compute:
                features = self._computed(compute, probe)
        except Exception:  # it is none of the zoo, or was changed in a way that the folding does not know
            return None
        expected = self._features(probe)
        scale = float(expected.abs().max())
        return model if float((features - expected).abs().max()) <= TOLERANCE * scale else None
