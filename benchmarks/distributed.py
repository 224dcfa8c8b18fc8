"""Several processes: steps beside a bare DDP loop, Lightning and Accelerate; scaling; a search; FSDP2.

    python benchmarks/distributed.py                     # two GPUs, about ten minutes
    python benchmarks/distributed.py --device cpu --small  # two gloo processes, to see that it runs

Each figure comes from processes of its own, started with torch's launcher, and is the median of `--repeats`.

- images/s of a ResNet-50 in bfloat16 (channels-last, random pictures on the device), contenders in turn;
- the same with one process and with two: scaling is the quotient;
- seconds of a search on one process with batches of 2 N, and on two with batches of N;
- tokens/s and peak memory of a GPT of a billion parameters with FSDP2, beside a bare loop.

What is aimed at: 0.99 of the bare DDP loop, 1.9 from one to two, not below Lightning and Accelerate; a search in 0.6 of
the time; 0.98 of the bare FSDP2 loop in 1.03 of its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_loops import Clock
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from gpt import GPT, SIZES, Size, loss_of_bytes

from mxtorch import Trainer, model_zoo
from mxtorch.engines import DistributedEngine

RATE, WARM_UP = 1e-4, 5
PARTS = ("pictures", "search", "gpt")
CONTENDERS = ("bare", "mxtorch", "lightning", "accelerate")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a trial")
    parser.add_argument("--steps", type=int, default=100, help="with few, one collection of garbage weighs in")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=("pictures", "search", "gpt"), default=("pictures", "search", "gpt")
    )
    parser.add_argument("--part", help="what a process measures; not for you")
    return parser.parse_args()


def measure(part: str, processes: int, options: argparse.Namespace) -> dict[str, float] | None:
    """Start processes for a part; what the main one measured, None where it failed."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    command += [
        "--rdzv-endpoint=localhost:0",
        str(Path(__file__).resolve()),
        "--part",
        part,
        "--device",
        options.device,
    ]
    command += ["--steps", str(options.steps), *(["--small"] if options.small else [])]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    line = next((line for line in ran.stdout.splitlines() if line.startswith("FIGURES ")), None)
    if line is None:
        print(f"{part} on {processes}: failed\n{ran.stderr[-1500:]}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(line.removeprefix("FIGURES "))
    return figures


def main() -> None:
    """All parts, contenders in turn."""
    options = parse_arguments()
    if options.part is not None:
        figures = run_part(options)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"FIGURES {json.dumps(figures)}")
        return
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    parts = [(contender, count) for contender in CONTENDERS for count in (1, 2)] if "pictures" in options.only else []
    parts += [("search", 1), ("search", 2)] if "search" in options.only else []
    parts += [("gpt-bare", 2), ("gpt-mxtorch", 2)] if "gpt" in options.only else []
    for _ in range(options.repeats):
        for part in parts:
            if (figures := measure(*part, options)) is not None:
                found.setdefault(part, []).append(figures)
    medians = {
        part: {name: statistics.median(one[name] for one in figures) for name in figures[0]}
        for part, figures in found.items()
    }
    print(f"torch {torch.__version__}, {device_name(options.device)}, medians of {options.repeats}\n")
    if "pictures" in options.only:
        print_pictures(medians)
    if ("search", 1) in medians and ("search", 2) in medians:
        one, two = medians["search", 1], medians["search", 2]
        quotient = two["seconds"] / one["seconds"]
        print(f"\nfind_lr: {one['seconds']:.1f} s on one, {two['seconds']:.1f} s on two: {quotient:.2f}")
        print(f"rates {one['suggestion']:.1e} and {two['suggestion']:.1e}")
        print(f"steps {one['steps']:.0f} and {two['steps']:.0f}")
    if ("gpt-bare", 2) in medians and ("gpt-mxtorch", 2) in medians:
        loop, ours = medians["gpt-bare", 2], medians["gpt-mxtorch", 2]
        print(f"\nGPT, FSDP2: {loop['rate']:.0f} tokens/s bare, {ours['rate']:.0f}: {ours['rate'] / loop['rate']:.3f}")
        print(f"peak memory {loop['gigabytes']:.2f} GB, {ours['gigabytes']:.2f} GB")


def print_pictures(medians: dict[tuple[str, int], dict[str, float]]) -> None:
    """The table of the contenders."""
    print("| ResNet-50 | images/s, 1 process | 2 processes | scaling | over bare, 2 processes |\n|---|---|---|---|---|")
    bare = medians.get(("bare", 2), {}).get("rate")
    for contender in CONTENDERS:
        one, two = (medians.get((contender, count), {}).get("rate") for count in (1, 2))
        if one and two and bare:
            print(f"| {contender} | {one:.0f} | {two:.0f} | {two / one:.2f} | {two / bare:.3f} |")


def device_name(device: str) -> str:
    """What the figures are of."""
    return torch.cuda.get_device_name() if device != "cpu" else "CPU"


def run_part(options: argparse.Namespace) -> dict[str, float]:
    """What one process does of a part."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if options.part == "search":
        return search(options)
    if options.part.startswith("gpt-"):
        return gpt(options, options.part.removeprefix("gpt-"))
    return pictures(options, options.part)


# ---------------------------------------------------------------- DDP


def own_device(options: argparse.Namespace) -> torch.device:
    """The device of this process."""
    if options.device == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def pictures(options: argparse.Namespace, contender: str) -> dict[str, float]:
    """Images a second of all processes."""
    device = own_device(options)
    batch, size, name = (4, 32, "resnet18") if options.small else (256, 224, "resnet50")
    net = model_zoo.create(name, pretrained=False).to(device, memory_format=torch.channels_last)
    inputs = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    data = Clock([(inputs, torch.randint(1000, (batch,), device=device))] * options.steps, WARM_UP)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, fused=device.type == "cuda")
    loops: dict[str, Callable[..., None]] = {
        "bare": bare_ddp,
        "mxtorch": mxtorch_ddp,
        "lightning": lightning_ddp,
        "accelerate": accelerate_ddp,
    }
    loops[contender](net, optimizer, data, device)
    return {"rate": batch * int(os.environ["WORLD_SIZE"]) / data.seconds_per_step}


def bare_ddp(net: nn.Module, optimizer: Any, data: Clock, device: torch.device) -> None:
    """The loop that one writes by hand."""
    torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    model: nn.Module = nn.parallel.DistributedDataParallel(net)
    loss_function = nn.CrossEntropyLoss()
    for inputs, targets in data:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_function(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mxtorch_ddp(net: nn.Module, optimizer: Any, data: Clock, device: torch.device) -> None:
    """`Trainer.fit`, as the launcher finds it but for the data, which each process has already."""
    engine = DistributedEngine(device.type, "bf16", channels_last=True, split_data=False)
    Trainer(net, nn.CrossEntropyLoss(), optimizer, engine=engine, progress=False).fit(data)


def lightning_ddp(net: nn.Module, optimizer: Any, data: Clock, device: torch.device) -> None:
    """Lightning with its DDP strategy."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss_function = net, nn.CrossEntropyLoss()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.loss_function(self.net(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

    world = int(os.environ["WORLD_SIZE"])
    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(Module(), data)


def accelerate_ddp(net: nn.Module, optimizer: Any, data: Clock, device: torch.device) -> None:
    """A loop with Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16", cpu=device.type == "cpu")
    model, optimizer = accelerator.prepare(net, optimizer)
    loss_function = nn.CrossEntropyLoss()
    for inputs, targets in data:
        with accelerator.autocast():
            loss = loss_function(model(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


# ---------------------------------------------------------------- the search


class OnDevice(Dataset[Any]):
    """Pictures of ten kinds that are on the device already, so that no loader is measured.

    Args:
        samples: How many there seem to be; every 4,096th is the same picture.
        size: Of a side, in pixels.
        device: Where they are.
    """

    def __init__(self, samples: int, size: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)
        self.samples, self.kept = samples, min(samples, 4096)
        self.labels = torch.randint(10, (self.kept,), generator=generator, device=device)
        coarse = torch.randn(10, 3, 8, 8, generator=generator, device=device)[self.labels]
        coarse += 5 * torch.randn(coarse.shape, generator=generator, device=device)
        self.inputs = nn.functional.interpolate(coarse, size=size)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once."""
        places = torch.tensor(indices) % self.kept
        if self.inputs.is_cuda:
            places = places.pin_memory().to(self.inputs.device, non_blocking=True)
        return self.inputs[places], self.labels[places]


def as_it_is(batch: Any) -> Any:
    """In place of collating."""
    return batch


def search(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the default search, for the same batch of all processes."""
    device, world = own_device(options), int(os.environ["WORLD_SIZE"])
    batch, size, count, name = (8, 32, 400, "resnet18") if options.small else (256, 224, 256_000, "resnet50")
    net = model_zoo.create(name, pretrained=False)
    net.fc = nn.Linear(net.fc.in_features, 10)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, fused=device.type == "cuda")
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), optimizer, device=device.type, precision="bf16", progress=False, seed=0
    )
    data = OnDevice(count, size, device)
    held_out = Subset(data, range(32 if options.small else 512))
    loader = DataLoader(data, batch // world, shuffle=True, drop_last=True, collate_fn=as_it_is)
    val_loader = DataLoader(held_out, batch // world, collate_fn=as_it_is)
    # A fifth of the training takes longer than the 20 seconds that a search takes at least, and longer in proportion.
    found = trainer.find_lr(loader, val_loader, epochs=2 if options.small else 5, budget=0.5 if options.small else None)
    steps = sum(trial.steps for trial in found.trials)
    return {"seconds": found.seconds, "suggestion": found.suggestion or 0.0, "steps": steps}


# ---------------------------------------------------------------- FSDP2


def gpt(options: argparse.Namespace, contender: str) -> dict[str, float]:
    """Tokens a second of all processes, and the memory of one."""
    device, world = own_device(options), int(os.environ["WORLD_SIZE"])
    size, batch, length = (Size(2, 32, 2, 0.0), 2, 32) if options.small else (SIZES["1b"], 8, 1024)
    with device:  # its first weights are drawn there, which takes a second in place of half a minute
        net = GPT(size, length)
    text = torch.randint(256, (batch, length + 1), device=device)
    data = Clock([(text[:, :-1], text[:, 1:])] * max(options.steps, WARM_UP + 5), WARM_UP)
    if contender == "bare":
        bare_fsdp2(net, data, device)
    else:
        engine = DistributedEngine(device.type, "bf16", strategy="fsdp2", split_data=False)
        optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=device.type == "cuda")
        Trainer(net, loss_of_bytes, optimizer, engine=engine, progress=False, clip_grad_norm=1.0).fit(data)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"rate": batch * length * world / data.seconds_per_step, "gigabytes": peak / 1e9}


def bare_fsdp2(net: nn.Module, data: Clock, device: torch.device) -> None:
    """The loop that one writes by hand."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for block in net.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=device.type == "cuda")
    for inputs, following in data:
        loss = loss_of_bytes(net(inputs).float(), following)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # peers write into it
        main()
