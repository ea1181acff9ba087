"""HTTPS to the hub's static repository: TUF metadata, and blobs that resume where they broke off.

Guarantee: `blob` returns only when the file under `part` has exactly the size and sha256 that were asked for, and is
durable; it never writes more than `size` bytes. Every failure of the network is an `Unavailable`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import urllib3
from tuf.api import exceptions as tuf_errors
from tuf.ngclient.fetcher import FetcherInterface

from edgewright_contracts.errors import Refused, Unavailable

from ..disk import Disk

CHUNK: Final = 64 << 10
TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)


class LinkDown(Unavailable):
    """The repository cannot be reached, or broke off."""


class WrongBytes(Refused):
    """The repository served something else than the signed manifest names."""


class Link:
    """One pool of connections. `ca` is the hub's own CA, and no other is trusted; None is for plain HTTP."""

    def __init__(self, ca: Path | None) -> None:
        options: dict[str, Any] = {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(ca)} if ca else {}
        self._pool = urllib3.PoolManager(retries=False, timeout=TIMEOUT, maxsize=2, **options)
        self.received = 0  # bytes of bodies
        self.stopping = threading.Event()  # breaks off whatever is being read

    def open(self, url: str, offset: int = 0) -> urllib3.BaseHTTPResponse:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            return self._pool.request("GET", url, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise LinkDown(f"{url}: {error}") from error

    def chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body as it comes in: what arrived before the link broke is handed out, so that a resume gets further."""
        try:
            while chunk := response.read1(CHUNK):
                self.received += len(chunk)
                if self.stopping.is_set():
                    raise LinkDown(f"{response.url}: the agent stops")
                yield chunk
        except urllib3.exceptions.HTTPError as error:
            raise LinkDown(f"{response.url}: {error}") from error
        finally:
            response.close()  # a connection with half a body in it must not be used again

    def blob(
        self, disk: Disk, url: str, part: Path, size: int, sha256: str, interrupt: Callable[[], None] = lambda: None
    ) -> None:
        """Download into `part`, going on from what it already holds. Raises LinkDown, WrongBytes, OSError.

        What `interrupt` raises breaks the download off; it is called before it and for every chunk, so a link that
        stands still delays it by the time-out of a read. What came in is kept.
        """
        interrupt()
        have = disk.size(part) or 0
        if have > size:
            disk.unlink(part)
            have = 0
        if have < size or size == 0:
            self._resume(disk, url, part, have, size, interrupt)
        got = disk.sha256(part)
        if got != sha256:
            disk.unlink(part)  # or every later try would build on the same wrong bytes
            raise WrongBytes(f"{url}: expected sha256 {sha256}, got {got}")
        disk.fsync(part)
        disk.fsync(part.parent)

    def _resume(self, disk: Disk, url: str, part: Path, have: int, size: int, interrupt: Callable[[], None]) -> None:
        response = self.open(url, have)
        if response.status == 416:
            response.close()  # not back to the pool: what is unread would be taken for the next answer
            disk.unlink(part)
            raise LinkDown(f"{url}: the repository has fewer bytes than were downloaded; starting again")
        if response.status not in (200, 206):
            response.close()  # not back to the pool: what is unread would be taken for the next answer
            raise LinkDown(f"{url}: expected the file, got HTTP {response.status}")
        if response.status == 200 or not have:
            disk.write(part, b"")
            have = 0
        for chunk in self.chunks(response):
            if have + len(chunk) > size:
                disk.unlink(part)
                raise WrongBytes(f"{url}: expected {size} bytes, got more")
            disk.append(part, chunk)
            have += len(chunk)
            interrupt()
        if have < size:
            raise LinkDown(f"{url}: broke off after {have} of {size} bytes")


class TufFetcher(FetcherInterface):
    """What python-tuf reads metadata and manifests through."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            response = self._link.open(url)
        except LinkDown as error:
            raise tuf_errors.DownloadError(str(error)) from error
        if response.status >= 400:
            response.close()  # not back to the pool: what is unread would be taken for the next answer
            raise tuf_errors.DownloadHTTPError(f"{url}: HTTP {response.status}", response.status)
        return self._checked(response)

    def _checked(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            yield from self._link.chunks(response)
        except LinkDown as error:
            raise tuf_errors.DownloadError(str(error)) from error
