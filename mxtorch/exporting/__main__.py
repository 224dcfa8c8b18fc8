"""Prediction on the command line: `python -m mxtorch.exporting MODEL PICTURE...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mxtorch.exporting.predictor import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the most probable classes of each picture, or the numbers that the model computes.

    Args:
        arguments: The arguments after the name of the program; by default those of the process.

    Returns:
        The exit status: 0, or 1 if the model or a picture can't be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mxtorch.exporting", description="Classify pictures with an exported model."
    )
    parser.add_argument("model", help="a file that Trainer.export wrote: .safetensors, .pt2 or .onnx")
    parser.add_argument("pictures", nargs="+", help="picture files")
    parser.add_argument("--top", type=int, default=3, help="number of classes to print (default: %(default)s)")
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="open a .pt2 file. It can run any code, so give this only if you trust its author",
    )
    options = parser.parse_args(arguments)
    try:
        predictor = load(options.model, trusted=options.trusted)
        for picture, row in zip(options.pictures, predictor.predict(options.pictures), strict=True):
            print(f"{picture}: {_in_words(row, options.top)}")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"mxtorch.exporting: {error}", file=sys.stderr)
        return 1
    return 0


def _in_words(row: dict[str, Any], top: int) -> str:
    if "outputs" in row:
        return ", ".join(f"{name} {value:.6g}" for name, value in row["outputs"].items())
    ranked = sorted(row["probabilities"].items(), key=lambda entry: -entry[1])[:top]
    return ", ".join(f"{name} {probability:.1%}" for name, probability in ranked)


if __name__ == "__main__":
    sys.exit(main())
