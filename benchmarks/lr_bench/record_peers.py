"""What the peers suggest for the recorded tasks, each by its own public API, on one processor core.

    python -m benchmarks.lr_bench.record_peers --data FOLDER --workers 8
    python -m benchmarks.lr_bench.record_peers --write

Network, first weights and data are those of the recording of the same seed; bfloat16 is left out. One curve of fastai
serves its four rules. Clipping is a hook of the optimizer, so that every tool clips. The suggestions go to a journal,
then to `recordings/peers.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from benchmarks.lr_bench import peers
from benchmarks.lr_bench.data import CACHE
from benchmarks.lr_bench.fleet import Augment
from benchmarks.lr_bench.jobs import read_journal, run_jobs
from benchmarks.lr_bench.recipes import GROUPS, Recipe, recipes
from benchmarks.lr_bench.record import RECORDINGS
from benchmarks.lr_bench.tasks import Setup

JOURNAL = CACHE / "peers.jsonl"
FASTAI_RULES = ("minimum", "steep", "valley", "slide")
SEEDS = {"long": 1, "cheap": 2, "small": 2}


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches by a list of indices, augmented where the recipe says so."""

    def __init__(self, inputs: Tensor, targets: Tensor, augment: Augment | None) -> None:
        self.inputs, self.targets, self.augment = inputs, targets, augment

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = self.inputs[indices], self.targets[indices]
        return (inputs, targets) if self.augment is None else self.augment(inputs, targets)


class MeanLoss(nn.Module):
    """The mean of a recipe's losses."""

    def __init__(self, losses: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        return self.losses(outputs, targets).mean()


class MuonWithAdamW(torch.optim.Optimizer):
    """What the recordings call Muon, as one optimizer: AdamW at the same rate takes what is no hidden matrix."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        everything = [parameter for group in self.param_groups for parameter in group["params"]]
        hidden = [parameter for parameter in everything if parameter.dim() == 2][1:-1]
        known = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in everything if id(parameter) not in known]
        self.inner = (
            torch.optim.Muon(hidden, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, weight_decay=weight_decay),
        )

    def step(self, closure: Any = None) -> Any:
        """Both."""
        loss = None if closure is None else closure()
        for optimizer in self.inner:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            optimizer.step()
        return loss


def setup(recipe: Recipe, folder: Path, seed: int) -> Setup:
    """What a tool gets."""
    samples = recipe.load(folder)
    torch.manual_seed(seed)
    model = recipe.network()
    spec = recipe.optimizer
    parameters = list(model.parameters())
    muon = spec.kind == "Muon"
    optimizer = MuonWithAdamW(parameters, **spec.settings) if muon else spec.for_torch(parameters)
    if recipe.clip is not None:
        limit = recipe.clip

        def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)

        optimizer.register_step_pre_hook(clip)
    train = Batches(samples.train_inputs, samples.train_targets, recipe.augment)
    val = Batches(samples.val_inputs, samples.val_targets, None)
    order = RandomSampler(train, generator=torch.Generator().manual_seed(2000 + seed))
    batch_size = min(recipe.batch_size, len(train))
    return Setup(
        model,
        MeanLoss(recipe.losses),
        optimizer,
        DataLoader(train, sampler=BatchSampler(order, batch_size, drop_last=True), batch_size=None),
        DataLoader(val, sampler=BatchSampler(SequentialSampler(val), 250, drop_last=False), batch_size=None),
    )


def _fastai(made: Setup) -> dict[str, float | None]:
    found = peers.fastai_rules(made, FASTAI_RULES)
    return {f"fastai {rule}": rate for rule, rate in found.items()}


def _one(name: str, finder: Callable[..., peers.Suggestions]) -> Callable[[Setup], dict[str, float | None]]:
    return lambda made: {name: finder(None, made)["constant"]}


TOOLS: dict[str, Callable[[Setup], dict[str, float | None]]] = {
    "fastai": _fastai,
    "ignite": _one("ignite", peers.ignite),
    "torch-lr-finder": _one("torch-lr-finder", peers.torch_lr_finder),
    "Lightning": _one("Lightning", peers.lightning),
}


def ask(job: tuple[str, int, str, Path, float]) -> dict[str, Any] | None:
    """What a tool says; the name of the error where it fails."""
    name, seed, tool, folder, deadline = job
    if time.time() > deadline:
        return None
    torch.set_num_threads(1)
    recipe = next(recipe for group in GROUPS for recipe in recipes(group) if recipe.name == name)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    started, line = time.perf_counter(), {"task": name, "seed": seed, "tool": tool}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            rates = TOOLS[tool](setup(recipe, folder, seed))
        except Exception as error:
            return {**line, "rates": {}, "error": f"{type(error).__name__}: {error}"[:200]}
    usable = {key: rate if rate and math.isfinite(rate) and rate > 0 else None for key, rate in rates.items()}
    return {**line, "rates": usable, "took": round(time.perf_counter() - started, 2)}


def record(options: argparse.Namespace) -> None:
    """Ask all tools for all tasks."""
    deadline = time.time() + options.seconds
    done = {(line["task"], line["seed"], line["tool"]) for line in read_journal(options.journal)}
    chosen = [recipe for group in options.group for recipe in recipes(group)]
    jobs = [
        (recipe.name, seed, tool, options.data, deadline)
        for seed in range(max(SEEDS.values()))
        for recipe in chosen
        for tool in TOOLS
        if seed < SEEDS[recipe.group] and (recipe.name, seed, tool) not in done
    ]
    torch.set_num_threads(1)
    for recipe in chosen:
        recipe.load(options.data)
    started = time.time()

    def show(line: dict[str, Any]) -> None:
        said = line.get("error") or {key: rate and float(f"{rate:.2g}") for key, rate in line["rates"].items()}
        print(
            f"{time.time() - started:6.1f} {line.get('took', 0):6.1f} {line['seed']} {line['task']}: {said}", flush=True
        )

    count = run_jobs(ask, jobs, options.journal, workers=options.workers, until=deadline + 5, on_line=show)
    print(f"{count} of {len(jobs)} jobs")


def write(journal: Path) -> None:
    """Turn the journal into `recordings/peers.json`."""
    suggestions: dict[str, dict[str, dict[str, float | None]]] = {}
    errors: dict[str, int] = {}
    known = {recipe.name for group in GROUPS for recipe in recipes(group)}
    for line in read_journal(journal):
        if line["task"] not in known:
            continue
        if "error" in line:
            key = f"{line['tool']}: {line['error']}"
            errors[key] = errors.get(key, 0) + 1
        names = [f"fastai {rule}" for rule in FASTAI_RULES] if line["tool"] == "fastai" else [line["tool"]]
        for name in names:
            rate = line["rates"].get(name)
            by_tool = suggestions.setdefault(line["task"], {}).setdefault(name, {})
            by_tool[str(line["seed"])] = rate and float(f"{rate:.4g}")
    versions = {package: importlib.metadata.version(package) for package in peers.PACKAGES.values()}
    path = RECORDINGS / "peers.json"
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found)}" for name, found in suggestions.items())
    head = f'{{"versions": {json.dumps(versions)},\n"errors": {json.dumps(errors, indent=1)},\n'
    path.write_text(f'{head}"suggestions": {{\n{lines}\n}}}}\n')
    print(f"{path}: {len(suggestions)} tasks; errors: {errors}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=[*GROUPS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e6)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        write(options.journal)
    else:
        record(options)


if __name__ == "__main__":
    main()
