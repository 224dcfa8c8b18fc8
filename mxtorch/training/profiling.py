"""What a training step spends its time on: the data, the host, or the device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity

from mxtorch._checks import check_data, check_integer, local_path
from mxtorch.training.context import Context
from mxtorch.training.data import Window, windows
from mxtorch.training.modes import preserved_modes, set_training_mode
from mxtorch.training.step import StepRunner, StepSettings

# Waiting for data is named as what is slow from this share of a step on, a device as busy from that share on.
SLOW_DATA, BUSY_DEVICE = 0.25, 0.8
OPERATORS_SHOWN = 8

_ADVICE = {
    "data": (
        "reading the data is what is slow: give the DataLoader more workers (num_workers=, persistent_workers=True), "
        "make transforms cheaper, or keep what they give"
    ),
    "host": (
        "the host is what is slow, the device waits for it: take larger batches, Trainer(compile=True), and fewer "
        "small operations and readings of values (.item(), print) in a step"
    ),
    "device": (
        "the device is what is slow, as it should be: precision='bf16', channels_last, compile=True or a smaller model "
        "make a step faster"
    ),
    "processor": (
        "computing is what is slow: more threads (torch.set_num_threads), a smaller model or smaller inputs make a "
        "step faster, or an accelerator"
    ),
}


@dataclass(frozen=True)
class StepProfile:
    """Where the time of a step goes. Printing it gives a table.

    Attributes:
        seconds: A step, with the wait for its data.
        data_seconds: Waiting for the data.
        host_seconds: Computing, or queueing what the device is to compute.
        device_seconds: The device's kernels; None on the CPU.
        samples_per_second: As `fit` would have it.
        slow: What is slow: `"data"`, `"host"`, `"device"`, or on the CPU `"processor"`.
        operators: The most expensive operators: name, calls a step, and milliseconds a step.
        steps: Steps that were measured.
    """

    seconds: float
    data_seconds: float
    host_seconds: float
    device_seconds: float | None
    samples_per_second: float
    slow: Literal["data", "host", "device", "processor"]
    operators: list[dict[str, Any]] = field(repr=False)
    steps: int = 0

    @property
    def advice(self) -> str:
        """What is slow, and what helps."""
        share = {"data": self.data_seconds, "host": self.host_seconds, "processor": self.host_seconds}
        seconds = self.device_seconds if self.slow == "device" else share[self.slow]
        return f"{100 * min((seconds or 0.0) / self.seconds, 1.0):.0f}% of a step: {_ADVICE[self.slow]}."

    def __str__(self) -> str:
        parts = [("data", self.data_seconds), ("host", self.host_seconds), ("device", self.device_seconds)]
        lines = [f"a step takes {1e3 * self.seconds:.2f} ms, {self.samples_per_second:.0f} samples/s"]
        lines += [f"  {name:7}{1e3 * s:9.2f} ms {100 * s / self.seconds:5.0f}%" for name, s in parts if s is not None]
        lines += [f"  {row['name'][:48]:48} {row['calls']:7.1f} x {row['ms']:9.3f} ms" for row in self.operators]
        return "\n".join([*lines, self.advice])


def profile(
    context: Context,
    settings: StepSettings,
    data: Iterable[Any],
    *,
    steps: int,
    warmup: int,
    trace: str | Path | None,
) -> StepProfile:
    """Take a few steps, measure them, and put everything back; see `Trainer.profile`."""
    check_data(data, "data", passes=2)
    check_integer(steps, "steps")
    check_integer(warmup, "warmup", at_least=0)
    path = None if trace is None else local_path(trace, "trace")
    before = context.capture(data)
    try:
        before.set_workers_aside()
        with preserved_modes(*context.modules):
            set_training_mode(context.model)
            return _measured(context, settings, data, steps, warmup, path)
    finally:
        before.restore()


def _measured(
    context: Context, settings: StepSettings, data: Iterable[Any], steps: int, warmup: int, trace: Path | None
) -> StepProfile:
    runner = StepRunner(context, settings, trial=True, place=lambda window: "a step of the profile")
    runner.begin_pass()
    dealt = _endless(data, settings.accumulate)
    device = context.engine.device
    waits = steps_seconds = 0.0
    samples = 0
    try:
        for _ in range(warmup + 1):  # the first step makes the optimizer's state, and chooses kernels
            runner.step(next(dealt))
        _synchronize(device)
        started = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            window = next(dealt)
            given = time.perf_counter()
            runner.step(window)
            waits, steps_seconds = waits + given - asked, steps_seconds + time.perf_counter() - given
            samples += window.samples
        _synchronize(device)
        seconds = time.perf_counter() - started
        # Under the profiler a step is slower, so its shares are taken from here, and the times from above.
        window = next(dealt)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with torch.profiler.profile(activities=activities) as profiler:
            runner.step(window)
            _synchronize(device)
        if trace is not None:
            profiler.export_chrome_trace(str(trace))
    finally:
        dealt.close()  # type: ignore[attr-defined]  # ends the workers
    on_device = device.type == "cuda"
    events = profiler.key_averages()
    kernels = sum(event.self_device_time_total for event in events) / 1e6 if on_device else None
    slow: Literal["data", "host", "device", "processor"] = "processor"
    if waits / seconds >= SLOW_DATA:
        slow = "data"
    elif kernels is not None:
        slow = "device" if kernels / (seconds / steps) >= BUSY_DEVICE else "host"
    return StepProfile(
        seconds / steps, waits / steps, steps_seconds / steps, kernels, samples / seconds, slow,
        _operators(events, on_device), steps,
    )  # fmt: skip


def _operators(events: Any, on_device: bool) -> list[dict[str, Any]]:
    """The most expensive operators of one step, by what they take themselves."""
    taken = "self_device_time_total" if on_device else "self_cpu_time_total"
    ordered = sorted(events, key=lambda event: getattr(event, taken), reverse=True)
    rows = [{"name": one.key, "calls": float(one.count), "ms": getattr(one, taken) / 1e3} for one in ordered]
    return [row for row in rows if row["ms"] > 0][:OPERATORS_SHOWN]


def _endless(data: Iterable[Any], accumulate: int) -> Iterator[Window]:
    while True:
        empty = True
        for window in windows(data, accumulate):
            empty = False
            yield window
        if empty:
            raise ValueError("data: got a loader that yields no batches; give it at least one")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
