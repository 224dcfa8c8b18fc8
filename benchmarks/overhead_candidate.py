"""What a training loop costs: microseconds a step of mxtorch and of its peers, beside a loop written by hand.

    python benchmarks/overhead_candidate.py --workload mlp
    python benchmarks/overhead_candidate.py --only ignite,skorch --rounds 9 --json overhead.json

All contenders train the same network on the same prepared batches in one process. Every round runs each of them at
two lengths, in an order that moves on from round to round; the difference between the lengths is free of what a run
costs once. A ratio is to a bare loop run just before, so that a busy machine slows both; the bare loop's own row is
measured like the others and so shows the noise. Medians are over the rounds.

The comparison favours the peers: their progress bars, loggers, checkpoints and callbacks are off, while mxtorch
computes its loss, follows a one-cycle schedule and writes to TensorBoard. Before anything is timed, each contender is
checked to have trained what the bare loop trained, bit noise aside: the same weights, where the rate is the same.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]
Clock = Callable[[], float]
RATE = 0.01
MOMENTUM = 0.9
CLASSES = 10
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
PREPARED_BATCHES = 8  # cycled through, so that memory does not grow with the steps


class PreparedLoader:
    """Batches that cost nothing to load. Not a list, which Lightning and fastai take for something else."""

    device = torch.device("cpu")

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class Workload:
    """A network, the shape of its batches, the two lengths of a run in steps, and the threads it runs on."""

    title: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    short: int
    long: int
    threads: int

    def prepare(self) -> list[Batch]:
        """The batches that all runs share."""
        generator = torch.Generator().manual_seed(0)
        batch_size = self.input_shape[0]
        return [
            (
                torch.randn(self.input_shape, generator=generator),
                torch.randint(CLASSES, (batch_size,), generator=generator),
            )
            for _ in range(PREPARED_BATCHES)
        ]


def build_mlp() -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, CLASSES))


def build_resnet18() -> nn.Module:
    """ResNet-18 of torchvision, untrained."""
    import torchvision

    return torchvision.models.resnet18(num_classes=CLASSES)


WORKLOADS = {
    "mlp": Workload("MLP, a step of about 0.4 ms, one thread", build_mlp, (64, 128), 200, 1200, 1),
    "resnet18": Workload(
        "ResNet-18 at 64 px, batch 16, all cores", build_resnet18, (16, 3, 64, 64), 5, 30, os.cpu_count() or 1
    ),
}


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that all contenders use."""
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)


# -------------------------------------------------------------------- contenders: each trains `net` in place, one epoch


def run_bare(net: nn.Module, loader: PreparedLoader) -> None:
    """The loop written by hand; it reads no loss."""
    optimizer = make_optimizer(net)
    loss_function = nn.CrossEntropyLoss()
    net.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss_function(net(inputs), targets).backward()
        optimizer.step()


def run_mxtorch(net: nn.Module, loader: PreparedLoader, *, accuracy: bool = False) -> None:
    """`fit` with loss, one-cycle schedule and TensorBoard; `accuracy` adds a metric of every training batch."""
    from torchmetrics.classification import MulticlassAccuracy

    from mxtorch import ScheduledOptim, Trainer, schedules

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            net,
            nn.CrossEntropyLoss(),
            ScheduledOptim(make_optimizer(net)),
            metrics=None,
            train_metrics={"accuracy": MulticlassAccuracy(num_classes=CLASSES)} if accuracy else None,
            log_dir=folder,
            device="cpu",
            channels_last=False,  # "auto" changes the speed of the convolutions, which is not the loop's merit
            progress=False,
        )
        trainer.fit(loader, epochs=1, lr=RATE, schedule=schedules.OneCycle())
        trainer.close()  # writing the last events to the file counts


def run_find_lr(net: nn.Module, loader: PreparedLoader) -> None:
    """`find_lr` over as many steps, in a range in which nothing diverges, its copies and restoring included."""
    from mxtorch import ScheduledOptim, Trainer

    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(make_optimizer(net)),
        device="cpu",
        channels_last=False,
        progress=False,
    )
    result = trainer.find_lr(loader, start_lr=1e-6, end_lr=1e-2, num_steps=len(loader))
    if len(result.losses) != len(loader):
        raise RuntimeError(f"find_lr: took {len(result.losses)} of {len(loader)} steps, so its time means nothing")


def run_ignite(net: nn.Module, loader: PreparedLoader) -> None:
    """`create_supervised_trainer`; it reads the loss of every step, as is its default."""
    from ignite.engine import create_supervised_trainer

    create_supervised_trainer(net, make_optimizer(net), nn.CrossEntropyLoss()).run(loader, max_epochs=1)


def run_skorch(net: nn.Module, loader: PreparedLoader) -> None:
    """`NeuralNet` without validation and callbacks. The arrays for `fit` stand for the loader's own data."""
    from skorch import NeuralNet

    learner = NeuralNet(
        net,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=MOMENTUM,
        lr=RATE,
        max_epochs=1,
        train_split=None,
        callbacks="disable",
        iterator_train=lambda dataset, **settings: loader,
        device="cpu",
        verbose=0,
    )
    learner.fit(*loader.batches[0])


def run_accelerate(net: nn.Module, loader: PreparedLoader) -> None:
    """The loop of its documentation; `prepare` passes on a loader that is none of torch's."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loss_function = nn.CrossEntropyLoss()
    model, optimizer, batches = accelerator.prepare(net, make_optimizer(net), loader)
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        accelerator.backward(loss_function(model(inputs), targets))
        optimizer.step()


def run_fastai(net: nn.Module, loader: PreparedLoader) -> None:
    """`Learner` with the callbacks it cannot do without, around torch's optimizer; nothing to validate on."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    learner = Learner(
        DataLoaders(loader, PreparedLoader([]), device="cpu"),
        net,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=functools.partial(OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM),
        lr=RATE,
        moms=None,
    )
    with learner.no_logging():  # its progress bar comes with modules that are not imported here
        learner.fit(1)


def run_lightning(net: nn.Module, loader: PreparedLoader, *, barebones: bool = False) -> None:
    """`Trainer` without logger, bar, summary and checkpoints, or in the mode it has for measuring its overhead."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.loss_function = nn.CrossEntropyLoss()

        def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
            inputs, targets = batch
            return self.loss_function(self.net(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.net)

    if barebones:
        switches = {"barebones": True}
    else:
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        switches = dict.fromkeys(names, False)
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, **switches).fit(Module(), loader)


@dataclass(frozen=True)
class Contender:
    """A loop, what it needs installed, and what its weights must be afterwards, beside the bare loop's."""

    title: str
    run: Callable[[nn.Module, PreparedLoader], None]
    module: str | None
    distribution: str | None
    weights: Literal["as bare", "trained", "untouched"] = "as bare"


CONTENDERS = {
    "bare": Contender("bare loop", run_bare, None, None),
    "mxtorch": Contender("mxtorch fit", run_mxtorch, "mxtorch", "mxtorch", "trained"),
    "mxtorch_accuracy": Contender(
        "mxtorch fit with accuracy", functools.partial(run_mxtorch, accuracy=True), "mxtorch", "mxtorch", "trained"
    ),
    "find_lr": Contender("mxtorch find_lr", run_find_lr, "mxtorch", "mxtorch", "untouched"),
    "ignite": Contender("ignite", run_ignite, "ignite", "pytorch-ignite"),
    "skorch": Contender("skorch", run_skorch, "skorch", "skorch"),
    "accelerate": Contender("Accelerate", run_accelerate, "accelerate", "accelerate"),
    "fastai": Contender("fastai", run_fastai, "fastai", "fastai"),
    "lightning": Contender("Lightning", run_lightning, "pytorch_lightning", "pytorch-lightning"),
    "lightning_barebones": Contender(
        "Lightning, barebones=True",
        functools.partial(run_lightning, barebones=True),
        "pytorch_lightning",
        "pytorch-lightning",
    ),
}


# -------------------------------------------------------------------- measuring


def timed_run(
    contender: Contender, workload: Workload, batches: list[Batch], steps: int, clock: Clock
) -> tuple[float, nn.Module]:
    """Seconds of one run, and the network it trained; building the network does not count."""
    torch.manual_seed(0)
    torch.set_num_threads(workload.threads)  # again each time, as a peer may have changed it
    net = workload.build()
    loader = PreparedLoader([batches[step % len(batches)] for step in range(steps)])
    gc.collect()
    started = clock()
    contender.run(net, loader)
    return clock() - started, net


def check_weights(name: str, trained: nn.Module, bare: nn.Module, initial: nn.Module) -> None:
    """A contender that did other work than the bare loop must not be compared with it.

    Raises:
        RuntimeError: The weights are not what they should be.
    """
    expected = CONTENDERS[name].weights
    reference = bare if expected == "as bare" else initial
    pairs = list(zip(trained.parameters(), reference.parameters(), strict=True))
    same = all(torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5) for mine, theirs in pairs)
    if same is (expected == "trained"):
        raise RuntimeError(f"{name}: the weights after a run are not {expected}, so its time means nothing")


def warm_up(workload: Workload, batches: list[Batch], names: list[str]) -> None:
    """Fill caches, import what is imported late, and check that all contenders do the same work."""
    _, bare = timed_run(CONTENDERS["bare"], workload, batches, workload.short, time.perf_counter)
    torch.manual_seed(0)
    initial = workload.build()
    for name in names:
        _, trained = timed_run(CONTENDERS[name], workload, batches, workload.short, time.perf_counter)
        check_weights(name, trained, bare, initial)


def step_and_start(contender: Contender, workload: Workload, batches: list[Batch], clock: Clock) -> tuple[float, float]:
    """Seconds a step, and seconds that a run costs once, from a short run and a long one."""
    short, _ = timed_run(contender, workload, batches, workload.short, clock)
    long, _ = timed_run(contender, workload, batches, workload.long, clock)
    step = (long - short) / (workload.long - workload.short)
    return step, short - workload.short * step


def measure(workload: Workload, names: list[str], rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """One row for each contender; `names` holds "bare"."""
    batches = workload.prepare()
    warm_up(workload, batches, names)
    silence()  # imports have set up loggers and filters of their own
    gc.collect()
    gc.freeze()  # nobody pays for walking through the modules of the others
    steps: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            bare_step, _ = step_and_start(CONTENDERS["bare"], workload, batches, clock)
            step, start = step_and_start(CONTENDERS[name], workload, batches, clock)
            steps[name].append(step)
            starts[name].append(start)
            ratios[name].append(step / bare_step)
    gc.unfreeze()
    return [
        {
            "name": name,
            "title": CONTENDERS[name].title,
            "microseconds_per_step": 1e6 * statistics.median(steps[name]),
            "ratio_to_bare": statistics.median(ratios[name]),
            "start_milliseconds": 1e3 * statistics.median(starts[name]),
            "rounds": {
                "microseconds_per_step": [1e6 * seconds for seconds in steps[name]],
                "ratio_to_bare": ratios[name],
                "start_milliseconds": [1e3 * seconds for seconds in starts[name]],
            },
        }
        for name in names
    ]


# -------------------------------------------------------------------- what is printed


def processor_name() -> str:
    """The processor's model where the system tells it."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(names: list[str]) -> dict[str, Any]:
    """Processor, cores and the versions of all that is compared."""
    distributions = ["torch", "torchvision", *(CONTENDERS[name].distribution for name in names)]
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in dict.fromkeys(distributions) if name},
    }


def print_table(workload: Workload, rows: list[dict[str, Any]], rounds: int, clock: str) -> None:
    """Aligned columns; the range is that of the ratios over the rounds, and tells the noise where it is bare's."""
    steps = f"{workload.short} and {workload.long} steps"
    print(f"\n{workload.title}; {workload.threads} thread(s); {clock} time, medians of {rounds} rounds of {steps}")
    print(f"{'':28}{'us/step':>10}{'x bare':>9}{'range':>14}{'start, ms':>11}")
    for row in rows:
        ratios = row["rounds"]["ratio_to_bare"]
        ratio_range = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(
            f"{row['title']:28}{row['microseconds_per_step']:10.0f}{row['ratio_to_bare']:9.2f}"
            f"{ratio_range:>14}{row['start_milliseconds']:11.1f}"
        )


def silence() -> None:
    """Keep the peers' warnings and notices out of the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def parse_options() -> argparse.Namespace:
    """The command line, with `names` in the order they are measured in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--only", help=f"with commas between them, of: {','.join(CONTENDERS)}; bare always runs")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time of all threads, for a look on a busy machine; report wall time of a quiet one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, figures and every round here")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}; give at least 1")
    asked = list(CONTENDERS) if options.only is None else [name.strip() for name in options.only.split(",")]
    unknown = [name for name in asked if name not in CONTENDERS]
    if unknown:
        parser.error(f"--only: got {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    options.names = [name for name in CONTENDERS if name == "bare" or name in asked]
    missing = [name for name in options.names if not is_installed(CONTENDERS[name].module)]
    if missing:
        distributions = dict.fromkeys(str(CONTENDERS[name].distribution) for name in missing)
        rest = ",".join(name for name in options.names if name not in missing)
        parser.error(
            f"not installed: {', '.join(distributions)}; install the project with its `bench` extra, "
            f"or leave them out with --only {rest}"
        )
    return options


def is_installed(module: str | None) -> bool:
    """Whether the module could be imported; nothing is imported for that."""
    return module is None or importlib.util.find_spec(module) is not None


def main() -> None:
    """Measure and print."""
    options = parse_options()
    silence()
    machine = describe_machine(options.names)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    tables = {}
    for key in WORKLOADS if options.workload == "all" else [options.workload]:
        rows = measure(WORKLOADS[key], options.names, options.rounds, CLOCKS[options.clock])
        print_table(WORKLOADS[key], rows, options.rounds, options.clock)
        sys.stdout.flush()
        tables[key] = {"rounds": options.rounds, "clock": options.clock, "rows": rows}
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "workloads": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
