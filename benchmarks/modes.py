"""Which models run compiled as one graph, with channels last, and exported: all of the list by default.

    python benchmarks/modes.py [NAME ...]

Networks are on the meta device and pictures are small, so this tells whether a mode works, not how fast it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import model_zoo

FIXED_SIZES = {"vit_small": 224, "vit_base": 224, "nasnetalarge": 97, "pnasnet5large": 97, "polynet": 139}


def compiled(net: nn.Module, pictures: Tensor) -> Tensor:
    """Under `torch.compile`, as one graph."""
    torch._dynamo.reset()
    return torch.compile(net, backend="eager", fullgraph=True)(pictures)


def channels_last(net: nn.Module, pictures: Tensor) -> Tensor:
    """With the channels last in memory."""
    return net.to(memory_format=torch.channels_last)(pictures.to(memory_format=torch.channels_last))


def exported(net: nn.Module, pictures: Tensor) -> Tensor:
    """As `torch.export` gives it back."""
    return torch.export.export(net, (pictures,)).module()(pictures)


def outcome(mode: Callable[[nn.Module, Tensor], Tensor], name: str) -> str:
    """`yes`, or what went wrong."""
    size = FIXED_SIZES.get(name, 75 if model_zoo.info(name).preprocessing.size >= 299 else 64)
    with torch.device("meta"):
        net, pictures = model_zoo.create(name, num_classes=5).eval(), torch.empty(2, 3, size, size)
    try:
        shape = tuple(mode(net, pictures).shape)
    except Exception as error:  # any failure of a mode is a row of the table
        return f"no: {type(error).__name__}"
    return "yes" if shape == (2, 5) else f"no: gives {shape}"


def main() -> None:
    """Print a table, a row as soon as it is known."""
    warnings.simplefilter("ignore")
    print("| model | torch.compile(fullgraph=True) | channels_last | torch.export |", flush=True)
    print("|---|---|---|---|")
    for name in sys.argv[1:] or model_zoo.list_models():
        cells = [outcome(mode, name) for mode in (compiled, channels_last, exported)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
