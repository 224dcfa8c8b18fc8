"""What mxtorch's layers cost where they stand in for torch's: forward time, side by side.

    python benchmarks/layers.py [--rounds 31] [--seconds 0.3] [--threads 1]

Each network is built twice from the same code and seed, once with torch's layers and once with ours. In each round
both run as many forward passes as fit the given time, one after the other and in turns the other first; a ratio is
that of a round, medians are over the rounds. The third line, a layer with norm and activation beside three modules in
a Sequential, is the cost of the composition itself.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch import nn as torch_nn
from torchvision.models import resnet50

from mxtorch import nn

Case = tuple[str, torch_nn.Module, torch_nn.Module, Tensor]


@contextlib.contextmanager
def ours_for_torchs() -> Iterator[None]:
    """Within it, networks that are built of torch's layers are built of ours."""
    with contextlib.ExitStack() as stack:
        for name in nn.__all__:
            for module in (torch_nn, torch_nn.modules.transformer):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, getattr(nn, name)))
        yield


def transformer() -> torch_nn.Module:
    """Two encoder layers between an embedding and a head."""
    layer = torch_nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    encoder = torch_nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return torch_nn.Sequential(torch_nn.Embedding(1000, 128), encoder, torch_nn.Linear(128, 1000))


def twice(name: str, make: Callable[[], torch_nn.Module], batch: Tensor) -> Case:
    """The network with torch's layers and with ours, of the same weights."""
    torch.manual_seed(0)
    theirs = make()
    with ours_for_torchs():
        torch.manual_seed(0)
        ours = make()
    return name, theirs, ours, batch


def composed() -> Case:
    """Convolution, norm and activation as three modules and as one."""
    parts = torch_nn.Conv2d(16, 32, 3, bias=False), torch_nn.BatchNorm2d(32), torch_nn.ReLU()
    ours = nn.Conv2d(16, 32, 3, bias=False, norm="batch", activation="relu")
    return "Conv2d + norm + activation", torch_nn.Sequential(*parts), ours, torch.randn(4, 16, 28, 28)


def seconds_of(net: torch_nn.Module, batch: Tensor, passes: int) -> float:
    """The time of one forward pass, over as many as told."""
    start = time.perf_counter()
    for _ in range(passes):
        net(batch)
    return (time.perf_counter() - start) / passes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each network in each round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        twice("resnet50", resnet50, torch.randn(1, 3, 96, 96)),
        twice("transformer", transformer, torch.randint(1000, (2, 32))),
        composed(),
    ]
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    print(f"{'network':<28} {'torch ms':>10} {'mxtorch ms':>11} {'ratio':>7}  middle half of the ratios")
    with torch.inference_mode():
        for name, theirs, ours, batch in cases:
            pair = theirs.eval(), ours.eval()
            passes = max(1, int(options.seconds / seconds_of(theirs, batch, 3)))
            times: list[tuple[float, float]] = []
            for turn in range(options.rounds):
                first, second = (seconds_of(net, batch, passes) for net in (pair if turn % 2 else pair[::-1]))
                times.append((first, second) if turn % 2 else (second, first))
            ratios = [mine / torchs for torchs, mine in times]
            quarter, median, three_quarters = statistics.quantiles(ratios, n=4)
            torchs, mine = (1000 * statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name:<28} {torchs:>10.3f} {mine:>11.3f} {median:>7.4f}  {quarter:.4f} to {three_quarters:.4f}")


if __name__ == "__main__":
    main()
