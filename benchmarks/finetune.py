"""Fine-tuning a pretrained network on few pictures: mxtorch, fastai and Lightning, side by side.

    python benchmarks/finetune.py --data FOLDER [--repeats 3] [--peers mxtorch fastai lightning]

FOLDER has `train/<class>/` and `val/<class>/`. All three get the same EfficientNet-Lite0 with the same weights,
pictures of 224 pixels through the same transforms, batches of 16, the same number of threads and loader processes, and
SGD with momentum. Each finds a rate for the head on the frozen network by its own finder and trains it, then unfreezes
and trains all layers with rates that fall towards the input, as its own documentation does:

- mxtorch: `fine_tune`, rates of both phases found,
- fastai: `freeze`, `lr_find`, `fit_one_cycle`; `unfreeze`, `fit_one_cycle(slice(lr / 200, lr / 2))`: its `fine_tune`,
- Lightning: `Tuner.lr_find`, `BackboneFinetuning`, one run.

mxtorch trains the head for 20 epochs, as an epoch on kept features costs next to nothing, the others for 4. Every run
is a process of its own; the runs are interleaved and the table has medians. `CPU s` is the processor time of the
process and its loaders, which other work on the machine lengthens less than the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = ("mxtorch", "fastai", "lightning")
BATCH_SIZE = 16


class Clock:
    """Wall and processor time since it was made, and what the accuracy was then."""

    def __init__(self) -> None:
        self.started, self.cpu_started = time.perf_counter(), _cpu_seconds()
        self.marks: dict[str, dict[str, float]] = {}

    def mark(self, name: str, accuracy: float, best: float) -> None:
        """Note a stage."""
        seconds, cpu = time.perf_counter() - self.started, _cpu_seconds() - self.cpu_started
        self.marks[name] = {"seconds": seconds, "cpu": cpu, "accuracy": accuracy, "best": best}


def _cpu_seconds() -> float:
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def prepare(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The network with a new head, and the data sets."""
    import torch
    from torch import nn
    from torchvision.datasets import ImageFolder

    import model_zoo

    torch.manual_seed(options.seed)
    net = model_zoo.efficientnet_lite0(pretrained=True)
    transform = model_zoo.preprocess(net)
    train, val = (ImageFolder(str(options.data / part), transform) for part in ("train", "val"))
    net.fc = nn.Linear(net.fc.in_features, len(train.classes))
    return net, train, val


def run_mxtorch(options: argparse.Namespace) -> Clock:
    """`fine_tune`."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchmetrics.classification import MulticlassAccuracy

    from mxtorch import Callback, Trainer

    net, train, val = prepare(options)
    loaders = [
        DataLoader(data, BATCH_SIZE, shuffle=data is train, num_workers=options.workers) for data in (train, val)
    ]

    class Marks(Callback):
        """Notes the end of each phase."""

        def on_fit_end(self, trainer: Trainer) -> None:
            name = "all" if "frozen" in clock.marks else "frozen"
            accuracy = trainer.history["val/accuracy"]
            clock.mark(name, accuracy[-1], max(accuracy[options.head_epochs :] if name == "all" else accuracy))

    clock = Clock()
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4),
        metrics={"accuracy": MulticlassAccuracy(len(train.classes), average="micro")},
        callbacks=[Marks()],
        device="cpu",
        progress=False,
    )
    print(trainer.fine_tune(*loaders, epochs=options.epochs, freeze_epochs=options.head_epochs), file=sys.stderr)
    print(*trainer.fine_tuning.notes, sep="\n", file=sys.stderr)
    return clock


def run_fastai(options: argparse.Namespace) -> Clock:
    """What its documentation shows: find, train the head, unfreeze, train with a slice of rates."""
    from functools import partial

    import fastai.callback.all  # noqa: F401 - lr_find, no_bar and their kind are put onto the learner by it
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import LabelSmoothingCrossEntropy
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper

    net, train, val = prepare(options)
    data = DataLoaders.from_dsets(train, val, bs=BATCH_SIZE, num_workers=options.workers, device=torch.device("cpu"))
    head = {id(parameter) for parameter in net.fc.parameters()}

    def splitter(model: Any) -> list[list[Any]]:
        parameters = list(model.parameters())
        return [[p for p in parameters if id(p) not in head], [p for p in parameters if id(p) in head]]

    clock = Clock()
    learner = Learner(
        data,
        net,
        loss_func=LabelSmoothingCrossEntropy(),
        opt_func=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-4)),
        splitter=splitter,
        metrics=accuracy,
        path=Path(tempfile.mkdtemp()),  # lr_find writes its copy of the weights there
    )
    with learner.no_bar(), learner.no_logging():
        learner.freeze()
        rate = learner.lr_find(show_plot=False).valley
        learner.fit_one_cycle(options.frozen_epochs, rate)
        values = [row[2] for row in learner.recorder.values]
        clock.mark("frozen", values[-1], max(values))
        learner.unfreeze()
        learner.fit_one_cycle(options.epochs, slice(rate / 200, rate / 2))
        values = [row[2] for row in learner.recorder.values]
        clock.mark("all", values[-1], max(values))
    return clock


def run_lightning(options: argparse.Namespace) -> Clock:
    """`BackboneFinetuning`, at the rate that `Tuner.lr_find` suggests."""
    import logging

    import pytorch_lightning as lightning
    import torch
    from pytorch_lightning.callbacks import BackboneFinetuning
    from pytorch_lightning.tuner import Tuner
    from torch import nn
    from torch.utils.data import DataLoader

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    net, train, val = prepare(options)
    loaders = [
        DataLoader(data, BATCH_SIZE, shuffle=data is train, num_workers=options.workers) for data in (train, val)
    ]
    head, net.fc = net.fc, nn.Identity()

    class Module(lightning.LightningModule):
        """A backbone and a head, as `BackboneFinetuning` wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head, self.lr = net, head, 1e-3
            self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
            self.right: list[Any] = []
            self.accuracies: list[float] = []

        def training_step(self, batch: Any, index: int) -> Any:
            return self.loss(self.head(self.backbone(batch[0])), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.right.append(self.head(self.backbone(batch[0])).argmax(1) == batch[1])

        def on_validation_epoch_end(self) -> None:
            self.accuracies.append(float(torch.cat(self.right).float().mean()))
            self.right.clear()
            if not self.trainer.sanity_checking and self.trainer.current_epoch + 1 == options.frozen_epochs:
                clock.mark("frozen", self.accuracies[-1], max(self.accuracies))

        def configure_optimizers(self) -> Any:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.SGD(trained, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)

    clock = Clock()
    module = Module()
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=options.frozen_epochs, backbone_initial_ratio_lr=0.01)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    BackboneFinetuning.freeze(module.backbone)
    finder = lightning.Trainer(max_epochs=8, limit_val_batches=0, **quiet)
    found = Tuner(finder).lr_find(module, *loaders, min_lr=1e-6, max_lr=10, update_attr=False)
    module.lr = found.suggestion() or 1e-3
    trainer = lightning.Trainer(max_epochs=options.frozen_epochs + options.epochs, callbacks=[callback], **quiet)
    trainer.fit(module, *loaders)
    clock.mark("all", module.accuracies[-1], max(module.accuracies[options.frozen_epochs :]))
    return clock


RUNS: dict[str, Callable[[argparse.Namespace], Clock]] = {
    "mxtorch": run_mxtorch,
    "fastai": run_fastai,
    "lightning": run_lightning,
}


def run_apart(peer: str, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One run in a process of its own."""
    arguments = [sys.executable, __file__, "--one", peer, "--seed", str(seed), "--data", str(options.data)]
    for name in ("threads", "workers", "epochs", "frozen_epochs", "head_epochs"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr}")
    if options.verbose:
        print(done.stderr, file=sys.stderr)
    marks: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return marks


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.add_argument("--head-epochs", type=int, default=20, help="of the head, for mxtorch (default: %(default)s)")
    parser.add_argument("--frozen-epochs", type=int, default=4, help="the same, for the peers (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of all layers, for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="what each run tells")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run, interleaved; print the table."""
    options = parse_arguments()
    if options.one:
        import torch

        warnings.simplefilter("ignore")
        torch.set_num_threads(options.threads)
        print(json.dumps(RUNS[options.one](options).marks))
        return
    runs: dict[str, list[dict[str, dict[str, float]]]] = {peer: [] for peer in options.peers}
    for repeat in range(options.repeats):
        for peer in options.peers:
            runs[peer].append(run_apart(peer, repeat, options))
            last = {stage: {name: round(v, 3) for name, v in m.items()} for stage, m in runs[peer][-1].items()}
            print(f"run {repeat + 1}, {peer}, load {os.getloadavg()[0]:.1f}: {last}", file=sys.stderr, flush=True)
    print("| | frozen: s | CPU s | accuracy | best | and all layers: s | CPU s | accuracy | best |")
    print("|---|---|---|---|---|---|---|---|---|")
    columns = [(stage, name) for stage in ("frozen", "all") for name in ("seconds", "cpu", "accuracy", "best")]
    for peer, marks in runs.items():
        medians = [(name, statistics.median(mark[stage][name] for mark in marks)) for stage, name in columns]
        cells = [f"{value:.1f}" if name in ("seconds", "cpu") else f"{value:.3f}" for name, value in medians]
        print(f"| {peer} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
