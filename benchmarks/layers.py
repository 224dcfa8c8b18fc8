"""What mxtorch's layers cost where they stand in for torch's: forward time, side by side.

    python benchmarks/layers.py [--rounds 5] [--seconds 6] [--threads 1]

Each network is built from the same code and seed with torch's layers, with ours, and with torch's once more: the ratio
of the two torch ones is the noise of the measurement. Forward passes of the three alternate; a figure is the
median of its round, a ratio the median over the rounds. The third line, a layer with norm and activation beside three
modules in a Sequential, is the cost of the composition itself.
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

Case = tuple[str, list[torch_nn.Module], Tensor]


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


def built(name: str, make: Callable[[], torch_nn.Module], batch: Tensor) -> Case:
    """The network with torch's layers, with ours, and with torch's again, all of the same weights."""
    nets = []
    for layers in (contextlib.nullcontext(), ours_for_torchs(), contextlib.nullcontext()):
        with layers:
            torch.manual_seed(0)
            nets.append(make())
    return name, nets, batch


def composed() -> Case:
    """Convolution, norm and activation as three modules, as one, and as three again."""
    apart = [
        torch_nn.Sequential(torch_nn.Conv2d(16, 32, 3, bias=False), torch_nn.BatchNorm2d(32), torch_nn.ReLU())
        for _ in range(2)
    ]
    ours = nn.Conv2d(16, 32, 3, bias=False, norm="batch", activation="relu")
    return "Conv2d + norm + activation", [apart[0], ours, apart[1]], torch.randn(4, 16, 28, 28)


def medians(nets: list[torch_nn.Module], batch: Tensor, seconds: float) -> list[float]:
    """The median time of a forward pass of each network, in turns, each going first as often."""
    times: list[list[float]] = [[] for _ in nets]
    end = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < end or turn < 3 * len(nets):
        for place in range(len(nets)):
            index = (turn + place) % len(nets)
            start = time.perf_counter()
            nets[index](batch)
            times[index].append(time.perf_counter() - start)
        turn += 1
    return [statistics.median(column) for column in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        built("resnet50", resnet50, torch.randn(1, 3, 64, 64)),
        built("transformer", transformer, torch.randint(1000, (2, 32))),
        composed(),
    ]
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds of {options.seconds} s")
    print(f"{'network':<28} {'torch ms':>10} {'mxtorch ms':>11} {'ratio':>7} {'torch again':>12}")
    with torch.inference_mode():
        for name, nets, batch in cases:
            rounds = [medians([net.eval() for net in nets], batch, options.seconds) for _ in range(options.rounds)]
            ratio, again = (statistics.median(line[which] / line[0] for line in rounds) for which in (1, 2))
            torchs, mine = (1000 * statistics.median(line[which] for line in rounds) for which in (0, 1))
            print(f"{name:<28} {torchs:>10.3f} {mine:>11.3f} {ratio:>7.4f} {again:>12.4f}")


if __name__ == "__main__":
    main()
