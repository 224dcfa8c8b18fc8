"""Download of a file: it appears under its name whole and verified, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from .cards import WeightFile

REACH_SECONDS = 2.0  # for all servers together, so that without a network the error comes within 3 s
STALL_SECONDS = 20  # a server that sends nothing for this long has broken off
ATTEMPTS = 4
_BLOCK = 1 << 20


class WeightsError(OSError):
    """Weights could not be downloaded, or a file is not the one that is expected."""


def download(url: str, file: WeightFile, folder: Path) -> Path:
    """Download a file into a folder; it appears there whole and verified, or not at all.

    If several processes want the same file, the others wait for the first one. A download that broke off is resumed
    where it stopped if a hash is pinned, because only then can the joined parts be checked.

    Args:
        url: An https address; http is allowed for a server on this machine.
        file: The name and hash of the file.
        folder: The folder in which it is stored.

    Raises:
        WeightsError: The server can't be reached, the file has another hash, or the folder can't be written.
    """
    if not _is_safe(url):
        raise WeightsError("refused: weights are downloaded over https only")
    import filelock

    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f"{file.name}.lock"
        if lock.is_symlink():  # someone may have planted it, and the lock's file is opened for writing
            lock.unlink()
        with filelock.FileLock(str(lock)):
            if target.is_file() and _matches(target, file):
                return target  # another process has downloaded it
            _fetch_verified(url, file, target)
    except WeightsError:
        raise
    except OSError as error:  # URLError is one
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WeightsError(f"{folder} can't be written; set MXTORCH_HOME to a folder that can") from error
        if error.errno == errno.ENOSPC:
            raise WeightsError(f"the disk of {folder} is full; free some space, or set MXTORCH_HOME") from error
        raise WeightsError(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from error
    return target


def verified(path: Path, file: WeightFile) -> Path:
    """The path, if the file has the pinned hash and the hash that it had when it was downloaded.

    The latter is known for files in the cache of the zoo, which keeps it in a file of its own, and of the Hugging Face
    Hub, where it is the name of the file. A file with neither of the two is not checked.

    Raises:
        WeightsError: It has another hash.
    """
    digest = _sha256(path)
    expected = [file.sha256, _noted(path), path.resolve().name if path.is_symlink() else ""]
    for known in expected:
        if (known == file.sha256 or len(known) == 64) and not digest.startswith(known):
            raise WeightsError(
                f"{path} is damaged or another file: its sha256 begins {digest[:8]}, expected {known}; "
                "remove it, or put the right file there"
            )
    return path


def unreachable(urls: list[str]) -> dict[str, str]:
    """The addresses whose server, or the proxy in front of it, can't be reached, each with the reason.

    All are tried at the same time, so that without a network the error comes in seconds and not in minutes.
    """
    gates = {url: _gate(url) for url in urls}
    reasons: dict[tuple[str, int], str] = {}

    def probe(gate: tuple[str, int]) -> None:
        try:
            socket.create_connection(gate, timeout=REACH_SECONDS).close()
            reasons[gate] = ""
        except OSError as error:
            reasons[gate] = f"{gate[0]} can't be reached ({error})"

    threads = [threading.Thread(target=probe, args=(gate,), daemon=True) for gate in set(gates.values())]
    for thread in threads:
        thread.start()
    end = time.monotonic() + REACH_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    silent = f"no answer within {REACH_SECONDS:g} s"
    found = {url: reasons.get(gate, f"{gate[0]} can't be reached ({silent})") for url, gate in gates.items()}
    return {url: reason for url, reason in found.items() if reason}


def _fetch_verified(url: str, file: WeightFile, target: Path) -> None:
    """Download to a `.part` file until it is whole, check it, write its hash down, and give it its name."""
    part = target.with_name(target.name + ".part")
    if not file.sha256 or part.is_symlink():
        part.unlink(missing_ok=True)  # without a pinned hash, the rest of an earlier attempt can't be checked
    for attempt in range(1, ATTEMPTS + 1):
        begun = part.stat().st_size if part.is_file() else 0
        try:
            announced = _fetch(url, part)
        except _BrokeOffError as error:
            if attempt == ATTEMPTS or part.stat().st_size <= begun:
                raise WeightsError(f"{error}; the part is kept, call again to resume") from error
            continue
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
            raise
        digest = _sha256(part)
        if digest.startswith(file.sha256) and digest.startswith(announced):
            note = target.with_name(target.name + ".sha256")
            note.unlink(missing_ok=True)
            with open(note, "w", opener=_not_through_links) as text:
                text.write(digest + "\n")
            os.replace(part, target)
            return
        kind = " but an HTML page" if part.read_bytes()[:256].lstrip().lower().startswith((b"<html", b"<!doc")) else ""
        part.unlink()
        if not begun:
            raise WeightsError(
                f"the server did not send the file{kind}: the sha256 of what it sent begins {digest[:8]}, "
                f"expected {file.sha256 or announced}"
            )
        # The part from an earlier attempt may have been of another file: try again from the start.
    raise WeightsError(f"it broke off {ATTEMPTS} times; the part is kept, call again to resume")


class _BrokeOffError(Exception):
    """The connection ended before the end of the file."""


def _not_through_links(path: str, flags: int) -> int:
    """An opener for `open` that refuses a symlink at the path, which someone else may have planted."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _fetch(url: str, part: Path) -> str:
    """Download the missing rest of a file; return the hash that the server announces for it, or an empty string."""
    from tqdm.auto import tqdm

    begun = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mxtorch", "Accept-Encoding": "identity"})
    if begun:
        request.add_header("Range", f"bytes={begun}-")
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and begun:  # the part is whole, or of another file; the check of its hash decides
            return ""
        raise WeightsError(f"the server answers {error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise WeightsError(f"the server's answer is not valid HTTP ({type(error).__name__})") from error
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        missing = int(length) if length else None
        start = begun if resumed else 0
        if missing is not None and shutil.disk_usage(part.parent).free < missing:
            raise OSError(errno.ENOSPC, f"{missing >> 20} MiB are missing")
        total = None if missing is None else start + missing
        with (
            open(part, "ab" if resumed else "wb", opener=_not_through_links) as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None
            ) as bar,
        ):
            try:
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                raise _BrokeOffError(f"the connection broke off after {file.tell()} bytes") from error
            if total is not None and file.tell() < total:
                raise _BrokeOffError(f"the connection broke off after {file.tell()} of {total} bytes")
            file.flush()
            os.fsync(file.fileno())
        return redirects.announced or _announced(response.headers)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and keeps the hash that the Hugging Face Hub announces in a redirect."""

    announced = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.announced = self.announced or _announced(headers)
        if not _is_safe(newurl):
            raise WeightsError(f"refused: the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _announced(headers: Any) -> str:
    tag = str(headers.get("X-Linked-Etag") or "").strip('"')
    return tag if len(tag) == 64 else ""


def _matches(path: Path, file: WeightFile) -> bool:
    with contextlib.suppress(WeightsError):
        return bool(verified(path, file))
    return False


def _noted(path: Path) -> str:
    note = path.with_name(path.name + ".sha256")
    return note.read_text().strip() if note.is_file() else ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _gate(url: str) -> tuple[str, int]:
    """Host and port that a request is sent to: those of the proxy if there is one, else of the server."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _is_safe(url: str) -> bool:
    return url.startswith("https://") or urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
