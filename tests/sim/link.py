"""A slow link to a repository's folder, in virtual time: what is read moves the clock. Stands in for a urllib3 pool.

    link = SimLink(folder, clock, bytes_per_s=1250); Link(link.pool, clock=clock, wait=clock.advance)

`breaks()` says after how many bytes of a body the next connection breaks; of a TLS `record` that is not whole then,
nothing is handed out; `served` counts those of bodies, `lies` maps
the end of an address to what is served instead, or to None: for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from .clock import SimClock

HEADER_BYTES = 250


class SimLink:
    def __init__(
        self,
        folder: Path,
        clock: SimClock,
        *,
        bytes_per_s: float,
        round_trip_s: float = 0.6,
        breaks: Callable[[], int] | None = None,
        record: int = 1,
    ) -> None:
        self.folder, self.clock, self.bytes_per_s = folder, clock, bytes_per_s
        self.round_trip_s, self.breaks, self.record = round_trip_s, breaks, record
        self.lies: dict[str, bytes | None] = {}
        self.served = 0
        self.connections = 0

    def pool(self, **_: object) -> SimLink:
        return self

    def request(self, method: str, url: str, *, headers: dict[str, str], preload_content: bool) -> Response:
        self.connections += 1
        self.clock.advance(self.round_trip_s + HEADER_BYTES / self.bytes_per_s)
        path = urlsplit(url).path
        lie = [data for end, data in self.lies.items() if path.endswith(end)]
        file = self.folder / path.lstrip("/")
        # Path.is_file raises for a name that no disk can have; a server says that there is none.
        if not lie and not os.path.isfile(file):  # noqa: PTH113
            return Response(self, url, 404, b"", {})
        data = lie[0] if lie else file.read_bytes()
        first, _, last = headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first)
        if data is None:
            return Response(self, url, 200, None, {})
        end = min(int(last) + 1, len(data)) if last else len(data)
        said = {"Content-Length": str(end - start), "ETag": f'"{len(data)}"'}
        if start or last:
            said["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Response(self, url, 206 if start or last else 200, data[start:end], said)


class Response:
    connection = None

    def __init__(self, link: SimLink, url: str, status: int, body: bytes | None, headers: dict[str, str]) -> None:
        self._link, self.url, self.status, self._body, self.headers = link, url, status, body, headers
        self._left = link.breaks() if link.breaks else None
        if self._left is not None and body is not None and self._left < len(body):
            self._left -= self._left % link.record

    def read1(self, amount: int, decode_content: bool = True) -> bytes:
        """What comes in within a second, at most."""
        n = max(1, min(amount, int(self._link.bytes_per_s)))
        if self._left is not None:
            if self._left == 0:
                raise urllib3.exceptions.ProtocolError("Connection broken: reset by the simulated link")
            n = min(n, self._left)
        chunk = b"\0" * n if self._body is None else self._body[:n]
        if self._body is not None:
            self._body = self._body[n:]
        if self._left is not None:
            self._left -= len(chunk)
        self._link.served += len(chunk)
        self._link.clock.advance(max(1, len(chunk)) / self._link.bytes_per_s)
        return chunk

    def close(self) -> None:
        """Nothing to give back."""
