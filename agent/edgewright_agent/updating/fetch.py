"""HTTPS to the hub's static repository, and files that resume where they broke off.

Guarantee: `blob` returns only when the file under `part` has exactly the size and sha256 that were asked for, and is
durable; it never writes more than `size` bytes. Every failure of the network is a `LinkDown`: also a link that is
slower than anybody's, a ration that is used up and a repository that sends more than it may.

A link that breaks off in the middle is taken up at once while it brings something each time, and nothing that came in
is lost by it: what the kernel has is read before the break is. Where nothing gets through, as when a server seals
16 KiB at a time by TLS and the link breaks before such a record is whole, the rest is asked for in pieces of `NARROW`.
A power cut loses at most the last 256 KiB.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from edgewright_contracts.desired import Download

from ..clock import Clock, SystemClock
from ..disk import Disk
from ..tcp import Bytes, Wire
from .pace import Bucket, Ration
from .refusals import Absent, BrokeOff, LinkDown, Spent, WrongBytes

if TYPE_CHECKING:
    import urllib3  # loaded with the first connection: most days, a device makes none

CHUNK: Final = 64 << 10
SYNC_BYTES: Final = 256 << 10
CONNECT_S: Final = 10.0
READ_S: Final = 30.0
WORTH: Final = 1024  # bytes that a connection must have brought, to be made again at once
NARROW: Final = 2 << 10  # with a handshake before it, still fewer bytes than links break after
SHORT: Final = 1024  # of an answer that is read only to keep its connection
SLOW_S: Final = 60.0  # in which a link
SLOW_BYTES: Final = 960  # must bring so much: 128 bit/s, a tenth of the slowest modem in use
PACED_BUFFER: Final = (4 << 10, 256 << 10)  # what the kernel may take in ahead of a paced reader, least and most
TRIES: Final = 2  # of such pieces in a row that do not get through either, until the link is given up for now
_RANGE: Final = re.compile(r"bytes (\d{1,15})-\d+/(\d{1,15})")


class Pool(Protocol):
    """What `Link` needs of `urllib3.PoolManager`."""

    def request(
        self, method: str, url: str, *, headers: dict[str, str], preload_content: bool
    ) -> urllib3.BaseHTTPResponse: ...


def direct(**options: Any) -> Pool:
    """Connections without TLS of one's own and without a proxy."""
    import urllib3

    pool: Pool = urllib3.PoolManager(**options)
    return pool


class Link:
    """One pool of connections. `manager` makes it, as one that knows the device's CA, proxy and clock
    (tls.connections); it takes what `urllib3.PoolManager` takes.

    `pace` may be called from any thread, all else is the install thread's. Without a `ration`, bytes per day are not
    limited; `wait` is how time passes.
    """

    def __init__(
        self,
        manager: Callable[..., Pool] = direct,
        *,
        clock: Clock | None = None,
        ration: Ration | None = None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._manager, self._clock, self._ration = manager, clock or SystemClock(), ration
        self._pool: Pool | None = None
        self.stopping = threading.Event()  # breaks off whatever is being read
        self._wait = wait or self.stopping.wait
        self._wire = Wire()
        self._bucket: Bucket | None = None
        self.download = Download()  # what the hub asked for last
        self.received = 0  # bytes, as they came over the wire: headers and TLS among them where the kernel tells
        self.sent = 0
        self.waited_s = 0.0  # for the pace that was asked for

    def pace(self, download: Download) -> None:
        """From the next file on, no faster and no more than this."""
        self.download = download

    def open(self, url: str, offset: int = 0, validator: str = "", span: int | None = None) -> urllib3.BaseHTTPResponse:
        """The answer, with its body still to be read: all from `offset` on, or `span` bytes. A `validator` is the ETag
        of the first `offset` bytes."""
        import urllib3

        self._adopt()
        if self._pool is None:
            self._pool = self._connections()
        self._ration_left()
        to = "" if span is None else offset + span - 1
        headers = {"Range": f"bytes={offset}-{to}"} if offset or span else {}
        headers |= {"If-Range": validator} if offset and validator else {}
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise LinkDown(f"{url}: {error}") from error
        self._took(_socket(response), sum(len(k) + len(v) + 4 for k, v in response.headers.items()) + 17)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise LinkDown(f"{url}: expected the file as it is, got it packed; a proxy changes what it passes on")
        return response

    def chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body as it comes in: what arrived before the link broke is handed out, so that a resume gets further."""
        import urllib3

        connection = _socket(response)
        took_s, brought = 0.0, 0
        try:
            while True:
                amount = self._turn()
                began_s = self._now_s()
                chunk = response.read1(amount, decode_content=False)
                took_s, brought = took_s + self._now_s() - began_s, brought + len(chunk)
                self._took(connection, len(chunk))
                if self.stopping.is_set():
                    raise LinkDown(f"{response.url}: the agent stops")
                if not chunk:
                    return
                yield chunk
                if took_s >= SLOW_S:
                    if brought < SLOW_BYTES:
                        raise LinkDown(f"{response.url}: expected {SLOW_BYTES} bytes in {took_s:.0f} s, got {brought}")
                    took_s, brought = 0.0, 0
        except urllib3.exceptions.HTTPError as error:
            raise BrokeOff(f"{response.url}: {error}") from error
        finally:
            self._took(connection, 0)
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
            self._persevere(
                lambda span: self._resume(disk, url, part, size, interrupt, span), lambda: disk.size(part) or 0
            )
        got = disk.sha256(part)
        if got != sha256:
            disk.unlink(part)  # or every later try would build on the same wrong bytes
            raise WrongBytes(f"{url}: expected sha256 {sha256}, got {got}")
        disk.fsync(part)
        disk.fsync(part.parent)

    def unsigned(
        self, disk: Disk, url: str, part: Path, limit: int, interrupt: Callable[[], None] = lambda: None
    ) -> None:
        """Download what nobody has signed, at most `limit` bytes of it. Raises Absent, LinkDown, WrongBytes, OSError.

        Its ETag lies beside it, so that a file which was replaced meanwhile is begun anew.
        """
        self._persevere(
            lambda span: self._resume(disk, url, part, None, interrupt, span, limit=limit),
            lambda: disk.size(part) or 0,
        )

    def settle(self) -> None:
        """A package is in, or was given up: what was reserved of the day's ration and not used is free again."""
        if self._ration is not None:
            self._ration.settle()

    def _persevere(self, resume: Callable[[int | None], bool], size: Callable[[], int]) -> None:
        """`resume` until it says that it is through, as long as each connection brings something."""
        span, vain, most = None, 0, size()
        while True:
            try:
                through = resume(span)
            except (Spent, Absent):
                raise
            except LinkDown as error:
                brought = size() - most
                vain = vain + 1 if brought == 0 and isinstance(error, BrokeOff) else 0
                worth = brought >= (WORTH if span is None else 1) or 0 < vain <= TRIES
                if self.stopping.is_set() or not worth:
                    raise
                span = NARROW if vain else span
            else:
                if through:
                    return
                if size() - most < WORTH:  # answered as asked, and yet with next to nothing: that could go on for ever
                    raise LinkDown(f"expected {WORTH} bytes or the rest of the file in an answer, got less")
                vain = 0
            most = max(most, size())

    def _resume(
        self,
        disk: Disk,
        url: str,
        part: Path,
        size: int | None,
        interrupt: Callable[[], None],
        span: int | None,
        *,
        limit: int | None = None,
    ) -> bool:
        """One request, for `span` bytes or the rest: whether that was all. Of a `size` that is signed, or of at most
        `limit` bytes of what is told apart by its ETag."""
        have = disk.size(part) or 0
        tag = etag_of(part)
        response = self.open(url, have, _text(disk, tag) if size is None else "", span)
        if response.status == 416:
            self.discard(response)
            if size is None:
                return True  # there is no more of it
            disk.unlink(part)
            raise LinkDown(f"{url}: the repository has fewer bytes than were downloaded; starting again")
        if response.status not in (200, 206):
            self.discard(response)
            kind = Absent if response.status in (403, 404, 410) else LinkDown
            raise kind(f"{url}: expected the file, got HTTP {response.status}")
        begins = _RANGE.match(response.headers.get("Content-Range", ""))
        if response.status == 206 and begins and int(begins[1]) != have:
            self.discard(response)
            disk.unlink(part)
            raise LinkDown(f"{url}: expected bytes from {have}, got those from {begins[1]}; starting again")
        if response.status == 200 or not have:
            disk.write(part, b"")
            have = 0
            if size is None:
                disk.write(tag, response.headers.get("ETag", "").encode("ascii", "replace")[:256])
        asked = have + _length(response) if response.status == 206 or size is None else size
        whole = size if size is not None else int(begins[2]) if response.status == 206 and begins else asked
        synced = have
        for chunk in self.chunks(response):
            if have + len(chunk) > (whole if limit is None else min(whole, limit)):
                disk.unlink(part)
                raise WrongBytes(f"{url}: expected {whole if limit is None else limit} bytes, got more")
            disk.append(part, chunk)
            have += len(chunk)
            if have - synced >= SYNC_BYTES:
                disk.fsync(part)
                synced = have
            interrupt()
        if have < min(whole, asked):
            raise LinkDown(f"{url}: broke off after {have} of {whole} bytes")
        return have >= whole

    def discard(self, response: urllib3.BaseHTTPResponse) -> None:
        """Be done with an answer that nobody wants. One that is short is read, so that its connection serves on and no
        further TLS handshake is paid for; any other ends it, or what is unread would be taken for the next answer."""
        import urllib3

        connection, said = _socket(response), response.headers.get("Content-Length", "")
        try:
            if said.isdigit() and int(said) <= SHORT:
                response.read1(SHORT, decode_content=False)
        except urllib3.exceptions.HTTPError:
            pass  # it is closed
        finally:
            self._took(connection, 0)
            response.close()

    def _connections(self) -> Pool:
        """A kernel that takes in ahead of a paced reader would burst, so it may only buffer two seconds' worth."""
        import urllib3

        options: dict[str, Any] = {"timeout": urllib3.Timeout(connect=CONNECT_S, read=READ_S)}
        if self._bucket is not None:
            buffer = min(max(2 * self._bucket.rate, PACED_BUFFER[0]), PACED_BUFFER[1])
            usual = urllib3.connection.HTTPConnection.default_socket_options
            options["socket_options"] = [*usual, (socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)]
        return self._manager(retries=False, maxsize=2, **options)

    def _adopt(self) -> None:
        """The pace that was asked for meanwhile."""
        rate = self.download.bytes_per_s
        if rate != (self._bucket.rate if self._bucket else None):
            self._bucket = Bucket(rate, self._now_s()) if rate is not None else None
            self._pool = None

    def _turn(self) -> int:
        """How many bytes may be read now; comes back when some may. Raises Spent, LinkDown."""
        left = self._ration_left()
        if self._bucket is None:
            return min(CHUNK, left)
        while (wait_s := self._bucket.wait_s(self._now_s())) > 0:
            self.waited_s += wait_s
            self._wait(wait_s)
            if self.stopping.is_set():
                raise LinkDown("the agent stops")
        return min(CHUNK, left, self._bucket.read)

    def _ration_left(self) -> int:
        """Raises Spent."""
        limit = self.download.bytes_per_day
        if limit is None or self._ration is None:
            return CHUNK
        left = self._ration.left(limit)
        if left == 0:
            raise Spent(limit, self._ration.next_s())
        return left

    def _took(self, connection: socket.socket | None, n: int) -> None:
        """Count `n` bytes that were read, or whatever else the kernel says came over this connection."""
        if self._bucket is not None:
            self._bucket.take(n)
        sent, received = self._wire.since_last(connection) or Bytes(0, n)
        self.sent += sent
        self.received += received
        if self._ration is not None and self.download.bytes_per_day is not None:
            self._ration.take(sent + received)

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def etag_of(part: Path) -> Path:
    """Where the ETag of a file lies that has no signed hash."""
    return part.with_name(part.name + ".etag")


def _text(disk: Disk, place: Path) -> str:
    return disk.read(place).decode("ascii", "replace") if disk.size(place) else ""


def _length(response: urllib3.BaseHTTPResponse) -> int:
    """Raises LinkDown."""
    said = response.headers.get("Content-Length", "")
    if not said.isdigit():
        response.close()
        raise LinkDown(f"{response.url}: expected a Content-Length, got none")
    return int(said)


def _socket(response: urllib3.BaseHTTPResponse) -> socket.socket | None:
    """Of a connection that still has some of the body to bring."""
    return getattr(response.connection, "sock", None)
