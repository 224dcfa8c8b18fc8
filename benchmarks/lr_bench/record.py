"""Record landscapes, short trainings and range tests, from which estimators of the rate can be compared offline.

    python -m benchmarks.lr_bench.record --data FOLDER --group long --gpus 1 --gpu-workers 4 --seconds 500
    python -m benchmarks.lr_bench.record --data FOLDER --group cheap small --workers 16
    python -m benchmarks.lr_bench.record --write

Every finished part of a recording is appended to a journal; a later call skips what the journal has. `--write` turns
the journal into `recordings/GROUP.json`, whose format `recordings/README.md` describes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import multiprocessing
import queue
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lr_bench.data import CACHE
from benchmarks.lr_bench.fleet import Fleet, OutOfTimeError
from benchmarks.lr_bench.jobs import read_journal
from benchmarks.lr_bench.recipes import GROUPS, Recipe, recipes

RECORDINGS = Path(__file__).parent / "recordings"
JOURNAL = CACHE / "recordings.jsonl"
LENGTHS = (10, 20, 40, 60, 120, 240, 480)  # of short trainings; those below half of the training are recorded
HELD_OUT, SLICES = 512, 8
SWEEP_STEPS, SWEEP_RANGE = 100, (1e-7, 10.0)
# Landscapes, short trainings and range tests see different orders of the samples, as a search and a training would.
ORDER_OF_LANDSCAPE, ORDER_OF_SHORT, ORDERS_OF_SWEEPS = 1000, 2000, (3000, 4000)
PARTS = ("start", "one_cycle", "constant", "short constant", "short one_cycle", "sweeps")
SEEDS = {"long": 2, "cheap": 3, "small": 3}
MOST_ERRORS = 8  # then something is wrong with all
GRACE = 20  # seconds after the time limit until workers are ended


def one_cycle(steps: int) -> list[float]:
    """The multipliers of `mxtorch.schedules.OneCycle`: up to 1 in 30% of the steps, then down to 4e-6, cosines.

    Momentum is constant in all recordings.
    """
    rise, end = 0.3 * steps - 1, steps - 1

    def cosine(start: float, stop: float, part: float) -> float:
        return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2

    return [
        cosine(0.04, 1.0, step / rise) if step <= rise and rise > 0 else cosine(1.0, 4e-6, (step - rise) / (end - rise))
        for step in range(steps)
    ]


class Recorder:
    """Records the parts of one recipe and seed."""

    def __init__(
        self, recipe: Recipe, seed: int, folder: Path, device: torch.device, out_of_time: Callable[[], bool]
    ) -> None:
        self.recipe, self.seed = recipe, seed
        samples = recipe.load(folder)
        # Some lie sorted; what is held out for searches, and each slice of it, is from all over.
        mixed = torch.randperm(len(samples.val_inputs), generator=torch.Generator().manual_seed(0))
        samples = samples._replace(val_inputs=samples.val_inputs[mixed], val_targets=samples.val_targets[mixed])
        torch.manual_seed(seed)
        network = recipe.network()
        self.rates = recipe.rates
        started = time.perf_counter()
        self.fleet = Fleet(
            network,
            samples,
            recipe.losses,
            recipe.optimizer,
            recipe.batch_size,
            copies=len(self.rates),
            most_steps=max(recipe.steps, SWEEP_STEPS, *LENGTHS),
            device=device,
            augment=recipe.augment,
            clip=recipe.clip,
            bfloat16=recipe.bfloat16,
            out_of_time=out_of_time,
        )
        self.seconds_of_building = time.perf_counter() - started
        self.lengths = [length for length in LENGTHS if length < recipe.steps / 2]

    def record(self, part: str) -> Any:
        """The content of a part, ready for JSON."""
        match part:
            case "start":
                return self._start()
            case "one_cycle" | "constant":
                return self._landscape(part)
            case "short constant":
                return self._short({length: [1.0] * length for length in self.lengths[-1:]}, self.lengths)
            case "short one_cycle":
                return self._short({length: one_cycle(length) for length in self.lengths}, self.lengths)
            case "sweeps":
                return [self._sweep(order + self.seed) for order in ORDERS_OF_SWEEPS]
        raise ValueError(f"part: got {part!r}; choose from {PARTS}")

    def _start(self) -> dict[str, Any]:
        """Losses before training, sizes, times."""
        fleet, recipe = self.fleet, self.recipe
        fleet.start_again(0)
        count = len(fleet.samples.train_inputs)
        return {
            "untrained": rounded(self._validation(only_first=True))[0],
            "held_out": {mode: values[0] for mode, values in self._held_out(only_first=True).items()},
            "seconds_per_step": rounded(self._seconds_per_step()),
            "device": torch.cuda.get_device_name() if fleet.device.type == "cuda" else "one processor core",
            "seconds_of_building": round(self.seconds_of_building, 2),
            "features": {
                "optimizer": recipe.optimizer.kind,
                "optimizer_settings": recipe.optimizer.settings,
                "batch_size": fleet.batch_size,
                "steps": recipe.steps,
                "epochs": rounded(recipe.steps / (count // fleet.batch_size)),
                "parameters": fleet.parameter_count,
                "parameter_tensors": len(fleet.parameters[0]),
                "train_samples": count,
                "val_samples": len(fleet.samples.val_inputs),
                "clip": recipe.clip,
                "bfloat16": recipe.bfloat16,
                "augmented": recipe.augment is not None,
                "loss": recipe.losses.__name__,
                "batch_norm": fleet.has_batch_norm,
                "normalisation": None,
                "pretrained": False,
                **dict(recipe.features),
            },
        }

    def _landscape(self, use: str) -> dict[str, Any]:
        steps = self.recipe.steps
        multipliers = one_cycle(steps) if use == "one_cycle" else [1.0] * steps
        looks = [max(round(share * steps), 1) for share in (0.25, 0.5, 0.75, 1.0)]
        val: list[Tensor] = []
        started = time.perf_counter()
        losses = self.fleet.train(
            self.rates, multipliers, ORDER_OF_LANDSCAPE + self.seed, looks, lambda step: val.append(self._validation())
        )
        return {
            "val": rounded(torch.stack(val, 1)),
            "train": rounded(losses[-max(steps // 20, 5) :].mean(0)),
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _short(self, trainings: dict[int, list[float]], looks: Collection[int]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for multipliers in trainings.values():
            steps = len(multipliers)
            seen: dict[int, dict[str, Any]] = {}
            losses = self.fleet.train(
                self.rates,
                multipliers,
                ORDER_OF_SHORT + self.seed,
                looks if len(trainings) == 1 else (steps,),
                lambda step, seen=seen: seen.update({step: self._held_out()}),  # type: ignore[misc]
            )
            for step, held_out in seen.items():
                quarter = losses[step - max(step // 4, 1) : step].mean(0)
                result[str(step)] = {"held_out": held_out, "train": rounded(quarter)}
        return result

    def _sweep(self, order_seed: int) -> dict[str, Any]:
        low, high = (math.log10(rate) for rate in SWEEP_RANGE)
        rates = [10 ** (low + (high - low) * step / (SWEEP_STEPS - 1)) for step in range(SWEEP_STEPS)]
        looks, seen = range(3, SWEEP_STEPS + 1, 3), []
        losses = self.fleet.train(
            [1.0] * len(self.rates),
            rates,
            order_seed,
            looks,
            lambda step: seen.append({mode: part[0] for mode, part in self._held_out(only_first=True).items()}),
            only_first=True,
        )
        return {
            "train": rounded(losses[:, 0]),
            "held_out": {mode: [look[mode] for look in seen] for mode in seen[0]},
        }

    def _validation(self, *, only_first: bool = False) -> Tensor:
        samples = self.fleet.samples
        return self.fleet.loss_of_each(samples.val_inputs, samples.val_targets, only_first=only_first).double().mean(1)

    def _held_out(self, *, only_first: bool = False) -> dict[str, Any]:
        """For each way to normalise the means of 8 slices of the held-out samples, for each rate."""
        samples = self.fleet.samples
        inputs, targets = samples.val_inputs[:HELD_OUT], samples.val_targets[:HELD_OUT]
        modes = {"running": False, "batch": True} if self.fleet.has_batch_norm else {"running": False}
        result = {}
        for mode, batch_statistics in modes.items():
            losses = self.fleet.loss_of_each(
                inputs, targets, batch_statistics=batch_statistics, only_first=only_first
            ).double()
            slices = losses.tensor_split(SLICES, dim=1)
            result[mode] = rounded(torch.stack([part.mean(1) for part in slices], 1))
        return result

    def _seconds_per_step(self) -> float:
        """Of one network trained alone, without a graph, as a user's loop would; beside everything else that runs."""
        fleet = self.fleet
        model, parameters = fleet.models[0], fleet.parameters[0]
        muon = self.recipe.optimizer.kind == "Muon"
        optimizer = torch.optim.AdamW(parameters) if muon else self.recipe.optimizer.for_torch(parameters)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        times = []
        for _ in range(12):
            if fleet.device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            index = torch.randint(len(fleet.samples.train_inputs), (fleet.batch_size,), device=fleet.device)
            inputs, targets = fleet.samples.train_inputs[index], fleet.samples.train_targets[index]
            if fleet.augment is not None:
                inputs, targets = fleet.augment(inputs, targets)
            with fleet._autocast():
                loss = self.recipe.losses(model(inputs), targets).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if fleet.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]


def rounded(values: Tensor | float) -> Any:
    """Five digits; null for what is no finite number."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.5g}") if math.isfinite(values) else None


# Many recordings, side by side

Job = tuple[Recipe, int]


def work(
    device: str, queues: Sequence[Any], results: Any, done: set[tuple[str, int, str]], folder: Path, deadline: float
) -> None:
    """Take jobs until none is left or the time is over."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)

    def out_of_time() -> bool:
        return time.time() > deadline

    for recipe, seed in jobs_of(queues):
        missing = [part for part in PARTS if (recipe.name, seed, part) not in done]
        if out_of_time():
            break
        if not missing:
            continue
        try:
            recorder = Recorder(recipe, seed, folder, place, out_of_time)
            for part in missing:
                started = time.perf_counter()
                content = recorder.record(part)
                results.put(
                    {
                        "task": recipe.name,
                        "group": recipe.group,
                        "seed": seed,
                        "part": part,
                        "took": round(time.perf_counter() - started, 2),
                        "content": content,
                    }
                )
        except OutOfTimeError:
            break
        except Exception:
            results.put({"error": traceback.format_exc(), "task": recipe.name, "seed": seed})
        recorder = None
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()
    results.put(None)


def jobs_of(queues: Sequence[Any]) -> Iterator[Job]:
    """What the queues hold, the first queue first."""
    by_name = {recipe.name: recipe for group in GROUPS for recipe in recipes(group)}
    for jobs in queues:
        while (job := jobs.get()) is not None:
            name, seed, limits = job
            yield dataclasses.replace(by_name[name], **limits), seed


def record(options: argparse.Namespace) -> int:
    """Run all workers; the number of errors."""
    deadline = time.time() + options.seconds
    torch.set_num_threads(1)  # other threads would not survive the fork
    context = multiprocessing.get_context("fork")
    done = {(line["task"], line["seed"], line["part"]) for line in read_journal(options.journal)}
    chosen = [recipe for group in options.group for recipe in recipes(group)]
    if options.only:
        chosen = [recipe for recipe in chosen if any(text in recipe.name for text in options.only)]
    jobs: dict[bool, list[tuple[str, int, dict[str, Any]]]] = {True: [], False: []}
    limits = {"steps": 24} if options.trial else {}
    seeds = options.seeds if options.seeds is not None else range(max(SEEDS.values()))
    wanted = [
        (recipe, seed)
        for seed in seeds
        for recipe in chosen
        if (seed in (options.seeds or ()) or seed < SEEDS[recipe.group])
        and not all((recipe.name, seed, part) in done for part in PARTS)
    ]
    # The first seed of everything, then the second, of which the long ones come last.
    for recipe, seed in sorted(wanted, key=lambda job: (job[1], job[0].group == "long" and job[1] > 0)):
        recipe.load(options.data)  # before the workers are forked, so that they share it
        jobs[recipe.light or not options.gpus].append((recipe.name, seed, limits))
    devices = [f"cuda:{index % options.gpus}" for index in range(options.gpus * options.gpu_workers)]
    devices += ["cpu"] * options.workers
    light, heavy, results = context.Queue(), context.Queue(), context.Queue()
    workers = []
    for device in devices:
        queues = (light,) if device == "cpu" else (heavy, light)
        worker = context.Process(target=work, args=(device, queues, results, done, options.data, deadline), daemon=True)
        worker.start()
        workers.append(worker)
    for jobs_of_kind, line in ((jobs[True], light), (jobs[False], heavy)):
        for job in (*jobs_of_kind, *[None] * len(workers)):
            line.put(job)
    count = sum(map(len, jobs.values()))
    print(f"{count} jobs, {len(workers)} workers", flush=True)
    errors, finished, started = 0, 0, time.time()
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    with options.journal.open("a") as journal:
        while finished < len(workers) and time.time() < deadline + GRACE and errors < MOST_ERRORS:
            try:
                line = results.get(timeout=1)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    break
                continue
            if line is None:
                finished += 1
            elif "error" in line:
                errors += 1
                print(f"ERROR {line['task']}, seed {line['seed']}\n{line['error']}", flush=True)
            else:
                journal.write(json.dumps(line, separators=(",", ":")) + "\n")
                journal.flush()
                times = f"{time.time() - started:6.1f}  {line['took']:6.1f}"
                print(f"{times}  {line['part']:16} {line['seed']} {line['task']}", flush=True)
    for worker in workers:
        worker.terminate()
    return errors


def write(journal: Path) -> None:
    """Turn the journal into one file for each group; seeds without a whole landscape are left out."""
    parts: dict[tuple[str, int], dict[str, Any]] = {}
    for line in read_journal(journal):
        parts.setdefault((line["task"], line["seed"]), {})[line["part"]] = line["content"]
    for group in GROUPS:
        tasks = []
        for recipe in recipes(group):
            seeds = []
            for seed in range(max(SEEDS.values())):
                found = parts.get((recipe.name, seed), {})
                if {"start", "one_cycle", "constant"} - {*found}:
                    continue
                start = dict(found["start"])
                features = start.pop("features")
                seeds.append(
                    {
                        "seed": seed,
                        **start,
                        "landscape": {use: found[use] for use in ("constant", "one_cycle")},
                        "short": {use: found.get(f"short {use}", {}) for use in ("constant", "one_cycle")},
                        "sweeps": found.get("sweeps", []),
                    }
                )
            if seeds:
                tasks.append(
                    {
                        "name": recipe.name,
                        "group": group,
                        "half": recipe.half,
                        "features": features,
                        "rates": recipe.rates,
                        "default_rates": {use: recipe.optimizer.default_rate(use) for use in ("constant", "one_cycle")},
                        "seeds": seeds,
                    }
                )
        RECORDINGS.mkdir(exist_ok=True)
        path = RECORDINGS / f"{group}.json"
        text = ",\n".join(json.dumps(task, separators=(",", ":")) for task in tasks)
        path.write_text(f"[\n{text}\n]\n")
        print(
            f"{path}: {len(tasks)} tasks, {sum(len(task['seeds']) for task in tasks)} recordings, "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="has cifar10_subset.npz and hymenoptera/")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=[*GROUPS])
    parser.add_argument("--only", nargs="+", help="parts of names")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default 0 to 2, 0 and 1 for the long ones")
    parser.add_argument("--workers", type=int, default=0, help="processes of one thread each")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--gpu-workers", type=int, default=4, help="processes on each GPU")
    parser.add_argument("--seconds", type=float, default=1e6, help="the time limit")
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--trial", action="store_true", help="24 steps instead of all, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="only turn the journal into recordings")
    options = parser.parse_args()
    if options.write:
        write(options.journal)
        return
    if options.data is None or not options.workers + options.gpus:
        parser.error("give --data, and --workers or --gpus")
    sys.exit(1 if record(options) else 0)


if __name__ == "__main__":
    main()
