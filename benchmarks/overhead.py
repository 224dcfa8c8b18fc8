"""What a training loop costs: microseconds a step of mxtorch and its peers beside a loop written by hand.

    python benchmarks/overhead.py [--rounds 7] [--workload mlp|resnet18|all] [--only bare,mxtorch] [--json FILE]

All contenders train the same network on the same prepared batches, in one process, interleaved. Each round measures
two lengths of a run, so that what a run costs once cancels out. A ratio is to the bare loop of the same round; medians
are over the rounds. A further table is of find_lr with its 100 steps, what it costs once included, beside 100 steps of
the bare loop. The peers have logging, progress bars and checkpoints switched off; mxtorch has its loss, schedule
and TensorBoard on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Batches = list[tuple[torch.Tensor, torch.Tensor]]
RATE = 0.01


@dataclass(frozen=True)
class Workload:
    """A network with its batches, the two lengths of a run in steps, and the rounds of the find_lr table."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    short: int
    long: int
    sweeps: int
    threads: int

    def batches(self, steps: int) -> Batches:
        """As many references to a few prepared batches as there are steps."""
        generator = torch.Generator().manual_seed(0)
        few = [
            (torch.randn(self.inputs, generator=generator), torch.randint(10, self.inputs[:1], generator=generator))
            for _ in range(8)
        ]
        return [few[step % len(few)] for step in range(steps)]


class Handed:
    """Batches as a loader: Lightning and fastai take a list for something else."""

    device = torch.device("cpu")

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def _resnet18() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=10)


WORKLOADS = {
    "mlp": Workload("MLP step of about 0.4 ms, one thread", _mlp, (64, 64), 300, 2300, 40, 1),
    "resnet18": Workload("ResNet-18 at 64 px, batch 16", _resnet18, (16, 3, 64, 64), 3, 13, 2, os.cpu_count() or 1),
}


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)


def run_bare(net: nn.Module, batches: Batches) -> None:
    """The loop written by hand."""
    optimizer, loss = _optimizer(net), nn.CrossEntropyLoss()
    net.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(net(inputs), targets).backward()
        optimizer.step()


def run_mxtorch(net: nn.Module, batches: Batches, *, accuracy: bool = False) -> None:
    """`fit` with loss, one-cycle schedule and TensorBoard; and training accuracy if asked for."""
    from torchmetrics.classification import MulticlassAccuracy

    from mxtorch import ScheduledOptim, Trainer

    metrics = {"accuracy": MulticlassAccuracy(num_classes=10)} if accuracy else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            net,
            nn.CrossEntropyLoss(),
            ScheduledOptim(_optimizer(net)),
            train_metrics=metrics,
            log_dir=folder,
            device="cpu",
            channels_last=False,
            progress=False,
        )
        trainer.fit(batches, lr=RATE, schedule="one_cycle")
        trainer.close()


def make_sweep(net: nn.Module, batches: Batches) -> Callable[[], Any]:
    """`find_lr` over as many steps as there are batches, in a range in which nothing diverges."""
    from mxtorch import ScheduledOptim, Trainer

    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(_optimizer(net)),
        device="cpu",
        channels_last=False,
        progress=False,
    )
    return lambda: trainer.find_lr(batches, method="sweep", start_lr=1e-7, end_lr=1e-3, num_steps=len(batches))


def run_find_lr(net: nn.Module, batches: Batches) -> None:
    """As a contender beside the others."""
    make_sweep(net, batches)()


def run_ignite(net: nn.Module, batches: Batches) -> None:
    """pytorch-ignite."""
    from ignite.engine import create_supervised_trainer

    create_supervised_trainer(net, _optimizer(net), nn.CrossEntropyLoss()).run(batches, max_epochs=1)


def run_skorch(net: nn.Module, batches: Batches) -> None:
    """Skorch: the part of its loop that handles batches, callbacks left out but for its own."""
    from skorch import NeuralNetClassifier

    learner = NeuralNetClassifier(
        net,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=RATE,
        max_epochs=1,
        train_split=None,
        callbacks__print_log=None,
        callbacks__valid_acc=None,
        iterator_train=lambda *_, **__: Handed(batches),
        verbose=0,
    )
    learner.fit(batches[0][0].numpy(), batches[0][1].numpy())


def run_accelerate(net: nn.Module, batches: Batches) -> None:
    """Hugging Face Accelerate, with the loop of its documentation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loss = nn.CrossEntropyLoss()
    net, optimizer = accelerator.prepare(net, _optimizer(net))
    net.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        accelerator.backward(loss(net(inputs), targets))
        optimizer.step()


def run_fastai(net: nn.Module, batches: Batches) -> None:
    """Fastai's Learner with its default recorder."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    def optimizer(parameters: Any, **_: Any) -> Any:
        return OptimWrapper(opt=_optimizer(net))

    data = DataLoaders(Handed(batches), Handed(batches[:1]))
    learner = Learner(data, net, loss_func=nn.CrossEntropyLoss(), opt_func=optimizer, lr=RATE)
    with learner.no_logging():
        learner.validate = lambda *_, **__: None
        learner._do_epoch_validate = lambda *_, **__: None
        learner.fit(1)


def run_lightning(net: nn.Module, batches: Batches) -> None:
    """Lightning's Trainer, all extras off."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = net, nn.CrossEntropyLoss()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.net)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), Handed(batches))


CONTENDERS: dict[str, tuple[str, Callable[[nn.Module, Batches], None]]] = {
    "bare": ("bare loop", run_bare),
    "mxtorch": ("mxtorch fit: loss, schedule, TensorBoard", run_mxtorch),
    "mxtorch_accuracy": (
        "mxtorch fit: and training accuracy",
        lambda net, batches: run_mxtorch(net, batches, accuracy=True),
    ),
    "find_lr": ("mxtorch find_lr", run_find_lr),
    "ignite": ("ignite", run_ignite),
    "skorch": ("skorch", run_skorch),
    "accelerate": ("Accelerate", run_accelerate),
    "fastai": ("fastai", run_fastai),
    "lightning": ("Lightning", run_lightning),
}


def seconds(run: Callable[[nn.Module, Batches], None], workload: Workload, steps: int) -> float:
    """The time of one run, the network being built beforehand."""
    torch.manual_seed(0)
    net, batches = workload.build(), workload.batches(steps)
    gc.collect()
    started = time.perf_counter()
    run(net, batches)
    return time.perf_counter() - started


def measure(workload: Workload, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Microseconds a step of every contender, its ratio to the bare loop, and what a run costs once."""
    torch.set_num_threads(workload.threads)
    per_step: dict[str, list[float]] = {name: [] for name in names}
    once: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # imports and caches
        seconds(CONTENDERS[name][1], workload, workload.short)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            run = CONTENDERS[name][1]
            short, long = seconds(run, workload, workload.short), seconds(run, workload, workload.long)
            step = (long - short) / (workload.long - workload.short)
            per_step[name].append(step)
            once[name].append(short - workload.short * step)
    return [
        {
            "contender": CONTENDERS[name][0],
            "microseconds_per_step": 1e6 * statistics.median(per_step[name]),
            "ratio_to_bare": statistics.median(
                mine / bare for mine, bare in zip(per_step[name], per_step["bare"], strict=True)
            ),
            "milliseconds_once": 1e3 * statistics.median(once[name]),
        }
        for name in names
    ]


def measure_find_lr(workload: Workload, steps: int = 100) -> dict[str, float]:
    """A range test as it is called, beside as many bare steps and one copy of the state, in milliseconds."""
    torch.set_num_threads(workload.threads)
    bare, found, copies = [], [], []
    for _ in range(workload.sweeps):
        bare.append(seconds(run_bare, workload, steps))
        find = make_sweep(workload.build(), workload.batches(steps))
        found.append(seconds(lambda *_, find=find: find(), workload, 1))
        copies.append(seconds(_copy_state, workload, 1))
    return {
        "bare": 1e3 * statistics.median(bare),
        "state_copy": 1e3 * statistics.median(copies),
        "find_lr": 1e3 * statistics.median(found),
        "ratio": statistics.median((f - c) / b for f, b, c in zip(found, bare, copies, strict=True)),
    }


def _copy_state(net: nn.Module, _: Batches) -> None:
    for tensor in net.state_dict().values():
        tensor.clone()


def machine() -> str:
    """Processor, cores and versions, in a line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    versions = []
    for package in ("torch", "pytorch-ignite", "skorch", "accelerate", "fastai", "pytorch-lightning"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, with commas between them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = ["bare", *(name for name in options.only.split(",") if name != "bare")]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        parser.error(f"--only: got {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    warnings.simplefilter("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.ERROR)

    print(machine())
    tables: dict[str, dict[str, Any]] = {}
    for key in WORKLOADS if options.workload == "all" else [options.workload]:
        tables[key] = {"steps": measure(WORKLOADS[key], names, options.rounds)}
        print(f"\n{WORKLOADS[key].name}; medians of {options.rounds} rounds")
        print(f"{'':42}{'us/step':>10}{'x bare':>8}{'once, ms':>10}")
        for row in tables[key]["steps"]:
            figures = f"{row['microseconds_per_step']:10.1f}{row['ratio_to_bare']:8.2f}{row['milliseconds_once']:10.1f}"
            print(f"{row['contender']:42}{figures}")
        if "find_lr" in names:
            times = tables[key]["find_lr"] = measure_find_lr(WORKLOADS[key])
            print(
                "find_lr of 100 steps {find_lr:.1f} ms, 100 bare steps {bare:.1f} ms, a copy of the state "
                "{state_copy:.2f} ms: (find_lr - copy) / bare = {ratio:.3f}".format(**times)
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
