"""SIGTERM and Ctrl-C during a run: the current step is finished before the run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

# The exit status of a process that SIGTERM ended, as shells count: 128 and the number of the signal.
TERMINATED = 128 + signal.SIGTERM

_MESSAGES = {
    signal.SIGINT: b"\nCtrl-C: finishing the step; once more stops at once.\n",
    signal.SIGTERM: b"\nSIGTERM: finishing the step.\n",
}


class Interrupted(BaseException):
    """Ends a run between two steps. Not an Exception, so that no handler of errors takes it for one."""


class Interruption:
    """Notes SIGTERM and SIGINT within the block; `check` then ends the run where its state is whole.

    After the block the handlers are what they were. A run that SIGTERM ended exits with status 143; a run that Ctrl-C
    ended raises KeyboardInterrupt. A second Ctrl-C raises at once. Outside the main thread, where handlers can't be
    installed, signals do what they did before. A signal that is ignored stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handlers = dict(self._handlers)
        self._restore()
        if kind is not None and not issubclass(kind, (Exception, Interrupted)):
            return
        if self.received is None and kind is not None and issubclass(kind, Interrupted):
            raise SystemExit(TERMINATED) from error  # another process of several was told to end
        if self.received == signal.SIGTERM:
            if callable(handlers[signal.SIGTERM]):  # the user's own, called once everything is saved
                handlers[signal.SIGTERM](signal.SIGTERM, None)
            raise SystemExit(TERMINATED) from error
        if (kind is not None and issubclass(kind, Interrupted)) or (kind is None and self.received is not None):
            raise KeyboardInterrupt from error

    def check(self, agree: Callable[[bool], bool] = bool) -> None:
        """Raise if a signal came; to be called where the state of the run is whole.

        Args:
            agree: `Engine.agree`, so that all processes stop at the same step.
        """
        if agree(self.received is not None):
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker process, forked during the run: its parent tells it to end
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.received is not None:
            self.received = number
            self._restore()
            raise KeyboardInterrupt
        self.received = number
        with contextlib.suppress(OSError):
            os.write(2, _MESSAGES[signal.Signals(number)])  # print may be in the midst of a line

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
