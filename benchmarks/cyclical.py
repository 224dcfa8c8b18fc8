"""Does a cyclic rate between the bounds that find_lr finds get there sooner? Smith (2015), section 4.1, scaled down.

    python benchmarks/cyclical.py --data cifar10_subset.npz [--seeds 3] [--json FILE] [--figures docs]
    python benchmarks/cyclical.py --data cifar10_subset.npz --batch-size 100 --range-test --figures docs

The paper (arXiv 1506.01186, table 1) trains Caffe's cifar10_quick on CIFAR-10: `triangular2` between bounds from a
range test reaches after 25,000 iterations the 81.4% that a fixed rate, its lower bound, reaches after 70,000. Here the
network is the same. The data are what `--data` names: a file of arrays (`x_train` as uint8 N x 32 x 32 x 3, `y_train`,
`x_test`, `y_test`), or the root of torchvision's CIFAR10, downloaded when it is not there. The defaults are for 6,000
images and one CPU core, where a run of 30,000 samples takes a minute; `--iterations 70000 --step-size 2000
--batch-size 100 --every 500` are the paper's.

Each seed draws the network's weights and the order of the data, and finds bounds of its own. "Ends at" is the mean of a
run's last three evaluations; a run reaches an accuracy where two evaluations in a row are not below it, its own at its
last iteration at the latest. Policies are compared seed by seed; medians are over the seeds. Other than in Caffe,
pixels are standardised and weights drawn after Glorot and Bengio, so the rates are not the paper's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, ScheduledOptim, Trainer, init, schedules
from mxtorch.lr_finder import LRFinderResult

Curve = list[tuple[int, float]]


class Batches:
    """Batches of tensors in memory, shuffled anew in each pass where asked for."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, *, shuffle: bool) -> None:
        self.images, self.labels, self.batch_size, self.shuffle = images, labels, batch_size, shuffle

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for places in order.split(self.batch_size):
            yield self.images[places], self.labels[places]


class Watch(Callback):
    """Writes down the accuracy on the test images, every so many iterations."""

    def __init__(self, test_data: Batches, every: int) -> None:
        self.test_data, self.every = test_data, every
        self.curve: Curve = []

    def on_step(self, trainer: Trainer) -> None:
        """Evaluate when it is time."""
        if trainer.step % self.every == 0:
            self.curve.append((trainer.step, trainer.evaluate(self.test_data)["val/accuracy"]))


def read(source: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; images are standardised with the training images' figures."""
    if source.suffix == ".npz":
        with np.load(source) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    else:
        from torchvision.datasets import CIFAR10

        parts = [CIFAR10(str(source), train=train, download=True) for train in (True, False)]
        arrays = [np.asarray(array) for part in parts for array in (part.data, part.targets)]
    images = [torch.from_numpy(array).permute(0, 3, 1, 2).float() for array in (arrays[0], arrays[2])]
    mean, std = images[0].mean((0, 2, 3), keepdim=True), images[0].std((0, 2, 3), keepdim=True)
    train, test = ((part - mean) / std for part in images)
    return train, torch.from_numpy(arrays[1]).long(), test, torch.from_numpy(arrays[3]).long()


def cifar10_quick() -> nn.Sequential:
    """Caffe's network of three convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, 10),
    )


def make_trainer(seed: int, device: str, callbacks: list[Callback]) -> Trainer:
    """The paper's solver: momentum, weight decay, and twice the rate for biases."""
    net = cifar10_quick()
    init.initialize(net, "xavier_normal", seed=seed)
    named = list(net.named_parameters())
    weights = [parameter for name, parameter in named if name.endswith("weight")]
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    groups = [{"params": weights, "lr": 1e-3}, {"params": biases, "lr": 2e-3}]
    optimizer = ScheduledOptim(torch.optim.SGD(groups, momentum=0.9, weight_decay=0.004))
    accuracy = {"accuracy": MulticlassAccuracy(10, average="micro")}
    return Trainer(
        net, nn.CrossEntropyLoss(), optimizer, metrics=accuracy, callbacks=callbacks, device=device, seed=seed,
        progress=False,
    )  # fmt: skip


def policies(found: LRFinderResult, constant: float, step_size: int) -> dict[str, tuple[float, schedules.Schedule]]:
    """By name, the base rate and the schedule. The paper's fixed rate is its lower bound; it steps down by tenths."""
    assert found.bounds is not None
    low, high = found.bounds
    triangular2 = schedules.Triangular2(step_size, low / high, cycle_momentum=False)  # as in the paper
    return {
        "triangular2": (high, triangular2),
        "fixed, lower bound": (low, schedules.Constant()),
        "fixed, suggestion": (constant, schedules.Constant()),
        "exponential, upper bound": (high, schedules.Exponential()),
        "step, upper bound": (high, schedules.Step()),
        "triangular2, bounds / 3": (high / 3, triangular2),
        "triangular2, bounds x 3": (high * 3, triangular2),
    }


def train(
    data: tuple[Batches, Batches], lr: float, schedule: schedules.Schedule, seed: int, options: argparse.Namespace
) -> Curve:
    """The accuracy over the iterations of one run; a run that diverges stays where it fell."""
    watch = Watch(data[1], options.every)
    trainer = make_trainer(seed, options.device, [watch])
    steps_per_pass = len(data[0])
    schedule = schedule.for_steps(options.iterations)
    passes, rest = divmod(options.iterations, steps_per_pass)
    try:
        if passes:
            trainer.fit(data[0], epochs=passes, lr=lr, schedule=schedule)
        if rest:
            trainer.fit(data[0], steps_per_epoch=rest, **({} if passes else {"lr": lr, "schedule": schedule}))
    except FloatingPointError:
        last = watch.curve[-1][1] if watch.curve else 0.1
        done = len(watch.curve) * options.every
        watch.curve += [
            (step, min(last, 0.1)) for step in range(done + options.every, options.iterations + 1, options.every)
        ]
    return watch.curve


def ends_at(curve: Curve) -> float:
    """The accuracy a run ends at."""
    return statistics.mean(accuracy for _, accuracy in curve[-3:])


def reaches(curve: Curve, accuracy: float) -> float:
    """The iteration from which two evaluations in a row are not below the accuracy; infinite where there is none."""
    pairs = itertools.pairwise(curve)
    return next((float(step) for (step, one), (_, two) in pairs if min(one, two) >= accuracy), math.inf)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a policy: where it ends, and after how many iterations it and the cyclic ones are there; medians."""

    def iterations(name: str, targets: list[float]) -> float:
        pairs = zip(runs, targets, strict=True)
        return statistics.median(reaches(run["curves"][name], target) for run, target in pairs)

    rows = []
    for name in runs[0]["curves"]:
        targets = [ends_at(run["curves"][name]) for run in runs]
        rows.append(
            {
                "policy": name,
                "ends_at": statistics.median(targets),
                "ends_by_seed": targets,
                "reached_after": min(iterations(name, targets), runs[0]["curves"][name][-1][0]),
                "triangular2_after": iterations("triangular2", targets),
                "lowered_after": iterations("triangular2, bounds / 3", targets),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Print the table."""
    for run in runs:
        low, high = run["bounds"]
        constant = run["suggestion"]
        print(f"seed {run['seed']}: bounds {low:.2e} to {high:.2e}, suggestion for a constant rate {constant:.2e}")
    print("\niterations until its end's accuracy is reached, by itself, by triangular2, by the same with bounds / 3")
    print(f"{'policy':26} {'ends at':>8} {'(range)':>15} {'itself':>7} {'triangular2':>12} {'bounds / 3':>11}")
    for row in rows:
        low, high = min(row["ends_by_seed"]), max(row["ends_by_seed"])
        after = [row["reached_after"], row["triangular2_after"], row["lowered_after"]]
        itself, cyclic, lowered = ["never" if math.isinf(count) else f"{count:.0f}" for count in after]
        print(
            f"{row['policy']:26} {row['ends_at']:8.3f}   ({low:.3f}-{high:.3f}) {itself:>7} {cyclic:>12} {lowered:>11}"
        )


def draw_range_test(found: LRFinderResult, folder: Path) -> None:
    """The two pictures of Surmenok (2017): the rate over the iterations, the loss over the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="tight")
    axes = figure.subplots()
    axes.plot(range(1, len(found.rates) + 1), found.rates, color="#1f4e79", linewidth=2)
    axes.set(yscale="log", xlabel="iteration", ylabel="learning rate")
    axes.set_title("The rate of a range test", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    figure.savefig(folder / "article_rate.png", dpi=110)
    figure = Figure(figsize=(7, 4.2), layout="tight")
    found.plot(figure.subplots())
    figure.savefig(folder / "article_loss.png", dpi=110)


def draw_curves(runs: list[dict[str, Any]], folder: Path) -> None:
    """The median accuracy of each policy over the iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="tight")
    axes = figure.subplots()
    for name in runs[0]["curves"]:
        curves = [run["curves"][name] for run in runs]
        steps = [step for step, _ in curves[0]]
        medians = [statistics.median(curve[place][1] for curve in curves) for place in range(len(steps))]
        cyclic = name.startswith("triangular2")
        style = {"linestyle": "-" if cyclic else "--", "linewidth": 2.2 if name == "triangular2" else 1.3}
        axes.plot(steps, medians, label=name, **style)
    axes.set(xlabel="iteration", ylabel="accuracy on the test images")
    axes.set_title(f"cifar10_quick, median of {len(runs)} seeds", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(folder / "cyclical.png", dpi=110)


def main() -> None:
    """Find bounds, train with every policy, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an .npz of arrays, or the root of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1200, help="of each run")
    parser.add_argument("--step-size", type=int, default=150, help="half a cycle of triangular2, in iterations")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--every", type=int, default=60, help="iterations between two evaluations")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figures", type=Path, help="a folder for the pictures")
    parser.add_argument("--range-test", action="store_true", help="draw the first seed's range test, and stop")
    options = parser.parse_args()
    train_images, train_labels, test_images, test_labels = read(options.data)
    print(f"{len(train_labels)} training and {len(test_labels)} test images", flush=True)
    data = (
        Batches(train_images, train_labels, options.batch_size, shuffle=True),
        Batches(test_images, test_labels, 500, shuffle=False),
    )
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        trainer = make_trainer(seed, options.device, [])
        options_of_search = {"method": "sweep", "start_lr": 1e-5, "num_steps": 200}
        found = trainer.find_lr(data[0], schedule="triangular2", **options_of_search)
        constant = trainer.find_lr(data[0], schedule="constant", **options_of_search).suggestion
        print(f"seed {seed}: {found}", flush=True)
        if options.range_test:
            draw_range_test(found, options.figures or Path("."))
            return
        if found.bounds is None or constant is None:
            raise SystemExit("No bounds, so there is nothing to compare.")
        curves: dict[str, Curve] = {}
        for name, (lr, schedule) in policies(found, constant, options.step_size).items():
            curves[name] = train(data, lr, schedule, seed, options)
            print(f"  {name:26} base rate {lr:.2e}: ends at {ends_at(curves[name]):.3f}", flush=True)
        runs.append({"seed": seed, "bounds": found.bounds, "suggestion": constant, "curves": curves})
        rows = table(runs)
        if options.json is not None:
            options.json.write_text(json.dumps({"table": rows, "runs": runs}, indent=1) + "\n")
    show(rows, runs)
    if options.figures is not None:
        draw_curves(runs, options.figures)


if __name__ == "__main__":
    main()
