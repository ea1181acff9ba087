"""Packets of MQTT 3.1.1 as bytes: read whole from a connection, and taken apart as far as the door needs it.

Nothing here trusts a client: what is malformed is None, what is too long is not read.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Literal, NamedTuple

from amqtt.adapters import ReaderAdapter

from edgewright_contracts.topics import RULES

PACKET_BYTES: Final = max(rule.limit for rule in RULES.values()) + 1024
PUBLISH: Final = 0x30  # the upper half of the first byte
_TOO_LARGE: Final = f"expected packets of at most {PACKET_BYTES} bytes, got a larger one"
_QOS_2: Final = "expected messages of QoS 0 or 1, got one of QoS 2"


async def read_packet(reader: asyncio.StreamReader, limit: int) -> bytes | None:
    """One packet with its header; None if it is longer than `limit` or its length is malformed."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80:
        if len(head) == 5:
            return None
        head += await reader.readexactly(1)
    size = sum((b & 0x7F) << 7 * i for i, b in enumerate(head[1:]))
    if size > limit:
        return None
    return head + await reader.readexactly(size)


class Packets(ReaderAdapter):  # type: ignore[misc]  # amqtt is not typed
    """Whole packets, bounded in size and in the silence before them; too much of either ends the connection, and so
    does a PUBLISH of QoS 2, which amqtt would keep in memory until it is released. Amqtt hears of those only that
    nobody `took` before."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        first: bytes,
        idle_s: float,
        took: Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]],
        refused: Callable[[Literal["size", "malformed"], str], None],
    ) -> None:
        self._took = took
        self._refused = refused
        self._reader = reader
        self._writer = writer
        self._packet = first
        self._at = 0
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._heard_s = self._loop.time()
        self._watch = self._loop.call_later(idle_s, self._look)

    async def read(self, n: int = -1) -> bytes:
        if n != 0 and self._at == len(self._packet):
            packet = await self._next()
            while await self._took(packet, self._writer):
                packet = await self._next()
            self._packet, self._at = packet, 0
        end = len(self._packet) if n < 0 else self._at + n
        data = self._packet[self._at : end]
        self._at = min(end, len(self._packet))
        return data

    async def _next(self) -> bytes:
        try:
            packet = await read_packet(self._reader, PACKET_BYTES)
            if packet is None:
                self._refused("size", _TOO_LARGE)
            elif packet[0] & 0xF4 == PUBLISH | 4:
                self._refused("malformed", _QOS_2)
                packet = None
        except (asyncio.IncompleteReadError, OSError):
            packet = None
        if packet is None:
            self._writer.transport.abort()
            raise ConnectionResetError
        self._heard_s = self._loop.time()
        return packet

    def _look(self) -> None:
        """A timer that looks when it must, instead of one for each packet."""
        rest_s = self._heard_s + self._idle_s - self._loop.time()
        if rest_s > 0:
            self._watch = self._loop.call_later(rest_s, self._look)
        else:
            self._writer.transport.abort()

    def close(self) -> None:
        self._watch.cancel()

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class Connect(NamedTuple):
    client: str
    username: str | None
    will_topic: str | None
    keep_alive_s: int
    cleaned: bytes  # the packet, asking for a clean session and no keep-alive (which `Packets` watches)


def read_connect(packet: bytes) -> Connect | None:
    """The CONNECT packet of an MQTT 3.1.1 client; None of anything else."""
    body_at = _body_at(packet)
    if packet[:1] != b"\x10" or packet[body_at : body_at + 7] != b"\x00\x04MQTT\x04":
        return None
    try:
        flags, keep_alive_s = struct.unpack_from("!BH", packet, body_at + 7)
        at = body_at + 10
        fields: list[bytes | None] = []
        for present in (1, flags & 4, flags & 4, flags & 0x80):  # client id, will topic, will, user name
            if not present:
                fields.append(None)
                continue
            (size,) = struct.unpack_from("!H", packet, at)
            if at + 2 + size > len(packet):
                return None
            fields.append(packet[at + 2 : at + 2 + size])
            at += 2 + size
        client, topic, _, username = fields
        named = [None if f is None else f.decode() for f in (client, username, topic)]
    except (struct.error, UnicodeDecodeError):
        return None
    cleaned = packet[: body_at + 7] + struct.pack("!BH", flags | 2, 0) + packet[body_at + 10 :]
    return Connect(named[0] or "", named[1], named[2], keep_alive_s, cleaned)


class Publish(NamedTuple):
    """A PUBLISH of QoS 0 or 1."""

    topic: str
    qos: int
    retain: bool
    packet: bytes
    topic_at: int  # of its length
    body_at: int  # of the payload, behind the packet id if there is one

    @property
    def body(self) -> bytes:
        return self.packet[self.body_at :]

    def acknowledgement(self) -> bytes:
        """PUBACK; nothing for QoS 0."""
        return b"\x40\x02" + self.packet[self.body_at - 2 : self.body_at] if self.qos else b""

    def unnumbered(self) -> bytes:
        """The same message at QoS 0, which is sent for the first time and not a retained one."""
        topic_end = self.body_at - 2 * self.qos
        rest = self.packet[self.topic_at : topic_end] + self.packet[self.body_at :]
        return bytes([PUBLISH]) + _length(len(rest)) + rest


def read_publish(packet: bytes) -> Publish | None:
    """None of QoS 2 (which `Packets` refuses), and of what is malformed."""
    flags, at = packet[0], _body_at(packet)
    qos = flags >> 1 & 3
    if flags & 0xF0 != PUBLISH or qos > 1 or len(packet) < at + 2:
        return None
    topic_end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    body_at = topic_end + 2 * qos
    if len(packet) < body_at or (qos and packet[topic_end:body_at] == b"\0\0"):
        return None
    try:
        topic = packet[at + 2 : topic_end].decode()
    except UnicodeDecodeError:
        return None
    return Publish(topic, qos, bool(flags & 1), packet, at, body_at)


def _length(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _body_at(packet: bytes) -> int:
    """Where the header ends; 0 of a packet whose length is malformed."""
    return next((i + 1 for i in range(1, min(5, len(packet))) if not packet[i] & 0x80), 0)
