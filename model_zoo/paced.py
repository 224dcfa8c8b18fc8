"""HTTP connections with limits: every byte is counted, including those of headers, and a slow server is an error."""

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

STALL_SECONDS = 20.0  # if a server sends nothing for this time, the connection has failed
WINDOW_SECONDS = 30.0  # the time over which the rate of a server is measured
SLOWEST = 16 << 10  # the lowest rate, in bytes per second
HEADER_BYTES = 1 << 20  # the largest size of all headers and redirects together
_BUFFER = 64 << 10


class Pace:
    """The limits of one download, shared by its attempts and redirects.

    A server must keep up a rate, so a download takes at most the time for `most_bytes` at that rate.

    Args:
        most_bytes: The largest size of the file, in bytes.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.stall_seconds = STALL_SECONDS
        self._read = 0
        self._end = time.monotonic() + 2 * WINDOW_SECONDS + most_bytes / SLOWEST
        self._window = time.monotonic()
        self._read_before = 0

    def begin(self) -> None:
        """Start to measure the rate. Call this before a connection is made."""
        self._window, self._read_before = time.monotonic(), self._read

    def wait(self) -> float:
        """The time that the next bytes may take, in seconds.

        Raises:
            WeightsError: The server is too slow, or the time for the file is over.
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
            OSError: There were too many bytes (EFBIG).
        """
        self._read += size
        if self._read > 2 * self.most_bytes + HEADER_BYTES:  # the server may send the file a second time
            raise OSError(errno.EFBIG, f"the server sends more than {self.most_bytes} bytes")


def handlers(pace: Pace) -> list[urllib.request.BaseHandler]:
    """Handlers for `urllib.request.build_opener` whose connections have these limits."""
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
