"""Separate caches for each test, and a server of weights on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import torch

import model_zoo
from model_zoo import catalogue


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MXTORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("MXTORCH_WEIGHTS_MIRROR", "MXTORCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder, in parts if requested; a test can change its answers."""

    def do_GET(self):
        served = self.server.served
        served.requests.append((self.path, self.headers.get("Range")))
        if self.path in served.redirects:
            self.send_response(302)
            self.send_header("Location", served.redirects[self.path])
            if served.announced:
                self.send_header("X-Linked-Etag", f'"{served.announced}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = served.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        begin = 0
        wanted = self.headers.get("Range")
        if wanted and served.ranges:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        rest = content[begin:]
        if served.breaks:
            rest = rest[: served.breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


class Served:
    """A folder that is served by http, and a list of the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        self.breaks: list[int] = []  # the numbers of bytes after which the next connections end
        self.ranges = True
        self.redirects: dict[str, str] = {}
        self.announced = ""
        self.address = ""


@pytest.fixture
def server(tmp_path):
    served = Served(tmp_path / "served")
    served.folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.daemon_threads = True
        http_server.handle_error = lambda *_: None  # clients that break a connection are told nowhere
        http_server.served = served
        served.address = f"http://127.0.0.1:{http_server.server_port}"
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)  # how soon it ends
        thread.start()
        yield served
        http_server.shutdown()
        thread.join()


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pin(monkeypatch):
    """Replace the default weights of a model by some files."""

    def pin_files(name, *files, **changes):
        entry = catalogue.ENTRIES[name]
        weights = dataclasses.replace(entry.weights[0], **({"files": files} if files else {}), **changes)
        monkeypatch.setitem(catalogue.ENTRIES, name, dataclasses.replace(entry, weights=(weights,)))
        return weights

    return pin_files


@pytest.fixture
def published(server, pin):
    """The server with weights of ResNet-10t, and the network of these weights."""
    torch.manual_seed(1)
    net = model_zoo.resnet10t()
    path = server.folder / "resnet10t-test.pth"
    torch.save(net.state_dict(), path)
    pin("resnet10t", model_zoo.WeightFile(path.name, f"{server.address}/{path.name}", hash_of(path)[:8]))
    return server, net


def same(one, other) -> bool:
    """Whether two networks have the same tensors."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def agree():
    return same


@pytest.fixture
def sha256():
    return hash_of
