"""The engine of a trainer: the one that a user gives, or one that is made for the device and the processes."""

from __future__ import annotations

from typing import Any

from mxtorch.engines.base import Engine
from mxtorch.engines.local import LocalEngine
from mxtorch.engines.processes import launched


def chosen_engine(engine: Engine | None, device: Any, precision: Any, channels_last: Any, compile: Any) -> Engine:
    """The engine that `Trainer` was given, or one that is made from the other arguments.

    Args:
        engine: An argument of `Trainer`, like the others; None makes a `DistributedEngine` if a launcher has started
            several processes, otherwise a `LocalEngine`.
        device: Its default is `"auto"`.
        precision: Its default is `"fp32"`.
        channels_last: Its default is `"auto"`.
        compile: Its default is False.

    Raises:
        TypeError: The engine lacks a method of the protocol.
        ValueError: Another argument was given together with the engine.
    """
    if engine is None:
        kind: type[LocalEngine] = LocalEngine
        if launched() is not None:
            from mxtorch.engines.distributed import DistributedEngine

            kind = DistributedEngine
        return kind(device, precision, channels_last=channels_last, compile=compile)
    if not isinstance(engine, Engine):
        raise TypeError(f"engine: got {engine!r}; give an object with the methods of mxtorch.engines.Engine")
    given = {"device": (device, "auto"), "precision": (precision, "fp32"), "channels_last": (channels_last, "auto")}
    beside = [name for name, (value, default) in given.items() if value != default] + ["compile"] * bool(compile)
    if beside:
        raise ValueError(
            f"engine: it was given together with {', '.join(beside)}; give these to the engine in place of the Trainer"
        )
    return engine
