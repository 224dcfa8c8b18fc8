"""From suggestions and oracles to a table and a figure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lr_bench.oracle import GRID, USES, Oracle
from benchmarks.lr_bench.suggestions import Found
from benchmarks.lr_bench.tasks import Task

# No rate leaves the network untrained.
REGRET_OF_NO_RATE = 1.0


def rows(tasks: Sequence[Task], best: dict[str, Oracle], found: Found) -> list[dict[str, Any]]:
    """One row for each task, finder, seed and use."""
    halves = {task.name: task.half for task in tasks}
    result = []
    for (name, finder, seed), said in found.items():
        for use in USES:
            rate, oracle = said[use], best[name]
            interval = (said.get("intervals") or {}).get(use)
            best_rate = oracle.best(use)[0]
            result.append(
                {
                    "task": name,
                    "half": halves[name],
                    "finder": finder,
                    "seed": seed,
                    "use": use,
                    "rate": rate,
                    "best_rate": best_rate,
                    "regret": REGRET_OF_NO_RATE if rate is None else oracle.regret(rate, use),
                    "within_3x": rate is not None and abs(math.log10(rate / best_rate)) <= math.log10(3) + 1e-9,
                    "interval": interval,
                    "covered": None if interval is None else interval[0] <= best_rate <= interval[1],
                    "status": said.get("status"),
                    "training_steps": said.get("training_steps"),
                    "other_forward_passes": said.get("other_forward_passes"),
                }
            )
    return result


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for each half of the tasks, and for both together."""
    parts = []
    for half in ("development", "reporting", "both"):
        chosen = [row for row in rows if half in ("both", row["half"])]
        if chosen:
            count = len({row["task"] for row in chosen})
            parts.append(f"## {half.capitalize()}: {count} tasks, constant / one-cycle\n\n{_table(chosen)}")
    return "\n\n".join(parts)


def failures(found: Found) -> list[str]:
    """Tools that ended in an error, which counts as no rate: it may be theirs, or that of the call."""
    errors = Counter(
        (finder, said["status"]) for (_, finder, _), said in found.items() if ": " in (said.get("status") or "")
    )
    return [f"{finder}: {count} searches ended in {error}" for (finder, error), count in errors.items()]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| tool | median regret | mean | worst | within 3x | spread, decades: median / worst | interval covers, width |"
        " no rate | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for finder in dict.fromkeys(row["finder"] for row in rows):
        by_use = [[row for row in rows if row["finder"] == finder and row["use"] == use] for use in USES]
        regrets = [[row["regret"] for row in part] for part in by_use]
        within = [statistics.mean(row["within_3x"] for row in part) for part in by_use]
        spreads = _spreads(by_use[0])
        cells = [
            finder,
            _both(f"{statistics.median(part):.3f}" for part in regrets),
            _both(f"{statistics.mean(part):.3f}" for part in regrets),
            _both(f"{max(part):.2f}" for part in regrets),
            _both(f"{share:.0%}" for share in within),
            f"{statistics.median(spreads):.2f} / {max(spreads):.2f}" if spreads else "-",
            _coverage(by_use),
            f"{statistics.mean(row['rate'] is None for row in by_use[0]):.0%}",
            _cost(by_use[0]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _both(cells: Any) -> str:
    return " / ".join(cells)


def _spreads(rows: list[dict[str, Any]]) -> list[float]:
    """For each task with two rates or more, from the lowest to the highest, in decades."""
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if row["rate"] is not None:
            by_task.setdefault(row["task"], []).append(math.log10(row["rate"]))
    return [max(rates) - min(rates) for rates in by_task.values() if len(rates) > 1]


def _coverage(by_use: list[list[dict[str, Any]]]) -> str:
    shares = [[row["covered"] for row in part if row["covered"] is not None] for part in by_use]
    if not shares[0]:
        return "-"
    # A search without an interval does not cover the best rate.
    covered = _both(f"{sum(part) / len(rows):.0%}" for part, rows in zip(shares, by_use, strict=True))
    widths = [math.log10(row["interval"][1] / row["interval"][0]) for row in by_use[0] if row["interval"]]
    return f"{covered}, {statistics.median(widths):.2f}"


def _cost(rows: list[dict[str, Any]]) -> str:
    passes = [row["other_forward_passes"] for row in rows if row["other_forward_passes"] is not None]
    return f"{max(passes)}" if passes else "0"


def figure(tasks: Sequence[Task], best: dict[str, Oracle], found: Found, path: Path) -> None:
    """For each task the held-out curve of one search, the regret of every rate, and what each tool said."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    count = math.ceil(len(tasks) / columns)
    finders = list(dict.fromkeys(finder for _, finder, _ in found))
    shown = [name for name in finders if "training data alone" not in name]
    colours = plt.get_cmap("tab10")
    pictures, axes = plt.subplots(count, columns, figsize=(5 * columns, 3.6 * count), squeeze=False)
    for panel, task in zip(axes.flat, tasks, strict=False):
        oracle = best[task.name]
        for use, style in zip(USES, ("-", "--"), strict=True):
            regrets = [min(oracle.regret(rate, use), 1.1) for rate in GRID]
            panel.semilogx(GRID, regrets, style, color="black", linewidth=1.2, label=f"regret, {use}")
        curve = found.get((task.name, "mxtorch, 100 steps", 0), {}).get("held_out")
        if curve:
            rates, losses = np.array([point for point in curve if math.isfinite(point[1])]).T
            best_loss = oracle.best("constant")[1]
            panel.semilogx(
                rates, (losses - best_loss) / (oracle.untrained - best_loss), color="#9db4c0", label="held-out curve"
            )
        for index, finder in enumerate(shown):
            said = [what["constant"] for (name, tool, _), what in found.items() if (name, tool) == (task.name, finder)]
            values = [rate for rate in said if rate is not None]
            panel.plot(
                values, [-0.08 - 0.06 * index] * len(values), "|", markersize=9, color=colours(index % 10), label=finder
            )
        panel.set_ylim(-0.08 - 0.06 * len(shown), 1.15)
        panel.set_yticks([0, 0.5, 1])
        panel.set_xlim(1e-7, 20)
        panel.set_title(f"{task.name} ({task.half})", fontsize=9, loc="left")
        panel.grid(alpha=0.2)
    for panel in list(axes.flat)[len(tasks) :]:
        panel.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    pictures.legend(handles, labels, loc="lower center", ncols=6, frameon=False)
    pictures.tight_layout(rect=(0, 0.03, 1, 1))
    pictures.savefig(path, dpi=60)
