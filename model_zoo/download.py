"""Bytes from a URL into a file, with a time limit and a progress bar."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 10
_BLOCK_BYTES = 1 << 20


def fetch(url: str, target: Path) -> None:
    """Write what a URL gives to a new file.

    Args:
        url: Of scheme http or https; one of https is not followed to a server without it.
        target: Must not exist.

    Raises:
        OSError: The server can't be reached, refuses, or breaks off.
        http.client.HTTPException: The server answers in another language than HTTP.
    """
    from tqdm.auto import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("xb") as file:
        if is_secure(url) and not is_secure(response.geturl()):
            raise OSError(f"redirected to {response.geturl()}, which is not https")
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        name = url.rsplit("/", 1)[-1]
        # On a terminal only: in a log file the bar would be a line for every update.
        with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
        if total is not None and file.tell() != total:
            raise OSError(f"the connection broke off after {file.tell()} of {total} bytes")


def is_secure(url: str) -> bool:
    """Whether nobody on the way can change what comes: over https, or from this machine."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


def reason(error: Exception) -> str:
    """Why a fetch failed, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"not reached ({error.reason})"
    return f"{type(error).__name__}: {error}"
