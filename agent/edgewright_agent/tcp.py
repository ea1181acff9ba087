"""TCP: connecting by name, and the wire: what the kernel says went over a connection, headers and TLS included, and
retransmissions not."""

from __future__ import annotations

import socket
import sys
import weakref
from typing import NamedTuple

# struct tcp_info: 8 bytes, 24 numbers of 4, two of 8, then tcpi_bytes_acked and tcpi_bytes_received (Linux 4.2)
_SENT, _RECEIVED, _SIZE = 120, 128, 136


def plain(host: str) -> bytes:
    """A name as resolver and TLS take it. Given as text, Python loads its tables of international names: 0.4 MB."""
    return host.encode("ascii" if host.isascii() else "idna")


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Raises OSError."""
    return socket.create_connection((plain(host), port), timeout_s)  # type: ignore[arg-type]  # the resolver takes it


class Bytes(NamedTuple):
    sent: int
    received: int


class Wire:
    """Remembers what each connection was last asked for, as long as somebody holds it."""

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[socket.socket, Bytes] = weakref.WeakKeyDictionary()

    def since_last(self, connection: socket.socket | None) -> Bytes | None:
        """What came and went over `connection` since the last call; None where nobody counts."""
        now = _totals(connection) if connection is not None else None
        if connection is None or now is None:
            return None
        then = self._last.get(connection, Bytes(0, 0))
        self._last[connection] = now
        return Bytes(now.sent - then.sent, now.received - then.received)


def _totals(connection: socket.socket) -> Bytes | None:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except (OSError, AttributeError):  # closed, or not Linux
        return None
    if len(info) < _SIZE:
        return None
    return Bytes(*(int.from_bytes(info[at : at + 8], sys.byteorder) for at in (_SENT, _RECEIVED)))
