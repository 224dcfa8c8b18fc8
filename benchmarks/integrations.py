"""The programs of docs/integrations: what the rate that one added line finds costs against the best of a grid.

Each page trains with `train(rate)`, which returns the validation loss, and finds `found`. Regret is (loss at the rate -
lowest loss of the grid) / (untrained loss - lowest loss): 0 is the best rate, 1 is not trained at all. The grid has the
rate that was found and four rates on either side of it, half a decade apart.

    python benchmarks/integrations.py                 # about ten minutes on one core
    python benchmarks/integrations.py skorch ignite   # some of them
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[1] / "docs" / "integrations"
NAMES = ("lightning", "transformers", "accelerate", "fastai", "ignite", "skorch")
EXPONENTS = tuple(step / 2 for step in range(-4, 5))


def program(name: str) -> dict[str, Any]:
    """Run the first block of a page; returns its names."""
    scope: dict[str, Any] = {"__name__": name}
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), flags=re.DOTALL)
    exec(compile(blocks[0], f"{name}.md", "exec"), scope)
    return scope


def measured(name: str) -> dict[str, Any]:
    """The search of a page, and the losses of its grid."""
    started = time.perf_counter()
    scope = program(name)
    found, train = scope["found"], scope["train"]
    losses = {10**exponent * found.suggestion: train(10**exponent * found.suggestion) for exponent in EXPONENTS}
    untrained = train(1e-12)
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    at_rate, lowest = losses[found.suggestion], min(finite)
    return {
        "rate": found.suggestion,
        "status": found.status,
        "search seconds": found.seconds,
        "loss": at_rate,
        "lowest loss": lowest,
        "lowest at": min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf),
        "untrained": untrained,
        "regret": (at_rate - lowest) / (untrained - lowest),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Print a table, and the figures as JSON."""
    warnings.simplefilter("ignore")
    print("| library | rate | status | loss | lowest of the grid, at | untrained | regret | search, s |")
    print("|---|---|---|---|---|---|---|---|")
    figures = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in sys.argv[1:] or NAMES:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                row = figures[name] = measured(name)
            print(
                f"| {name} | {row['rate']:.1e} | {row['status']} | {row['loss']:.4f} | {row['lowest loss']:.4f}, "
                f"{row['lowest at']:.1e} | {row['untrained']:.4f} | {row['regret']:.3f} "
                f"| {row['search seconds']:.0f} |",
                flush=True,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
