"""What checkpoints cost: the 0.4 ms step with a checkpoint every 100 steps, beside the same run without any.

    python benchmarks/checkpoints.py [--rounds 9] [--steps 3000] [--every 100] [--folder DIR]

Both runs are in one process, interleaved, with one thread; the ratio is that of the runs of one round, the median is
over the rounds. The time of the processor holds on a busy machine too; it counts the writing thread in full, also what
of it would have had a core of its own. The last row is of the share that the training thread spends in copying, the
rest being the writing beside it, which has the second core but the same interpreter.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from mxtorch import ScheduledOptim, Trainer
from mxtorch.callbacks import Checkpoint


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """As many references to a few prepared batches as there are steps."""
    generator = torch.Generator().manual_seed(0)
    few = [(torch.randn(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)) for _ in range(8)]
    return [few[step % len(few)] for step in range(steps)]


def trainer(folder: Path | None, every: int) -> Trainer:
    """The network of benchmarks/overhead.py, with checkpoints or without."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))
    callbacks = [] if folder is None else [Checkpoint(folder, every=every)]
    return Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False)


def seconds(folder: Path | None, steps: int, every: int) -> tuple[float, float]:
    """The time of one run, on the clock and on the processor, of all threads."""
    made, data = trainer(folder, every), batches(steps)
    gc.collect()
    began, busy = time.perf_counter(), time.process_time()
    made.fit(data, schedule="one_cycle")
    return time.perf_counter() - began, time.process_time() - busy


def copying(every: int) -> float:
    """Milliseconds of one copy on the training thread."""
    made = trainer(None, every)
    made.fit(batches(10))
    times = []
    for _ in range(200):
        began = time.perf_counter()
        made.checkpoint_content()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--folder", help="a folder on the disk to be measured; the system's for temporary files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds(None, 200, options.every)
    without, ratios, busy_ratios = [], [], []
    for _ in range(options.rounds):
        bare, bare_busy = seconds(None, options.steps, options.every)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            saving, saving_busy = seconds(Path(folder) / "run", options.steps, options.every)
        without.append(bare)
        ratios.append(saving / bare)
        busy_ratios.append(saving_busy / bare_busy)
    print(f"| step without checkpoints | {1000 * statistics.median(without) / options.steps:.3f} ms |")
    print("|---|---|")
    print(f"| a checkpoint every {options.every} steps | x {statistics.median(ratios):.3f} of the run |")
    print(f"| from round to round | x {min(ratios):.3f} to {max(ratios):.3f} |")
    print(f"| processor time of all threads | x {statistics.median(busy_ratios):.3f} |")
    print(f"| from round to round | x {min(busy_ratios):.3f} to {max(busy_ratios):.3f} |")
    print(f"| the copy on the training thread | {copying(options.every):.2f} ms |")


if __name__ == "__main__":
    main()
