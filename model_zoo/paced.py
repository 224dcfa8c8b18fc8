"""HTTP connections that end within limits: every byte is counted, of headers too, and slow servers are given up."""

from __future__ import annotations

import errno
import functools
import http.client
import io
import socket
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from .first_seen import WeightsError

STALL_SECONDS = 20.0  # a server that sends nothing for this long has broken off
WINDOW_SECONDS = 30.0  # in each such time a server must have sent so many bytes a second on average
SLOWEST = 16 << 10
HEADER_BYTES = 1 << 20  # what answers and redirects may take besides the file, all of them together
_BUFFER = 64 << 10


class Pace:
    """The limits of one download, shared by its attempts and redirects.

    A server must keep up a rate, so a download ends after `most_bytes` at that rate at the latest.

    Args:
        most_bytes: The file is not larger than this.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.stall_seconds = STALL_SECONDS
        self._read = 0
        self._end = time.monotonic() + 2 * WINDOW_SECONDS + most_bytes / SLOWEST
        self._window = time.monotonic()
        self._read_before = 0

    def begin(self) -> None:
        """Measure the rate from now on: a connection is about to be made."""
        self._window, self._read_before = time.monotonic(), self._read

    def wait(self) -> float:
        """How long the next bytes may take, in seconds.

        Raises:
            WeightsError: The server is too slow, or the time is over.
        """
        now = time.monotonic()
        if now - self._window > WINDOW_SECONDS:
            rate = (self._read - self._read_before) / (now - self._window)
            if rate < SLOWEST:
                raise WeightsError(f"the server is too slow: {rate:.0f} bytes a second; at least {SLOWEST} are needed")
            self._window, self._read_before = now, self._read
        if now > self._end:
            raise WeightsError("the server is too slow: the time for this file is over")
        return min(self.stall_seconds, self._end - now + 0.1)

    def count(self, size: int) -> None:
        """Count bytes that were read.

        Raises:
            OSError: With EFBIG: there are too many.
        """
        self._read += size
        if self._read > 2 * self.most_bytes + HEADER_BYTES:  # a file may be sent again from its start
            raise OSError(errno.EFBIG, f"the server sends more than {self.most_bytes} bytes")


def handlers(pace: Pace) -> list[urllib.request.BaseHandler]:
    """Handlers for `urllib.request.build_opener`, whose connections keep to the limits."""
    return [_Http(pace), _Https(pace)]


class _Paced(io.RawIOBase):
    """The bytes of a connection, counted and timed."""

    def __init__(self, connection: socket.socket, raw: Any, pace: Pace) -> None:
        self._connection, self._raw, self._pace = connection, raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(self._pace.wait())
        size: int = self._raw.readinto(buffer) or 0
        self._pace.count(size)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, pace: Pace, connection: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(connection, *arguments, **options)
        self.fp = io.BufferedReader(_Paced(connection, self.fp.detach(), pace), _BUFFER)


class _PacedHandler(urllib.request.AbstractHTTPHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def do_open(self, http_class: Callable[..., Any], req: urllib.request.Request, **options: Any) -> Any:
        def connect(host: str, **settings: Any) -> http.client.HTTPConnection:
            connection: http.client.HTTPConnection = http_class(host, **settings)
            connection.response_class = functools.partial(_Response, self._pace)  # type: ignore[assignment]
            return connection

        self._pace.wait()
        return super().do_open(connect, req, **options)


class _Http(_PacedHandler, urllib.request.HTTPHandler):
    pass


class _Https(_PacedHandler, urllib.request.HTTPSHandler):
    pass
