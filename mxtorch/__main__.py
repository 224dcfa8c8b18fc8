"""`python -m mxtorch --version`, and `python -m mxtorch doctor`: what is installed, what is there, what is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mxtorch._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the version or the report, and return the exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mxtorch", description="About this installation of mxtorch.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, devices, caches, what is missing and what is wrong")
    parser.parse_args(arguments)
    from mxtorch import doctor  # it imports torch

    report = doctor.examine()
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
