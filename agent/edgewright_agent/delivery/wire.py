"""One connection of MQTT as it is on the wire: through a proxy or not, every byte counted, silence watched.

`traffic` counts the bytes of MQTT packets exactly, headers and pings included. `wire` is all that the device's link
carried for them: the kernel's own count of TCP (TLS, WebSocket frames and retransmissions are in it) plus `HEADER`
bytes for each segment; where the kernel tells none, 22 bytes of a TLS record and one header per write and read.

Below paho's public interface lie some methods of `paho.Client` that this class replaces or calls (`_sock_send`,
`_sock_recv`, `_sock_close`, `_create_socket_connection`, `_ssl_wrap_socket`, `_check_keepalive`, `_send_pingreq`,
`_reset_sockets`): paho has no other way to count packets,
to use a proxy without a library of its own, or to ping at an interval that changes. tests/agent/test_mqtt.py and
test_websocket.py fail if a release of paho moves them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from .. import tcp
from . import keepalive, tunnel
from .keepalive import KeepAlive
from .routes import Route

CONNECT_S: Final = 20.0  # for TCP, and again for TLS: links of 10 kbit/s need some of it
HEADER: Final = 52  # of a segment: IPv4 20, TCP 20, its timestamps 12 (RFC 7323)
RECORD: Final = 22  # of TLS 1.3: header 5, type 1, tag 16

# struct tcp_info of linux/tcp.h: bytes_acked, bytes_received, segs_out, segs_in at 120 (Linux 4.2); bytes_sent, with
# retransmissions, at 200 (Linux 4.19).
_TCP_INFO: Final = struct.Struct("=120xQQII56xQ")
_ANY_LENGTH: Final = 256


class Bytes(NamedTuple):
    sent: int
    received: int

    def plus(self, other: Bytes) -> Bytes:
        return Bytes(self.sent + other.sent, self.received + other.received)


class Wire(paho.Client):
    """`pace` is what is known of silences; it changes with the link's answers. `tell` is the keep-alive of CONNECT:
    the broker takes the device for dead after 1.5 of it, so it is never shorter than the pace."""

    def __init__(
        self,
        device: str,
        route: Route,
        tls: ssl.SSLContext,
        *,
        proxy: tunnel.Proxy | None,
        pace: KeepAlive,
        learning: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=device,
            protocol=paho.MQTTv311,
            clean_session=True,
            reconnect_on_failure=False,
            transport=route.kind,
        )
        self.suppress_exceptions = True  # a bug in a callback is logged; it does not end the thread
        self.connect_timeout = CONNECT_S
        self.tls_set_context(tls)
        if route.kind == "websockets":
            self.ws_set_options(route.path, {"Sec-WebSocket-Protocol": "mqtt"})
        self.pace = pace
        self.route = route
        self._proxy_to, self._learning, self._monotonic = proxy, learning, monotonic
        self._tls_socket: ssl.SSLSocket | None = None
        self._tcp_at_the_end: Bytes | None = None
        self._sent = self._received = self._calls_out = self._calls_in = 0
        self._spoke_s = self._heard_s = monotonic()
        self._asked_s: float | None = None  # since when an answer is waited for
        self._silence_s = 0.0  # before the question
        self._pinged = self._given_up = False
        self._acked = 0

    def open(self, tell_s: float) -> None:
        """Connect. Raises OSError."""
        self.connect(self.route.host, self.route.port, int(tell_s))

    def close(self) -> None:
        """The end: its thread is over, and its sockets are closed, the pair among them by which paho wakes itself."""
        self.loop_stop()
        self._reset_sockets()

    @property
    def traffic(self) -> Bytes:
        return Bytes(self._sent, self._received)

    @property
    def wire(self) -> Bytes:
        if self._tcp_at_the_end is not None:
            return self._tcp_at_the_end
        found = self._tcp()
        if found is not None:
            acked, received, segments_out, segments_in, sent = found
            return Bytes(max(sent, acked) + HEADER * segments_out, received + HEADER * segments_in)
        each = HEADER + RECORD
        return Bytes(self._sent + each * self._calls_out, self._received + each * self._calls_in)

    def watch(self) -> None:
        """Ask when the link was silent for the interval; end the connection when nothing answers."""
        now = self._monotonic()
        if self._given_up:
            return
        if self._asked_s is None:
            pace = self.pace if self._learning() else KeepAlive()
            if now - self._spoke_s >= pace.interval_s:
                self._ping()
            return
        if now - self._asked_s < keepalive.ANSWER_S:
            return
        found = self._tcp()
        if found is not None and found[0] > self._acked:  # slow, but its other end takes what we send
            self._acked, self._asked_s = found[0], now
        elif not self._pinged:  # what was sent last may ask for no answer
            self._asked_s = now
            self._ping()
        else:
            if self._learning():
                self.pace = keepalive.unanswered(self.pace, self._silence_s)
            self._given_up = True
            if self._tls_socket is not None:
                with contextlib.suppress(OSError):
                    self._tls_socket.shutdown(socket.SHUT_RDWR)  # paho reads the end, and says so

    def _ping(self) -> None:
        self._pinged = True
        with contextlib.suppress(OSError, ValueError):
            self._send_pingreq()

    # Below: what paho calls.

    def _check_keepalive(self) -> None:
        if self.is_connected():
            self.watch()

    def _create_socket_connection(self) -> socket.socket:
        if self._proxy_to is None:
            return tcp.connect(self.route.host, self.route.port, CONNECT_S)
        return tunnel.connect(self._proxy_to, self.route.host, self.route.port, CONNECT_S)

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        try:
            self._tls_socket = super()._ssl_wrap_socket(tcp_sock)
        except BaseException:
            tcp_sock.close()
            raise
        return self._tls_socket

    def _sock_send(self, buf: Any) -> int:
        now = self._monotonic()
        if self._asked_s is None:
            self._silence_s = now - max(self._spoke_s, self._heard_s)
            found = self._tcp()
            self._acked = found[0] if found else 0
        sent = super()._sock_send(buf)
        if sent:
            self._spoke_s = self._asked_s = now
            self._sent += sent
            self._calls_out += 1
        return sent

    def _sock_recv(self, bufsize: int) -> bytes:
        data = super()._sock_recv(bufsize)
        if data:
            self._heard_s = self._monotonic()
            self._received += len(data)
            self._calls_in += bufsize > 1 or self._asked_s is not None  # paho reads a header byte by byte
            if self._asked_s is not None:
                self._asked_s, self._pinged = None, False
                if self._learning():
                    self.pace = keepalive.answered(self.pace, self._silence_s)
        return data

    def _sock_close(self) -> None:
        if self._tcp_at_the_end is None and self._tls_socket is not None:
            self._tcp_at_the_end = self.wire
        super()._sock_close()

    def _tcp(self) -> tuple[int, int, int, int, int] | None:
        """(bytes acknowledged, received, segments out, in, bytes sent); None where the kernel does not tell."""
        if self._tls_socket is None:
            return None
        try:
            raw = self._tls_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ANY_LENGTH)
            acked, received, out, into, sent = _TCP_INFO.unpack_from(raw)
        except (OSError, struct.error, AttributeError):
            return None
        return (acked, received, out, into, sent) if out else None
