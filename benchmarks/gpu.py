"""What a GPU makes of the loop: images a second of mxtorch and its peers beside a loop written by hand.

    python benchmarks/gpu.py [--models resnet50,...] [--parts rates,compiled,find_lr,files] [--json FILE]

Parts, each side by side in one run:

- `rates` and `compiled`: training steps in bf16 and channels-last on synthetic pictures that lie on the device. A
  matrix product of the same run gives the ceiling that the achieved rate is compared with.
- `find_lr`: a range test of 100 steps against 100 steps of the bare loop, in time and in memory.
- `files`: ResNet-50 from JPEG files of 500 pixels: decoded by Pillow or torchvision in worker processes, or on the
  device, with the augmentation there too.

A contender's speed is read between two of its batches, the device being waited for at both; medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from mxtorch import ScheduledOptim, Trainer, model_zoo

RATE = 1e-4  # small: nothing diverges on random pictures
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Setting:
    """A model with the batch it is measured at."""

    name: str
    batch: int
    size: int


SETTINGS = {
    "resnet50": Setting("resnet50", 256, 224),
    "resnext101_32x4d": Setting("resnext101_32x4d", 128, 224),
    "inceptionresnetv2": Setting("inceptionresnetv2", 128, 299),
}


class Clock:
    """Hands on the batches of `data`; times the steps after the first `warm_up`.

    The device is waited for when the first timed batch and when the last one have come, so it sees the same part of
    every contender's loop, the wait for a loader included.
    """

    def __init__(self, data: Any, warm_up: int) -> None:
        self.data, self.warm_up = data, warm_up
        self.started = self.ended = 0.0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self.data):
            if step == self.warm_up:
                self.started = _now()
            if step == len(self) - 1:
                self.ended = _now()
            yield batch

    @property
    def seconds_per_step(self) -> float:
        """The mean over the timed steps."""
        return (self.ended - self.started) / (len(self) - 1 - self.warm_up)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, fused=next(net.parameters()).is_cuda)


def run_bare(net: nn.Module, data: Any, device: torch.device) -> None:
    """The loop written by hand."""
    optimizer, loss = _optimizer(net), nn.CrossEntropyLoss()
    net.train()
    for host_images, host_labels in data:
        images = host_images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = host_labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(net(images), labels)
        value.backward()
        optimizer.step()


def make_trainer(net: nn.Module, device: torch.device, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """A trainer with the settings of the bare loop."""
    return kind(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(_optimizer(net)),
        device=device,
        precision="bf16",
        channels_last=True,
        progress=False,
        **options,
    )


def run_mxtorch(net: nn.Module, data: Any, device: torch.device) -> None:
    """`fit` with loss, one-cycle schedule and TensorBoard."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(net, device, log_dir=folder)
        trainer.fit(data, lr=RATE, schedule="one_cycle")
        trainer.close()


def run_accelerate(net: nn.Module, data: Any, device: torch.device) -> None:
    """Hugging Face Accelerate, with the loop of its documentation."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=device.type == "cpu")
    loss = nn.CrossEntropyLoss()
    net = copy.deepcopy(net)  # it wraps `forward` in place
    prepared, optimizer = accelerator.prepare(net, _optimizer(net))
    prepared.train()
    for host_images, host_labels in data:
        images = host_images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = host_labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        accelerator.backward(loss(prepared(images), labels))
        optimizer.step()


def run_lightning(net: nn.Module, data: Any, device: torch.device) -> None:
    """Lightning's Trainer, all extras off."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = net, nn.CrossEntropyLoss()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images = batch[0].to(memory_format=torch.channels_last)
            return self.loss(self.net(images), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.net)

    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data)


CONTENDERS: dict[str, tuple[str, Callable[[nn.Module, Any, torch.device], None]]] = {
    "bare": ("", run_bare),
    "mxtorch": ("", run_mxtorch),
    "accelerate": ("accelerate", run_accelerate),
    "lightning": ("pytorch_lightning", run_lightning),
}


def build(setting: Setting, device: torch.device) -> nn.Module:
    """The network on the device, in channels-last."""
    torch.manual_seed(0)
    return model_zoo.create(setting.name).to(device, memory_format=torch.channels_last)


def synthetic(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch that lies on the device."""
    images = torch.randn(setting.batch, 3, setting.size, setting.size, device=device)
    return images.to(memory_format=torch.channels_last), torch.randint(1000, (setting.batch,), device=device)


def ceiling(device: torch.device, side: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a bf16 matrix product on random data: the median of a few measurements."""
    if device.type == "cpu":
        side, repeats = 1024, 2
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(5):
        started = _now()
        for _ in range(repeats):
            a @ b
        rates.append(repeats * 2 * side**3 / (_now() - started) / 1e12)
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
    net, batch = build(setting, device), synthetic(setting, device)
    names = [name for name, (module, _) in CONTENDERS.items() if not module or importlib.util.find_spec(module)]
    if compiled:
        net.compile()  # in place: all contenders run the same code
        names.remove("accelerate")  # its copy would be compiled again in every run
    images: dict[str, list[float]] = {name: [] for name in names}
    run_bare(net, [batch] * 4, device)  # compilation, the choice of algorithms, the allocator's pool
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            net.to(device)  # Lightning leaves it on the CPU
            clock = Clock([batch] * steps, warm_up=5)
            CONTENDERS[name][1](net, clock, device)
            images[name].append(setting.batch / clock.seconds_per_step)
    flops = flops_per_image(setting)
    return [
        {
            "model": setting.name,
            "batch": setting.batch,
            "size": setting.size,
            "compiled": compiled,
            "contender": name,
            "images_per_second": statistics.median(images[name]),
            "ratio_to_bare": statistics.median(a / b for a, b in zip(images[name], images["bare"], strict=True)),
            "fraction_of_ceiling": statistics.median(images[name]) * flops / 1e12 / peak,
            "rounds": " ".join(f"{rate:.0f}" for rate in images[name]),
        }
        for name in names
    ]


def measure_find_lr(setting: Setting, device: torch.device, rounds: int, steps: int = 100) -> dict[str, Any]:
    """A range test beside as many bare steps: seconds, and the peak of memory over what the bare loop needs."""
    batch = synthetic(setting, device)
    seconds: dict[str, list[float]] = {"bare": [], "find_lr": []}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name in seconds:
            net = build(setting, device)
            trainer = make_trainer(net, device)
            run_bare(net, [batch] * 3, device)
            net.zero_grad()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = _now()
            if name == "bare":
                run_bare(net, [batch] * steps, device)
            else:
                trainer.find_lr([batch] * steps, start_lr=1e-7, end_lr=1e-3, num_steps=steps)
            seconds[name].append(_now() - started)
            peaks[name] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    state = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    return {
        "model": setting.name,
        "steps": steps,
        "seconds_bare": statistics.median(seconds["bare"]),
        "seconds_find_lr": statistics.median(seconds["find_lr"]),
        "ratio": statistics.median(a / b for a, b in zip(seconds["find_lr"], seconds["bare"], strict=True)),
        "more_memory_in_states": (peaks["find_lr"] - peaks["bare"]) / state,
    }


# ---------------------------------------------------------------- from files


def _draw(task: tuple[str, int]) -> None:
    sys.path.insert(0, str(EXAMPLES))
    import toy_breeds

    folder, number = task
    breed = toy_breeds.BREEDS[number % len(toy_breeds.BREEDS)]
    toy_breeds.draw(breed, number, 500).save(Path(folder) / f"{number}.jpg", quality=90)


def draw_files(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 pixels."""
    # Not forked: CUDA and OpenMP run in this process already.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_draw, [(str(folder), number) for number in range(count)], chunksize=8))
    return [folder / f"{number}.jpg" for number in range(count)]


class Files(Dataset[tuple[Any, int]]):
    """Opens a file with a function; the label is of no matter here."""

    def __init__(self, paths: list[Path], open_file: Callable[[Path], Any]) -> None:
        self.paths, self.open_file = paths, open_file

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.open_file(self.paths[index]), index % 1000


def with_pillow(transform: Any, path: Path) -> torch.Tensor:
    """Decoded and augmented by Pillow, as most people do."""
    from PIL import Image

    with Image.open(path) as picture:
        return transform(picture.convert("RGB"))


def with_torchvision(transform: Any, path: Path) -> torch.Tensor:
    """Decoded by torchvision, augmented as tensors, on the CPU."""
    from torchvision.io import ImageReadMode, decode_image

    return transform(decode_image(str(path), ImageReadMode.RGB))


def read_bytes(path: Path) -> Any:
    """The file as it is, to be decoded on the device; no tensor, so that the trainer leaves it on the host."""
    return np.fromfile(path, dtype=np.uint8)


def keep_apart(samples: list[tuple[Any, int]]) -> tuple[list[Any], torch.Tensor]:
    """Files have different lengths: a list of them, and the labels as a tensor."""
    files, labels = zip(*samples, strict=True)
    return list(files), torch.tensor(labels)


class DecodingTrainer(Trainer):
    """Takes batches of encoded files; decodes and augments them on the device."""

    size = 224

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        """Where pictures are decoded."""
        return torch.cuda.Stream(self.engine.device)

    def training_step(self, batch: Any) -> Any:
        """Decode, crop, flip, normalise; then as ever."""
        files, labels = batch
        return super().training_step((self.augmented(files), labels))

    def augmented(self, files: list[Any]) -> torch.Tensor:
        """JPEG files to a batch of pictures, each with a crop of its own."""
        from torchvision.io import ImageReadMode, decode_jpeg
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional

        crop = v2.RandomResizedCrop(self.size, scale=(0.35, 1.0), antialias=True)
        flip = v2.RandomHorizontalFlip()
        encoded = [torch.from_numpy(file) for file in files]
        # A stream of its own: the decoder writes without waiting for the current stream, into memory that queued
        # work of that stream may still use. And so the last step goes on while this one's pictures are decoded.
        self.stream.synchronize()
        with torch.cuda.stream(self.stream):
            decoded = decode_jpeg(encoded, ImageReadMode.RGB, device=self.engine.device)
            pictures = torch.stack([flip(crop(picture)) for picture in decoded])
            scaled = functional.to_dtype(pictures, torch.float32, scale=True)
            normalised = functional.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            batch = normalised.to(memory_format=torch.channels_last)
        training = torch.cuda.current_stream()
        training.wait_stream(self.stream)
        batch.record_stream(training)
        return batch


def measure_files(setting: Setting, device: torch.device, *, count: int, steps: int) -> list[dict[str, Any]]:
    """Images a second from files to trained for each way of decoding, and of pictures that lie on the device."""
    transform = model_zoo.preprocess(setting.name, train=True, size=setting.size)
    ways: dict[str, tuple[Any, Any, type[Trainer]]] = {
        "Pillow in workers": (functools.partial(with_pillow, transform), None, Trainer),
        "torchvision in workers": (functools.partial(with_torchvision, transform), None, Trainer),
        "decoded on the device": (read_bytes, keep_apart, DecodingTrainer),
    }
    net = build(setting, device)

    def images_per_second(data: Any, kind: type[Trainer]) -> float:
        clock = Clock(data, warm_up=8)  # the workers start, their queues fill
        make_trainer(net, device, kind).fit(clock, lr=RATE)
        return setting.batch / clock.seconds_per_step

    synthetic_rate = images_per_second([synthetic(setting, device)] * steps, Trainer)
    rows = [{"source": "synthetic, on the device", "images_per_second": synthetic_rate, "fraction": 1.0}]
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_files(Path(folder), count)
        for name, (open_file, collate, kind) in ways.items():
            if kind is DecodingTrainer and device.type != "cuda":
                continue
            files = Files(paths, open_file)
            loader = DataLoader(
                files,
                setting.batch,
                sampler=RandomSampler(files, replacement=True, num_samples=setting.batch * steps),
                num_workers=os.cpu_count() or 1,
                collate_fn=collate,
                pin_memory=device.type == "cuda",
                prefetch_factor=4,
            )
            rate = images_per_second(loader, kind)
            rows.append({"source": name, "images_per_second": rate, "fraction": rate / synthetic_rate})
    return rows


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--batch", type=int, help="in place of each model's own")
    parser.add_argument("--size", type=int, help="in pixels, in place of each model's own")
    parser.add_argument("--files", type=int, default=4096, help="JPEG files to draw (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
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
    if "find_lr" in parts:
        report("find_lr", [measure_find_lr(setting, device, options.rounds) for setting in settings])
    if "files" in parts:
        report("files", measure_files(settings[0], device, count=options.files, steps=max(options.steps, 40)))


if __name__ == "__main__":
    main()
