"""What folding normalisation into convolutions gains: milliseconds a picture with and without `model_zoo.fuse`.

    python benchmarks/fuse.py [--model resnet50] [--batch 1 16] [--rounds 9] [--threads 1]

Both networks run in one process, in turn; medians are over the rounds, and the gain is the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import model_zoo


def milliseconds(net: nn.Module, pictures: torch.Tensor) -> float:
    """Time of one call, per picture."""
    started = time.perf_counter()
    with torch.inference_mode():
        net(pictures)
    return 1e3 * (time.perf_counter() - started) / len(pictures)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = model_zoo.create(options.model).eval()
    fused = model_zoo.fuse(net)
    size = model_zoo.info(options.model).preprocessing.size
    print(f"{options.model}, {size} pixels, {options.threads} thread(s), torch {torch.__version__}")
    print("| batch | plain, ms/picture | fused, ms/picture | gain | difference / scale |")
    print("|---|---|---|---|---|")
    for batch in options.batch:
        pictures = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            expected, output = net(pictures), fused(pictures)  # also warms up
        difference = float((output - expected).abs().max() / expected.abs().max())
        rounds = [(milliseconds(net, pictures), milliseconds(fused, pictures)) for _ in range(options.rounds)]
        plain, folded = (statistics.median(column) for column in zip(*rounds, strict=True))
        gain = statistics.median(before / after for before, after in rounds)
        print(f"| {batch} | {plain:.1f} | {folded:.1f} | {gain:.2f}x | {difference:.1e} |")


if __name__ == "__main__":
    main()
