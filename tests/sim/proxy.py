"""A real TCP proxy on loopback that is slow and resets connections: a bad radio link in front of a server.

    with Proxy(("127.0.0.1", port), bytes_per_s=25_000, resets=iter_of_bytes) as proxy: proxy.port; proxy.down

What it has sent towards the client when a connection is reset is counted in `down`, whether it was read or not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

PIECE_S = 0.02


class Proxy:
    def __init__(self, target: tuple[str, int], *, bytes_per_s: float, resets: Iterator[int]) -> None:
        self._target, self._piece, self._resets = target, max(1, int(bytes_per_s * PIECE_S)), resets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._due_s = 0.0
        self._lock = threading.Lock()
        self.down = 0  # bytes towards the client
        self.cuts = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, run, *given) -> None:
        self._threads.append(threading.Thread(target=run, args=given, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.create_connection(self._target)
            self._open |= {client, server}
            self._start(self._up, client, server)
            self._start(self._down, client, server, next(self._resets))

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(4096):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(min(self._piece, left)):
                self._wait()
                client.sendall(data)
                self.down += len(data)
                left -= len(data)
                if left == 0:
                    self.cuts += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close: a reset
                    break
        for one in (client, server):
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes the thread of the other direction
            one.close()

    def _wait(self) -> None:
        """One piece each 20 ms, of all connections together."""
        with self._lock:
            now = time.monotonic()
            self._due_s = max(self._due_s, now) + PIECE_S
            due = self._due_s
        time.sleep(max(0.0, due - time.monotonic()))
