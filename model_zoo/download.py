"""Download of a file, within limits of time and size. A file gets its name only when it is complete and verified."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from .cards import WeightFile
from .first_seen import FirstSeen, WeightsError, lock_path
from .paced import Pace, handlers

REACH_SECONDS = 2.0  # for all servers together, so that the error comes within 3 s if there is no network
ATTEMPTS = 4
LARGEST_FILE = 32 << 30
LOCK_SECONDS = 6 * 3600.0  # another process may be downloading the same file
_BLOCK = 1 << 20
_HEAD = 512

__all__ = ["WeightsError", "download", "unreachable", "verified"]


def download(url: str, file: WeightFile, folder: Path, most_bytes: int = LARGEST_FILE) -> Path:
    """Download a file into a folder. The file gets its name only when it is complete and verified.

    If several processes want the same file, one downloads it, and the others wait. An interrupted download is continued
    if a hash is pinned, because only then can the joined parts be verified. A file without a whole pinned hash must
    have the hash that the server announces, and the hash that was recorded at its first use; the hash of a new file is
    recorded (see `first_seen`).

    Args:
        url: An https address; http is allowed for a server on this machine.
        file: The name and hash of the file.
        folder: The folder for the file.
        most_bytes: The largest size of the file, in bytes.

    Raises:
        WeightsError: The server can't be reached, is too slow, or sends too much; the file has another hash or has no
            weights; or the folder can't be written.
    """
    if not _is_safe(url):
        raise WeightsError("refused: weights are downloaded only over https")
    import filelock

    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock_path(target), timeout=LOCK_SECONDS):
            if target.is_file() and _matches(target, file, FirstSeen(folder)):
                return target  # another process has downloaded it
            _fetch_verified(url, file, target, most_bytes)
    except WeightsError:
        raise
    except filelock.Timeout as error:
        raise WeightsError(f"another process has held {error.lock_file} for {LOCK_SECONDS:g} s") from error
    except OSError as error:  # URLError is one
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WeightsError(f"{folder} can't be written; set MXTORCH_HOME to a folder that can") from error
        if error.errno == errno.ENOSPC:
            raise WeightsError(f"the disk of {folder} is full; free some space, or set MXTORCH_HOME") from error
        raise WeightsError(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from error
    except (http.client.HTTPException, ValueError, LookupError) as error:  # a malformed header or address
        raise WeightsError(f"the server's answer is malformed ({type(error).__name__}: {error})"[:300]) from error
    return target


def verified(path: Path, file: WeightFile, seen: FirstSeen, *, announced: str = "", record: bool = True) -> Path:
    """The path, if the file has the known hash.

    The known hash is the whole pinned hash. If there is none, it is the published prefix and the hash that was recorded
    at the first use of the file. The hash of a new file is recorded, with a warning if the file has no published prefix
    either.

    Args:
        path: The file.
        file: The description of the file.
        seen: The recorded hashes.
        announced: A hash that the location of the file states, as the cache of the Hugging Face Hub does.
        record: Whether the hash of a new file is recorded.

    Raises:
        WeightsError: The file has another hash.
    """
    digest = _sha256(path)
    if problem := _mismatch(digest, file, seen, announced):
        raise WeightsError(
            f"{path} is damaged or another file: its sha256 {problem}; remove it, or replace it by the right file"
        )
    if record and len(file.sha256) < 64 and seen.of(file.name) is None:
        try:
            seen.add(file.name, digest, str(path))
            outcome = f"It is recorded in {seen.path} and required from now on"
        except OSError as error:
            outcome = f"It can't be recorded ({error}), so another file would be accepted the next time"
        if not file.sha256:
            warnings.warn(
                f"{path} has no published hash, and the zoo did not download it, so the zoo can't verify that it is "
                f"the right file. Its sha256 is {digest}. {outcome}",
                stacklevel=2,
            )
    return path


def unreachable(urls: list[str]) -> dict[str, str]:
    """The addresses whose server, or whose proxy, can't be reached, each with the reason.

    All are tried at the same time, so that the error comes in seconds and not in minutes if there is no network.
    """
    gates: dict[str, tuple[str, int]] = {}
    found: dict[str, str] = {}
    for url in urls:
        with contextlib.suppress(ValueError):
            gates[url] = _gate(url)
        if url not in gates:
            found[url] = "the address, or the address of the proxy, is malformed"
    reasons: dict[tuple[str, int], str] = {}

    def probe(gate: tuple[str, int]) -> None:
        try:
            socket.create_connection(gate, timeout=REACH_SECONDS).close()
            reasons[gate] = ""
        except (OSError, ValueError) as error:  # ValueError: a name that can't be encoded
            reasons[gate] = f"{gate[0]} can't be reached ({error})"

    threads = [threading.Thread(target=probe, args=(gate,), daemon=True) for gate in set(gates.values())]
    for thread in threads:
        thread.start()
    end = time.monotonic() + REACH_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    silent = f"no answer within {REACH_SECONDS:g} s"
    found |= {url: reasons.get(gate, f"{gate[0]} can't be reached ({silent})") for url, gate in gates.items()}
    return {url: reason for url, reason in found.items() if reason}


def _mismatch(digest: str, file: WeightFile, seen: FirstSeen, announced: str) -> str:
    """How a hash differs from the known hashes of a file, in words; an empty text if it does not differ."""
    expected = [(file.sha256, file.guarantee), (announced, "announced by its location")]
    if len(file.sha256) < 64 and (entry := seen.of(file.name)) is not None:
        expected.append((entry.sha256, f"first seen on {entry.date}; remove it from {seen.path} to accept another"))
    wrong = [f"{known} ({why})" for known, why in expected if not digest.startswith(known)]
    return f"starts with {digest[:8]}, expected {wrong[0]}" if wrong else ""


def _fetch_verified(url: str, file: WeightFile, target: Path, most_bytes: int) -> None:
    """Download to a `.part` file until it is complete, verify it, record its hash, and give the file its name."""
    part = target.with_name(target.name + ".part")
    seen = FirstSeen(target.parent)
    if not file.sha256 or not _is_own(part):
        part.unlink(missing_ok=True)  # without a pinned hash, a part of an earlier attempt can't be verified
    pace = Pace(most_bytes)
    for attempt in range(1, ATTEMPTS + 1):
        start = part.stat().st_size if part.is_file() else 0
        try:
            announced = _fetch(url, part, pace)
        except _IncompleteError as error:
            if attempt == ATTEMPTS or not part.is_file() or part.stat().st_size <= start:
                raise WeightsError(f"{error}; the part is kept, call again to resume") from error
            continue
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG):
                part.unlink(missing_ok=True)
            raise
        digest = _sha256(part)
        problem = _mismatch(digest, file, seen, announced)
        if kind := _not_weights(part, file):
            problem = f"{kind}; the sha256 of what it sent {problem or f'is {digest}'}"
        elif problem:
            problem = f": the sha256 of what it sent {problem}"
        if problem:
            part.unlink()
            if start:  # the part of an earlier attempt may belong to another file, so download all of it again
                continue
            raise WeightsError(f"the server did not send the file{problem}")
        if len(file.sha256) < 64:
            seen.add(file.name, digest, url + (", with the hash that the server announced" if announced else ""))
        os.replace(part, target)
        return
    raise WeightsError(f"the download failed {ATTEMPTS} times; the part is kept, call again to resume")


def _not_weights(part: Path, file: WeightFile) -> str:
    """A part of an error message if the server sent no weights, such as an HTML page; otherwise an empty text."""
    with part.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.lstrip().lower().startswith((b"<html", b"<!doc", b"<?xml", b"<head")):
        return " but an HTML page"
    if not head:
        return " but nothing"
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LARGEST_FILE
    is_weights = is_safetensors if file.name.endswith(".safetensors") else head.startswith((b"PK\x03\x04", b"\x80"))
    return "" if is_weights or len(file.sha256) == 64 else f" but data that start with {head[:16]!r}"


class _IncompleteError(Exception):
    """The connection ended before the end of the file."""


def _is_own(part: Path) -> bool:
    """Whether a path is free, or an ordinary file with one name. A link that someone has planted is not written to."""
    try:
        found = part.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _not_through_links(path: str, flags: int) -> int:
    """An opener for `open` that refuses a symlink at the path, which someone may have planted."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _fetch(url: str, part: Path, pace: Pace) -> str:
    """Download the rest of a file. Return the hash that the server announces, or an empty string."""
    present = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mxtorch", "Accept-Encoding": "identity"})
    if present:
        request.add_header("Range", f"bytes={present}-")
    redirects = _Redirects()
    pace.begin()
    try:
        opener = urllib.request.build_opener(redirects, *handlers(pace))
        response = opener.open(request, timeout=pace.stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and present:  # the part is complete, or belongs to another file; its hash decides
            return ""
        raise WeightsError(f"the server answers {error.code} {error.reason}"[:300]) from error
    except http.client.HTTPException as error:
        raise WeightsError(f"the server's answer is not valid HTTP ({type(error).__name__})") from error
    with response:
        resumed = response.status == 206
        rest = f"bytes {present}-"
        if resumed and not str(response.headers.get("Content-Range", rest)).startswith(rest):
            raise WeightsError("the server sends another part of the file than the requested one")
        start = present if resumed else 0
        total = _length(response.headers, start, pace.most_bytes)
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(errno.ENOSPC, f"{(total - start) >> 20} MiB are missing")
        with open(part, "ab" if resumed else "wb", opener=_not_through_links) as file:
            _copy(response, file, start, total, pace.most_bytes, url.rsplit("/", 1)[-1])
        return redirects.announced or _announced(response.headers)


def _length(headers: Any, start: int, most_bytes: int) -> int | None:
    """The size of the whole file in bytes, which the server announces; None if it announces none.

    Raises:
        WeightsError: The announcement is no number, or is too large.
    """
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not (length.strip().isascii() and length.strip().isdigit() and len(length.strip()) < 20):
        raise WeightsError(f"the server announces a length of {length[:40]!r}")
    if start + int(length) > most_bytes:
        raise WeightsError(f"the server announces {int(length)} bytes; this file has at most {most_bytes}")
    return start + int(length)


def _copy(response: Any, file: BinaryIO, start: int, total: int | None, most_bytes: int, name: str) -> None:
    """Write the body of a response to a file, and sync the file."""
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        try:
            while block := response.read1(_BLOCK):
                if file.tell() + len(block) > most_bytes:
                    raise OSError(errno.EFBIG, f"the server sends more than {most_bytes} bytes")
                file.write(block)
                bar.update(len(block))
        except WeightsError:
            raise
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _IncompleteError(f"the connection ended after {file.tell()} bytes") from error
    if total is not None and file.tell() < total:
        raise _IncompleteError(f"the connection ended after {file.tell()} of {total} bytes")
    file.flush()
    os.fsync(file.fileno())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows only redirects to https, and keeps the hash that the Hugging Face Hub announces in a redirect."""

    announced = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.announced = self.announced or _announced(headers)
        if not _is_safe(newurl):
            raise WeightsError(f"refused: the server redirects to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _announced(headers: Any) -> str:
    tag = str(headers.get("X-Linked-Etag") or "").strip('"').lower()
    return tag if len(tag) == 64 else ""


def _matches(path: Path, file: WeightFile, seen: FirstSeen) -> bool:
    """Whether a file has the known hash. If no hash is known, the answer is no, so that the file is downloaded."""
    if len(file.sha256) < 64 and seen.of(file.name) is None:
        return False
    with contextlib.suppress(WeightsError):
        return bool(verified(path, file, seen, record=False))
    return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _gate(url: str) -> tuple[str, int]:
    """The host and port to which a request is sent: those of the proxy if there is one, else of the server."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _is_safe(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme == "https" or (
            parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
        )
    except ValueError:
        return False
