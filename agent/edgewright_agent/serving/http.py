"""HTTP/1.1 on a listening socket: one thread a connection, everything bounded. Knows nothing of models.

Guarantee: no request, however it is framed, slow or large, ends a thread, holds one for longer than `Limits` say, or
takes more memory than the bound that `admit` gave for its body; nor do all together, beyond `Limits.bodies`. What is
refused before its body was read is answered, and its connection ended: unread bytes would be taken for the next
request. h11 does the framing (chunks, keep-alive,
100-continue; RFC 9112); one request costs it 50 µs. An answer is one write, with TCP_NODELAY.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

import h11

from .room import Room

HEAD_BYTES: Final = 16 << 10
CHUNK: Final = 256 << 10

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    connections: int = 32
    idle_s: float = 75.0  # that a connection may wait for its next request
    request_s: float = 20.0  # from a request's first byte to its last, and for its answer to be taken
    drain_s: float = 2.0  # to read what a refused client still sends, so that it gets to read the answer
    bodies: int = 64 << 20  # bytes, of all connections together; a request that is alone may have more
    end_s: float = 2.0  # that requests under way have to be answered when the server ends


LIMITS: Final = Limits()


class Request(NamedTuple):
    """`headers` have lower-case names; of several with one name, the last."""

    method: str
    path: str  # without the query
    headers: Mapping[str, str]
    body: bytes = b""


class Response(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()  # beside Content-Length
    close: bool = False


class Answering(Protocol):
    def admit(self, request: Request) -> int | Response:
        """Bytes that the body of this request may have, or the refusal; the body is not read yet."""

    def oversized(self, request: Request) -> None:
        """The body of this request, announced or not, is larger than was admitted; it is being refused."""

    def answer(self, request: Request) -> Response:
        """Must not raise."""


class Ended(Exception):
    """The client went away, or said nothing for too long between two requests."""


class Refusal(Exception):
    """A request that is answered without having been read to its end."""

    def __init__(self, response: Response) -> None:
        self.response = response


class Server:
    """`run` accepts until `close`, which any thread may call."""

    def __init__(self, listener: socket.socket, answering: Answering, limits: Limits = LIMITS) -> None:
        self._listener, self._answering, self._limits = listener, answering, limits
        self._places = threading.Semaphore(limits.connections)
        self._room = Room(limits.bodies)
        self._conversations: set[Conversation] = set()
        self._left = threading.Condition()
        self._closed = False

    @property
    def url(self) -> str:
        """Where the protocol begins, as a client names it."""
        name = self._listener.getsockname()
        if self._listener.family == socket.AF_UNIX:
            return f"unix:{name.removesuffix('.new')}"  # which it was bound as, before it was renamed
        return f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}/v2"

    def run(self) -> None:
        """Raises OSError when the listening socket fails."""
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                if isinstance(error, ConnectionError):
                    continue
                raise
            if not self._places.acquire(blocking=False):
                _turn_away(link, self._limits.connections)
                continue
            one = Conversation(link, self._answering, self._limits, self._room)
            with self._left:
                self._conversations.add(one)
            threading.Thread(target=self._serve, args=(link, one), name="edgewright-http", daemon=True).start()

    def close(self) -> None:
        """What is under way is answered, if that takes no longer than `end_s`; no connection is left behind."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._left:
            for one in self._conversations:
                one.end()
            self._left.wait_for(lambda: not self._conversations, self._limits.end_s)
            for one in self._conversations:
                one.cut()

    def _serve(self, link: socket.socket, one: Conversation) -> None:
        try:
            if link.family != socket.AF_UNIX:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.run()
        except (Ended, OSError) as error:  # whatever a peer does to its own connection
            log.debug("a connection ended: %r", error)
        except Exception:
            log.exception("a connection went wrong")
        finally:
            with self._left:
                self._conversations.discard(one)
                self._left.notify_all()
            link.close()
            self._places.release()


class Conversation:
    """The requests of one connection, one after another."""

    def __init__(self, link: socket.socket, answering: Answering, limits: Limits, room: Room) -> None:
        self._link, self._answering, self._limits, self._room = link, answering, limits, room
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._held = 0  # bytes of `room`
        self._asked = self._ending = False  # a request is under way; it is the last

    def end(self) -> None:
        """After the request that is under way; from any thread."""
        self._ending = True
        if not self._asked:
            self.cut()

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Raises Ended, OSError."""
        try:
            while self._next():
                self._http.start_next_cycle()
        finally:
            self._room.give_back(self._held)

    def _next(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            request = self._request()
        except Refusal as refused:
            self._send(refused.response._replace(close=True))
            self._drain()
            return False
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            self._send(_refused(status, f"expected a request of HTTP/1.1, got what is none: {error}"))
            self._drain()
            return False
        response = self._answering.answer(request)
        self._send(response._replace(close=response.close or self._ending), head_only=request.method == "HEAD")
        self._room.give_back(self._held)
        self._held, self._asked = 0, False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _request(self) -> Request:
        """Raises Ended, Refusal, h11.RemoteProtocolError, OSError."""
        buffered = bool(self._http.trailing_data[0])
        deadline = time.monotonic() + (self._limits.request_s if buffered else self._limits.idle_s)
        self._asked, request, bound = buffered, Request("", "", {}), 0
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._link.sendall(self._http.send(go_on) or b"")
                self._http.receive_data(self._receive(deadline))
                if not self._asked:
                    self._asked, deadline = True, time.monotonic() + self._limits.request_s
            elif isinstance(event, h11.Request):
                request = _understood(event)
                admitted = self._answering.admit(request)
                if isinstance(admitted, Response):
                    raise Refusal(admitted)
                bound = admitted
                announced = int(request.headers.get("content-length", 0))
                if announced > bound:
                    self._answering.oversized(request)
                    raise Refusal(_too_large(bound, f"{announced} bytes"))
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > bound:
                    self._answering.oversized(request)
                    raise Refusal(_too_large(bound, "more"))
                if not self._room.takes(len(event.data), self._held):
                    said = f"all requests under way may have {self._limits.bodies} bytes together; try again"
                    raise Refusal(_refused(503, said))
                self._held += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return request._replace(body=bytes(body))
            else:  # ConnectionClosed
                raise Ended

    def _receive(self, deadline: float) -> bytes:
        try:
            self._link.settimeout(max(0.001, deadline - time.monotonic()))
            return self._link.recv(CHUNK)
        except TimeoutError:
            if not self._asked:
                raise Ended from None
            said = f"expected the whole request within {self._limits.request_s:g} s"
            raise Refusal(_refused(408, said)) from None

    def _send(self, response: Response, *, head_only: bool = False) -> None:
        headers = [*response.headers, ("Content-Length", str(len(response.body)))]
        if response.close:
            headers.append(("Connection", "close"))
        data = self._http.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if not head_only:
            data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self._link.settimeout(self._limits.request_s)
        self._link.sendall(data)

    def _drain(self) -> None:
        """A socket that is closed over unread bytes takes the answer with it."""
        self._link.shutdown(socket.SHUT_WR)
        end = time.monotonic() + self._limits.drain_s
        while (left := end - time.monotonic()) > 0:
            self._link.settimeout(left)
            if not self._link.recv(CHUNK):
                return


def told(status: int, body: object, *, close: bool = False) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(body).encode(), (("Content-Type", "application/json"),), close)


def _refused(status: int, why: str) -> Response:
    return told(status, {"error": why}, close=True)


def _too_large(bound: int, got: str) -> Response:
    return _refused(413, f"expected a body of at most {bound} bytes here, got {got}")


def _understood(event: h11.Request) -> Request:
    path = event.target.decode("ascii", "replace").partition("?")[0]
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    return Request(event.method.decode("ascii"), path, headers)


def _turn_away(link: socket.socket, places: int) -> None:
    body = json.dumps({"error": f"all {places} connections are taken; keep fewer open, or try again"}).encode()
    head = (
        f"HTTP/1.1 503 \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError), link:
        link.settimeout(0.1)
        link.sendall(head.encode() + body)
