"""The command line: `python -m mxtorch.model_zoo list | info NAME | fetch NAME | verify [NAME]`.

`python -m model_zoo` is the same, unless another module of that name comes first on `sys.path`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import weights as weight_files
from .cards import Entry
from .catalogue import ENTRIES
from .lookup import info, list_models, pinned


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The arguments after the name of the program; by default those of the process.

    Returns:
        The exit status: 0; 1 if weights could not be downloaded or are damaged; 2 for a wrong argument.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, TypeError) as error:
        print(f"model_zoo: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # WeightsError is one
        print(f"model_zoo: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxtorch.model_zoo", description="Pretrained networks and their weights."
    )
    commands = parser.add_subparsers(required=True)

    listing = commands.add_parser("list", help="list the models, one on each line")
    listing.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'resnext*' or 'timm/vit*'")
    listing.add_argument("--pretrained", action="store_true", help="only models that have weights")
    listing.add_argument(
        "--licence", help="'commercial', or the name of the licence that the default weights must have"
    )
    table = "print the rows of the table in docs/how-to/model-zoo.md"
    listing.add_argument("--markdown", action="store_true", help=table)
    listing.set_defaults(run=_list)

    card = commands.add_parser("info", help="show the card of a model")
    card.add_argument("name")
    card.set_defaults(run=_info)

    fetch = commands.add_parser("fetch", help="download the weights of a model, unless they are on this machine")
    fetch.add_argument("name")
    fetch.add_argument("--tag", help="which set of weights (default: the first on the card)")
    fetch.set_defaults(run=_fetch)

    verify = commands.add_parser("verify", help="check the hashes of the weights on this machine")
    verify.add_argument("name", nargs="?", help="one model (default: all models of the list)")
    verify.set_defaults(run=_verify)
    return parser


def _list(options: argparse.Namespace) -> int:
    row = _markdown_row if options.markdown else _row
    for name in list_models(options.pattern, pretrained=options.pretrained, licence=options.licence):
        print(name if name not in ENTRIES else row(ENTRIES[name]))
    return 0


def _info(options: argparse.Namespace) -> int:
    card = info(options.name)
    print(card)
    for weights in card.weights:
        for name, guarantee in weight_files.guarantees(weights):
            if "first seen" in guarantee:
                print(f"  {name}: {guarantee}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    entry = info(options.name)
    chosen = pinned(entry, options.tag or True)
    assert chosen is not None  # it is None for False only
    weight_files.warn_of_licence(entry, chosen)
    print(weight_files.locate(entry, chosen))
    return 0


def _verify(options: argparse.Namespace) -> int:
    entries = list(ENTRIES.values()) if options.name is None else [info(options.name)]
    found, bad = 0, 0
    for entry in entries:
        for weights in entry.weights:
            known = dict(weight_files.guarantees(weights))
            for path, file, problem in weight_files.check_here(weights, record=False):
                print(f"{entry.name} {weights.tag}: {problem or f'{path} matches: {known[Path(file.name).name]}'}")
                found += 1
                bad += bool(problem)
    print(f"{found} files on this machine, {bad} damaged")
    return 1 if bad else 0


def _row(entry: Entry) -> str:
    default = entry.weights[0]
    accuracy = "" if default.top1 is None else f"{default.top1:6.2f} %"
    return (
        f"{entry.name:<20}{entry.parameters / 1e6:8.2f} M{entry.gmacs:8.2f} GMACs{entry.preprocessing.size:5d} px"
        f"  {accuracy}  {default.tag}, {default.licence}"
    )


def _markdown_row(entry: Entry) -> str:
    default = entry.weights[0]
    accuracy = "" if default.top1 is None else f"{default.top1:.2f} ({default.measured_by})"
    tags = ", ".join(weights.tag for weights in entry.weights)
    cells = (
        entry.name,
        entry.builder.replace(":", " "),
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.gmacs:.2f}",
        str(entry.preprocessing.size),
        accuracy,
        default.licence,
        tags,
    )
    return f"| {' | '.join(cells)} |"
