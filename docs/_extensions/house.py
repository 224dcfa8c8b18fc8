"""What the house's docstrings need of Sphinx: names in backticks become links where there is such a name."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

NAME = re.compile(r"~?[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\(\))?")
PAGE = re.compile(r"`?\bdocs/([a-z-]+/)?([a-z-]+)\.md\b`?")


class House(SphinxRole):
    """A literal; one that is the name of an object in the reference links there.

    Docstrings have single backticks, as Markdown has, around names and around any other piece of code.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """One node: the literal, or a reference around it that falls back to the literal."""
        literal = nodes.literal(self.rawtext, self.text)
        if not NAME.fullmatch(self.text):
            return [literal], []
        reference = addnodes.pending_xref(
            self.rawtext,
            literal,
            refdomain="py",
            reftype="obj",
            reftarget=self.text.removesuffix("()"),
            refexplicit=False,
            refwarn=False,
            refspecific=True,
            refdoc=self.env.docname,
        )
        reference["py:module"] = self.env.ref_context.get("py:module")
        reference["py:class"] = self.env.ref_context.get("py:class")
        return [reference], []


def link_pages(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring's `docs/folder/page.md` becomes a link to that page of the site."""
    for index, line in enumerate(lines):
        lines[index] = PAGE.sub(lambda found: f":doc:`/{found[1] or ''}{found[2]}`", line)


def drop_empty_patterns(app: Sphinx, docname: str, source: list[str]) -> None:
    """A toctree's pattern for another folder (`/integrations/*`) that matches no page is left out."""
    documents = app.env.found_docs

    def kept(pattern: re.Match[str]) -> str:
        return pattern[0] if any(fnmatch(name, pattern[1]) for name in documents) else ""

    source[0] = re.sub(r"^/(\S*\*\S*)\n", kept, source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the hook."""
    app.add_role("house", House())
    app.connect("autodoc-process-docstring", link_pages, priority=100)
    app.connect("source-read", drop_empty_patterns)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
