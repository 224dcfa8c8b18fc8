"""How far something is: a bar in a terminal, a bar in a notebook, a line now and then in a log file."""

from __future__ import annotations

import html
import sys
import time
from types import TracebackType
from typing import Any, Protocol

# A log file gets a line as often as this, in seconds; a notebook is sent a bar so often at most.
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_BARS = 0.2
# The bar has a fixed width, so that there is room for the figures in a terminal of 80 columns.
_TERMINAL = "{desc} |{bar:10}| {n_fmt}/{total_fmt} {remaining}{postfix}"
_TERMINAL_WITHOUT_TOTAL = "{desc} {n_fmt} steps {elapsed}{postfix}"


class Bar(Protocol):
    """What shows progress; the methods are those of a bar of tqdm.

    Attributes:
        disable: Whether there is no bar, so that events have to be told by lines of their own.
        total: The number of steps, or None.
    """

    disable: bool
    total: Any

    def update(self, n: int) -> Any:
        """Some steps were taken."""

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Figures to show beside the bar."""

    def write(self, s: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Remove the bar."""


def progress_bar(total: int | None, description: str) -> Bar:
    """A bar for a terminal or a notebook, on standard error; lines for a log file.

    Args:
        total: How many steps there are; None if nobody knows.
        description: What goes on, as `"epoch 3/10"`.
    """
    if _in_notebook():
        return NotebookBar(total, description)
    if not sys.stderr.isatty():
        return LogLines(total, description)
    from tqdm import tqdm

    layout = _TERMINAL_WITHOUT_TOTAL if total is None else _TERMINAL
    bar: Bar = tqdm(total=total, desc=description, leave=False, bar_format=layout, dynamic_ncols=True)
    return bar


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, and not one that has merely imported its modules."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


class _Own:
    """What the two bars that are not tqdm's have in common."""

    disable = False
    interval = SECONDS_BETWEEN_BARS

    def __init__(self, total: int | None, description: str) -> None:
        self.total, self.description = total, description
        self.count, self.figures = 0, ""
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> _Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: int) -> None:
        self.count += n
        now = time.monotonic()
        if now - self._shown >= self.interval:
            self._shown = now
            self._show()

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        self.figures = s
        if refresh:
            self._show()

    def write(self, s: str) -> None:
        print(s)

    def close(self) -> None:
        pass

    def _show(self) -> None:
        raise NotImplementedError

    def _words(self) -> str:
        """`120/400, about 35 s to go`."""
        if self.total is None or not self.count:
            return f"{self.count}"
        seconds = (time.monotonic() - self._began) / self.count * (self.total - self.count)
        return f"{self.count}/{self.total}, about {max(seconds, 0):.0f} s to go"


class NotebookBar(_Own):
    """A bar of HTML, which needs no widgets, and leaves nothing behind in the notebook.

    Args:
        total: How many steps there are; None if nobody knows.
        description: What goes on.
    """

    def __init__(self, total: int | None, description: str) -> None:
        super().__init__(total, description)
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(self._page()), display_id=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the bar."""
        if self._handle is not None:
            self._handle.update(self._html(""))
            self._handle = None

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.update(self._html(self._page()))

    def _page(self) -> str:
        length = "" if self.total is None else f' value="{min(self.count, self.total)}" max="{self.total}"'
        words = html.escape("  ".join(filter(None, [self._words(), self.figures])))
        return (
            f"<div>{html.escape(self.description)} <progress{length} style='vertical-align:middle'></progress> "
            f"<code>{words}</code></div>"
        )


class LogLines(_Own):
    """A line every half minute, so that a log file shows that something goes on, and how long it will take.

    Args:
        total: How many steps there are; None if nobody knows.
        description: What goes on.
    """

    disable = True
    interval = SECONDS_BETWEEN_LINES

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Figures for the next line."""
        self.figures = s

    def _show(self) -> None:
        figures = f"  {self.figures}" if self.figures else ""
        print(f"{self.description}: {self._words()}{figures}", file=sys.stderr, flush=True)
