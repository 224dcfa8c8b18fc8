"""The code blocks of the documentation: where they are, and which of them belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("_build", "gallery", "reference", "_templates")
BLOCK = re.compile(
    r"^<!-- before the next block:\n?(?P<before>.*?)-->$"
    r"|^(?P<fence>(?:`|:){3,})(?P<kind>[^\n`]*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        kind: What stands after the fence: `python`, `bash`, `{toctree}`.
        code: What is in it.
        line: Where its first line of code is in the page, counted from 1.
        hidden: Whether readers do not see it.
    """

    kind: str
    code: str
    line: int
    hidden: bool = False


def pages() -> list[str]:
    """All pages that are written by hand, relative to the root, README and its like included."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    names = [path.relative_to(ROOT) for path in found]
    return sorted(str(name) for name in names if len(name.parts) == 1 or name.parts[1] not in GENERATED)


def is_notebook(page: str) -> bool:
    """Whether a page is a notebook, which is run when the site is built."""
    return (ROOT / page).read_text().startswith("---\n")


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in their order."""
    text = (ROOT / page).read_text()
    found = []
    for match in BLOCK.finditer(text):
        hidden = match["fence"] is None
        code = match["before"].strip() + "\n" if hidden else match["code"]
        line = text.count("\n", 0, match.start("before" if hidden else "code")) + 1
        found.append(Block("python" if hidden else match["kind"].strip(), code, line, hidden))
    return found
