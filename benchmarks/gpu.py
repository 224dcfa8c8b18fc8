"""What a GPU makes of the loop: images a second of mxtorch and its peers beside a loop written by hand.

    python benchmarks/gpu.py [--models resnet50,...] [--parts rates,compiled,find_lr,files] [--json FILE]

Parts, each side by side in one run:

- `rates` and `compiled`: training steps in bf16 and channels-last on synthetic pictures that lie on the device. A
  matrix product of the same run gives the ceiling that the achieved rate is compared with.
- `find_lr`: a range test of 100 steps against 100 steps of the bare loop, in time and in memory.
- `files`: ResNet-50 from JPEG files of 500 pixels: decoded by Pillow or torchvision in worker processes, or on the
  device, with the augmentation there too.

In `rates` and `compiled` each contender has a process of its own, and they take turns of a few steps; the device is
waited for at the beginning and at the end of a turn. A ratio is the median of those within rounds, with quartiles; the
first round, in which algorithms are chosen and models compiled, does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from gpu_files import measure_files
from gpu_loops import CONTENDERS, Setting, build, make_trainer, now, run_bare, synthetic
from torch.utils.flop_counter import FlopCounterMode
from turns import Batches, take_turns

from mxtorch import model_zoo

SETTINGS = {
    "resnet50": Setting("resnet50", 256, 224),
    "resnext101_32x4d": Setting("resnext101_32x4d", 128, 224),
    # With a batch of 128 the host, which launches its many small kernels, is the limit, and its speed varies.
    "inceptionresnetv2": Setting("inceptionresnetv2", 256, 299),
}


def ceiling(device: torch.device, side: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a bf16 matrix product on random data: the median of a few measurements."""
    if device.type == "cpu":
        side, repeats = 1024, 2
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(5):
        started = now()
        for _ in range(repeats):
            a @ b
        rates.append(repeats * 2 * side**3 / (now() - started) / 1e12)
    return statistics.median(rates)


def flops_per_image(setting: Setting) -> float:
    """Floating-point operations of a training step, for one picture: a forward pass and twice that backward."""
    with torch.device("meta"):
        net = model_zoo.create(setting.name).eval()
        picture = torch.empty(1, 3, setting.size, setting.size)
    with FlopCounterMode(display=False) as counter:
        net(picture)
    return 3.0 * counter.get_total_flops()


def measure_rates(
    setting: Setting, device: torch.device, *, compiled: bool, rounds: int, steps: int, peak: float
) -> list[dict[str, Any]]:
    """Images a second of every contender that is installed."""
    names = [name for name, (module, _) in CONTENDERS.items() if not module or importlib.util.find_spec(module)]
    loop = functools.partial(contend, setting=setting, device=device, compiled=compiled)
    seconds = take_turns(loop, names, rounds + 1, steps)
    images = {name: [setting.batch / taken for taken in seconds[name][1:]] for name in names}
    flops = flops_per_image(setting)
    rows = []
    for name in names:
        ratios = [rate / bare for rate, bare in zip(images[name], images["bare"], strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4)
        rate = statistics.median(images[name])
        rows.append(
            {
                "model": setting.name,
                "batch": setting.batch,
                "size": setting.size,
                "compiled": compiled,
                "contender": name,
                "images_per_second": rate,
                "ratio_to_bare": statistics.median(ratios),
                "quartiles": f"{lower:.3f} {upper:.3f}",
                "turns": len(ratios),
                "fraction_of_ceiling": rate * flops / 1e12 / peak,
            }
        )
    return rows


def contend(name: str, batches: Batches, *, setting: Setting, device: torch.device, compiled: bool) -> None:
    """One contender, in a process of its own."""
    quietly()
    net = build(setting, device)
    if compiled:
        net.compile()
    batches.batch, batches.now = synthetic(setting, device), now
    batches.rest = torch.cuda.empty_cache if device.type == "cuda" else gc.collect
    CONTENDERS[name][1](net, batches, device)


def quietly() -> None:
    """Let cuDNN try its algorithms; leave out warnings and banners."""
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def measure_find_lr(setting: Setting, device: torch.device, rounds: int, steps: int = 100) -> dict[str, Any]:
    """A range test beside as many bare steps: seconds, and the peak of memory over what the bare loop needs.

    Memory is what was asked of torch's allocator, and what that set aside for it: it rounds up to 512 bytes, and leaves
    up to a megabyte unused where a free block is only somewhat too large, which differs from run to run.
    """
    batch = synthetic(setting, device)
    seconds: dict[str, list[float]] = {"bare": [], "find_lr": []}
    asked, set_aside = {}, {}
    for _ in range(rounds):
        for name in seconds:
            net = build(setting, device)
            trainer = make_trainer(net, device)
            run_bare(net, [batch] * 3, device)
            net.zero_grad()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = now()
            if name == "bare":
                run_bare(net, [batch] * steps, device)
            else:
                trainer.find_lr([batch] * steps, method="sweep", start_lr=1e-7, end_lr=1e-3, num_steps=steps)
            seconds[name].append(now() - started)
            memory = torch.cuda.memory_stats() if device.type == "cuda" else {}
            asked[name] = memory.get("requested_bytes.all.peak", 0)
            set_aside[name] = memory.get("allocated_bytes.all.peak", 0)
            del trainer, net
    state = sum(value.numel() * value.element_size() for value in build(setting, device).state_dict().values())
    return {
        "model": setting.name,
        "steps": steps,
        "seconds_bare": statistics.median(seconds["bare"]),
        "seconds_find_lr": statistics.median(seconds["find_lr"]),
        "ratio": statistics.median(a / b for a, b in zip(seconds["find_lr"], seconds["bare"], strict=True)),
        "more_memory_in_states": (asked["find_lr"] - asked["bare"]) / state,
        "more_set_aside_in_states": (set_aside["find_lr"] - set_aside["bare"]) / state,
    }


def machine(device: torch.device) -> str:
    """Device, processor and versions, in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = []
    for package in ("torch", "torchvision", "accelerate", "pytorch-lightning"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in columns."""
    cells = [list(rows[0]), *([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--parts", default="rates,compiled,find_lr,files", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="in a turn (default: %(default)s)")
    parser.add_argument("--find-lr-rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="in place of each model's own")
    parser.add_argument("--size", type=int, help="in pixels, in place of each model's own")
    parser.add_argument("--files", type=int, default=4096, help="JPEG files to draw (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quietly()
    device = torch.device(options.device)
    replaced = {name: value for name in ("batch", "size") if (value := getattr(options, name)) is not None}
    settings = [dataclasses.replace(SETTINGS[name], **replaced) for name in options.models.split(",")]

    results: dict[str, Any] = {"machine": machine(device), "ceiling_tflops": ceiling(device)}
    print(f"{results['machine']}; bf16 matrix product {results['ceiling_tflops']:.0f} TFLOP/s", flush=True)

    def report(part: str, rows: list[dict[str, Any]]) -> None:
        results.setdefault(part, []).extend(rows)
        print(f"\n{part}\n{table(rows)}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    parts = options.parts.split(",")
    peak = results["ceiling_tflops"]
    for part, compiled in (("rates", False), ("compiled", True)):
        for setting in settings if part in parts else []:
            measured = measure_rates(
                setting, device, compiled=compiled, rounds=options.rounds, steps=options.steps, peak=peak
            )
            report(part, measured)
    if "files" in parts:
        report("files", measure_files(settings[0], device, count=options.files, steps=40))
    for setting in settings if "find_lr" in parts else []:
        report("find_lr", [measure_find_lr(setting, device, options.find_lr_rounds)])


if __name__ == "__main__":
    main()
