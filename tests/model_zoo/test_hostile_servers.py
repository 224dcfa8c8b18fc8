"""Servers that are slow, endless, malformed or wrong: each raises an error in time, and the next address is tried."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import struct
import threading
import time

import pytest

import model_zoo
from model_zoo import catalogue, download, paced
from model_zoo import weights as weight_files

SECONDS = 8.0  # the time for one server, with the limits below
CONTENT = b"PK\x03\x04" + bytes(range(256)) * 200
OTHER = b"PK\x03\x04" + bytes(len(CONTENT) - 4)
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(CONTENT)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def drip(start: bytes, piece: bytes = b"x"):
    """Data that arrive slowly although no single wait is long."""
    return itertools.chain([start], (each for _ in iter(int, 1) for each in (0.05, piece)))


def endless(start: bytes, piece: bytes):
    return itertools.chain([start], itertools.repeat(piece))


def status(code, *headers):
    return b"".join([b"HTTP/1.1 %d X\r\n" % code, *(header + b"\r\n" for header in headers), b"\r\n"])


def redirect(location):
    return status(302, b"Location: " + location, b"Content-Length: 0")


def body(content, *headers):
    return status(200, b"Content-Length: %d" % len(content), *headers) + content


# The answers of the servers: bytes, or pieces of bytes with waits between them, in seconds.
SERVERS = {
    # slow
    "silent": [10.0],
    "silent after the status": [OK, 10.0],
    "silent after the headers": [OK + LENGTH, 10.0],
    "silent in the body": [OK + LENGTH + CONTENT[:1000], 10.0],
    "silent in a chunk": [CHUNKED + b"ff\r\nxx", 10.0],
    "a byte at a time": lambda: drip(OK + LENGTH),
    "a byte at a time without a length": lambda: drip(OK + b"\r\n"),
    "a byte of the status at a time": lambda: drip(b""),
    "a byte of a header at a time": lambda: drip(OK + b"X: "),
    "a header at a time": lambda: drip(OK, b"X: y\r\n"),
    "a chunk at a time": lambda: drip(CHUNKED, b"1\r\nx\r\n"),
    "a byte of a chunk's size at a time": lambda: drip(CHUNKED, b"0"),
    "a continuation at a time": lambda: drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    # endless
    "an endless body": lambda: endless(OK + b"\r\n", b"\0" * 65536),
    "endless chunks": lambda: endless(CHUNKED, b"1000\r\n" + b"\0" * 4096 + b"\r\n"),
    "endless headers": lambda: endless(OK, b"X: y\r\n" * 1000),
    "an endless header": lambda: endless(OK + b"X: ", b"y" * 65536),
    "an endless status": lambda: endless(b"HTTP/1.1 200 ", b"y" * 65536),
    "endless continuations": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "endless trailers": lambda: endless(CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    "an endless size of a chunk": lambda: endless(CHUNKED, b"0" * 65536),
    # malformed
    "nothing": b"",
    "garbage": bytes(range(256)),
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half a status": b"HTTP/1.1",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of 999": status(999),
    "an unknown version": b"HTTP/9.9 200 OK\r\n" + LENGTH + CONTENT,
    "headers without colons": OK + b"X\r\nY\r\n\r\n",
    "headers of zeros": OK + b"X: \0\0\r\n\0: \r\n\r\n",
    "headers that are no text": OK + b"X: \xff\xfe\r\n\xff: y\r\nContent-Length: \xb2\r\n\r\n",
    "a length that is negative": status(200, b"Content-Length: -1") + CONTENT[:10],
    "a length that is no number": status(200, b"Content-Length: abc") + CONTENT,
    "a length with a sign": status(200, b"Content-Length: +5") + CONTENT,
    "a length of a power": status(200, b"Content-Length: 1e9") + CONTENT,
    "two lengths": status(200, b"Content-Length: 5", b"Content-Length: 9") + CONTENT,
    "a length of zero": status(200, b"Content-Length: 0"),
    "a length beyond the disk": status(200, b"Content-Length: 1" + b"0" * 17) + CONTENT,
    "a length beyond numbers": status(200, b"Content-Length: 1" + b"0" * 5000) + CONTENT,
    "a chunk without a size": CHUNKED + b"\r\nxxx",
    "a chunk of a negative size": CHUNKED + b"-5\r\nxxxxx\r\n",
    "a chunk of words": CHUNKED + b"many\r\nxxxxx\r\n",
    "a chunk beyond numbers": CHUNKED + b"f" * 30 + b"\r\nxxxxx\r\n",
    "chunks that break off": CHUNKED + b"5\r\nxxxxx\r\n",
    "an unknown coding": status(200, b"Transfer-Encoding: evil") + CONTENT[:100],
    "a redirect to nowhere": status(302),
    "a redirect to nothing": redirect(b""),
    "a redirect to half an address": redirect(b"http://[::1"),
    "a redirect to no port": redirect(b"http://127.0.0.1:99999/"),
    "a redirect to words for a port": redirect(b"http://127.0.0.1:port/"),
    "a redirect to bytes": redirect(b"https://\xff\xfe/\0"),
    "a redirect with spaces": redirect(b"https://a b c/ d"),
    # lies
    "a redirect to http": redirect(b"http://weights.invalid/x"),
    "a redirect to a file": redirect(b"file:///etc/passwd"),
    "a redirect to a file here": redirect(b"file://localhost/etc/passwd"),
    "a redirect to ftp": redirect(b"ftp://localhost/x"),
    "a redirect to data": redirect(b"data:text/plain,x"),
    "a redirect to a script": redirect(b"javascript:1"),
    "a redirect to itself": redirect(b"/again"),
    "another part": status(206, b"Content-Range: bytes 5-9/100", b"Content-Length: 5") + b"xxxxx",
    "no content": status(204),
    "reset content": status(205),
    "not modified": status(304),
    "several choices": status(300),
    "a wrong range": status(416),
    "a bad authentication": status(401, b'WWW-Authenticate: Digest realm="\xff', b"Content-Length: 0"),
    "a proxy's authentication": status(407, b"Proxy-Authenticate: evil"),
    "too many requests": status(429, b"Retry-After: 99999999"),
    "an error": status(500),
    "an HTML page": body(b"<!DOCTYPE html><html>sign in</html>"),
    "an HTML page with an error": status(403) + b"<html>no</html>",
    "another file": body(OTHER),
    "the file and more": body(CONTENT + b"x"),
    "half the file": body(CONTENT[: len(CONTENT) // 2]),
    "half the file as the whole": OK + LENGTH + CONTENT[: len(CONTENT) // 2],
    "another hash announced": body(CONTENT, b"X-Linked-Etag: " + b"0" * 64),
    "a packed file": body(b"\x1f\x8b" + CONTENT, b"Content-Encoding: gzip"),
}


class Hostile:
    """A server on this machine that sends a given answer to every request."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.closed = threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(10)
            if not connection.recv(65536):
                return
            answer = self.answer() if callable(self.answer) else self.answer
            for piece in [answer] if isinstance(answer, bytes) else answer:
                if self.closed.is_set():
                    return
                if isinstance(piece, float):
                    self.closed.wait(piece)
                else:
                    connection.sendall(piece)

    def close(self) -> None:
        self.closed.set()
        self.listening.close()


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(paced, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(paced, "WINDOW_SECONDS", 0.5)
    monkeypatch.setattr(paced, "SLOWEST", 20_000)
    monkeypatch.setattr(weight_files, "_most_bytes", lambda entry: 4 * len(CONTENT))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def locate(pin, server, name, address, digest):
    path = server.folder / "good.pth"
    path.write_bytes(CONTENT)
    first = model_zoo.WeightFile("weights.pth", f"{address}/{name}", digest)
    pin("resnet10t", first, dataclasses.replace(first, url=f"{server.address}/good.pth"))
    entry = catalogue.ENTRIES["resnet10t"]
    return weight_files.locate(entry, entry.weights[0])


@pytest.mark.parametrize("name", SERVERS)
def test_the_next_address_is_tried(server, pin, limits, sha256, tmp_path, name):
    hostile = Hostile(SERVERS[name])
    (tmp_path / "content").write_bytes(CONTENT)
    started = time.monotonic()
    try:
        found = locate(pin, server, "x", hostile.address, sha256(tmp_path / "content"))
    finally:
        hostile.close()
    assert time.monotonic() - started < SECONDS
    assert found.read_bytes() == CONTENT
    assert server.requests, "the file came from the hostile server"
    left = {path.name for path in weight_files.cache_folder().iterdir()}
    assert left <= {"weights.pth", "weights.pth.lock"}


@pytest.mark.parametrize("name", ["a byte at a time", "an endless body", "garbage", "another file", "half the file"])
def test_without_another_address_it_is_an_error_and_no_file(pin, limits, sha256, tmp_path, name):
    hostile = Hostile(SERVERS[name])
    (tmp_path / "content").write_bytes(CONTENT)
    file = model_zoo.WeightFile("weights.pth", f"{hostile.address}/x", sha256(tmp_path / "content"))
    try:
        with pytest.raises(model_zoo.WeightsError):
            download.download(file.url, file, tmp_path / "cache", 4 * len(CONTENT))
    finally:
        hostile.close()
    assert not (tmp_path / "cache" / "weights.pth").exists()


def test_a_reset_connection(server, pin, limits, sha256, tmp_path):
    class Resetting(Hostile):
        def _answer(self, connection) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    hostile = Resetting(b"")
    (tmp_path / "content").write_bytes(CONTENT)
    try:
        assert locate(pin, server, "x", hostile.address, sha256(tmp_path / "content")).read_bytes() == CONTENT
    finally:
        hostile.close()


@pytest.mark.parametrize("kind", ["a link", "a hard link", "a folder", "a pipe"])
def test_an_object_planted_in_place_of_the_part(server, pin, limits, sha256, tmp_path, kind):
    import os

    folder = weight_files.cache_folder()
    folder.mkdir(parents=True)
    victim, part = tmp_path / "victim", folder / "weights.pth.part"
    victim.write_text("precious")
    if kind == "a link":
        part.symlink_to(victim)
    elif kind == "a hard link":
        os.link(victim, part)
    elif kind == "a pipe":
        os.mkfifo(part)
    else:
        part.mkdir()
    (tmp_path / "content").write_bytes(CONTENT)
    if kind == "a folder":
        with pytest.raises(model_zoo.WeightsError):
            locate(pin, server, "good.pth", server.address, sha256(tmp_path / "content"))
    else:
        assert locate(pin, server, "good.pth", server.address, sha256(tmp_path / "content")).read_bytes() == CONTENT
    assert victim.read_text() == "precious"
