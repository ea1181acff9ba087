"""Between a device and its broker: counts MQTT packets by kind, TLS bytes, and TCP segments, one device at a time.

It ends the device's TLS with the hub's own server certificate and speaks to the broker with the device's, so that what
passes can be read: packets are counted in the clear, TLS bytes as they stand on the device's socket (handshake and
tickets among them), segments by the kernel (TCP_INFO). `Link.passed` is appended to by the proxy's thread only.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

KINDS: Final = {
    1: "connect", 2: "connack", 3: "publish", 4: "puback", 8: "subscribe", 9: "suback", 12: "pingreq",
    13: "pingresp", 14: "disconnect",
}  # fmt: skip
RECORD: Final = 22  # what TLS 1.3 adds to a message
HEADERS: Final = 20 + 32  # of a segment: IPv4, and TCP with time stamps


class Packet(NamedTuple):
    kind: str  # a publish's is the last level of its topic
    up: bool
    size: int
    payload: bytes


@dataclass
class Link:
    """What passed over one connection."""

    passed: list[Packet] = field(default_factory=list)
    tls: int = 0
    handshake: int = 0  # of `tls`, until the first packet
    segments: int = 0
    keepalive_s: int = 0


class Splitter:
    """Cuts a stream into MQTT packets."""

    def __init__(self, link: Link, *, up: bool) -> None:
        self._link, self._up, self._rest = link, up, b""

    def feed(self, data: bytes) -> None:
        self._rest += data
        while True:
            size, at = 0, 1
            while True:
                if at >= len(self._rest):
                    return
                size |= (self._rest[at] & 0x7F) << 7 * (at - 1)
                at += 1
                if not self._rest[at - 1] & 0x80:
                    break
            if len(self._rest) < at + size:
                return
            self._count(self._rest[0], self._rest[at : at + size], at + size)
            self._rest = self._rest[at + size :]

    def _count(self, first: int, body: bytes, size: int) -> None:
        kind, payload = KINDS.get(first >> 4, str(first >> 4)), b""
        if kind == "connect":
            self._link.handshake = self._link.tls - size - RECORD
            name = struct.unpack_from("!H", body)[0]
            self._link.keepalive_s = struct.unpack_from("!H", body, 2 + name + 2)[0]
        if kind == "publish":
            length = struct.unpack_from("!H", body)[0]
            kind = body[2 : 2 + length].decode().rpartition("/")[2]
            payload = body[2 + length + (2 if first & 6 else 0) :]
        self._link.passed.append(Packet(kind, self._up, size, payload))


class CountingProxy:
    """Listens on `port` of loopback until `close`; `links` in the order of connections."""

    def __init__(self, broker: tuple[str, int], server: tuple[Path, Path], identity: Path) -> None:
        """`server` is the hub's certificate and key, `identity` the folder with the device's."""
        self._broker = broker
        self._toward_device = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._toward_device.load_cert_chain(*server)
        self._toward_device.load_verify_locations(identity / "ca.pem")
        self._toward_device.verify_mode = ssl.CERT_REQUIRED
        self._toward_broker = ssl.create_default_context(cafile=str(identity / "ca.pem"))
        self._toward_broker.load_cert_chain(identity / "device.crt", identity / "device.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.links: list[Link] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="counting-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._listener.close()
        self._thread.join(5)

    def _run(self) -> None:
        self._listener.settimeout(0.2)
        while not self._closing:
            try:
                device, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            link = Link()
            self.links.append(link)
            try:
                self._relay(device, link)
            except OSError:
                pass  # one side hung up; a device comes again
            finally:
                device.close()

    def _relay(self, device: socket.socket, link: Link) -> None:
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._toward_device.wrap_bio(came, goes, server_side=True)
        up, down = Splitter(link, up=True), Splitter(link, up=False)
        shaken = False
        with (
            socket.create_connection(self._broker) as raw,
            self._toward_broker.wrap_socket(raw, server_hostname=self._broker[0]) as broker,
        ):
            while not self._closing:
                ready = [broker] if broker.pending() else select.select([device, broker], [], [], 0.2)[0]
                if device in ready:
                    data = device.recv(65536)
                    if not data:
                        return
                    link.tls += len(data)
                    came.write(data)
                    if not shaken:
                        shaken = _done(tls.do_handshake)
                    while shaken and (text := _read(tls)) is not None:
                        if not text:
                            return
                        up.feed(text)
                        broker.sendall(text)
                if broker in ready:
                    broker.setblocking(False)  # what is readable may be a ticket, and no text
                    text = _read(broker)
                    broker.settimeout(5)
                    if text == b"":
                        return
                    if text:
                        down.feed(text)
                        tls.write(text)
                if goes.pending:
                    data = goes.read()
                    link.tls += len(data)
                    device.sendall(data)
                info = device.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
                link.segments = sum(struct.unpack_from("II", info, 136))


def _done(act: object) -> bool:
    try:
        act()  # type: ignore[operator]
    except ssl.SSLWantReadError:
        return False
    return True


def _read(tls: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    try:
        return tls.read(65536)
    except ssl.SSLWantReadError:
        return None
