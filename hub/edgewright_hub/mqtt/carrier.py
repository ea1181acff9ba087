"""What devices publish is carried to the hub's own session past amqtt, many messages in one write.

Amqtt makes five tasks of every message, two of its acknowledgement, and the hub is the only one that may hear what
devices say. So a publish that its sender may make goes straight from the door to the hub's connection, at most
`GATHER_S` later, in the order in which it came, and the sender gets its PUBACK. All else is amqtt's: what the hub says,
wills, and what is refused. No client can tell the difference.

No message is acknowledged and then dropped. While the hub is `BEHIND_BYTES` behind, senders wait for their PUBACK and
are not read: each waits in its own TCP, so one that sends too much takes nothing from the others. While no hub listens,
and when its connection changed, the connections of those who sent something to it end: a device that comes again
offers all that the hub has not acknowledged end to end. So the hub's session need not acknowledge it to the broker,
too: it gets all at QoS 0. Cost: about 20 µs for each message, at most twice `BEHIND_BYTES`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from edgewright_contracts.topics import ALL_UP, allowed

from ..fleet.ca import HUB_NAME
from .packets import read_publish

GATHER_S: Final = 0.05
GATHER_BYTES: Final = 64 * 1024
BEHIND_BYTES: Final = 4 * 1024 * 1024
LOOK_S: Final = 5.0  # how soon one that waits, and has gone, is noticed
WARN_S: Final = 60.0  # between two warnings of one kind
_LOG = logging.getLogger(__name__)


class Carrier:
    """For amqtt's broker, and the connections of its clients by name. Only in the thread of their loop."""

    def __init__(self, broker: Any, writers: Mapping[str, asyncio.StreamWriter]) -> None:
        self._broker, self._writers = broker, writers
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._flushed_s = 0.0
        self._due: asyncio.TimerHandle | None = None
        self._to: asyncio.StreamWriter | None = None  # the hub's connection that was seen last
        self._senders: WeakSet[asyncio.StreamWriter] = WeakSet()  # to that one
        self._warned_s: dict[str, float] = {}

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()

    async def took(self, client: str, packet: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether this packet of a client needs nothing of amqtt any more. Raises ConnectionResetError for a client
        that is sent away, and not acknowledged."""
        publish = read_publish(packet)
        if publish is None or not allowed(client, publish.topic, publish=True):
            return False
        hub = self._hub()
        if hub is not None and _behind(hub):
            hub = await self._caught_up(writer)
        if hub is None and publish.qos and not publish.retain:
            self._warn("no hub listens: devices that send something are sent away, and will send it again")
            writer.transport.abort()
        if writer.is_closing():
            raise ConnectionResetError
        if hub is not None:
            self._senders.add(writer)
            self._gather(publish.unnumbered())
        if publish.retain:
            await self._broker.retain_message(None, publish.topic, publish.body, publish.qos)
        writer.write(publish.acknowledgement())
        await writer.drain()  # who does not read is not read
        return True

    async def _caught_up(self, sender: asyncio.StreamWriter) -> asyncio.StreamWriter | None:
        """The hub's connection, once it has read what waits for it or the sender has gone."""
        self._warn("the hub does not keep up with what devices send: they wait")
        while (hub := self._hub()) is not None and _behind(hub) and not sender.is_closing():
            with suppress(TimeoutError, OSError):  # OSError: the hub's connection ended
                async with asyncio.timeout(LOOK_S):
                    await hub.drain()
        return hub

    def _gather(self, packet: bytes) -> None:
        self._gathered.append(packet)
        self._bytes += len(packet)
        if self._bytes >= GATHER_BYTES:
            self._flush()
        elif self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(max(loop.time(), self._flushed_s + GATHER_S), self._flush)

    def _flush(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._flushed_s = asyncio.get_running_loop().time()
        hub, packets = self._hub(), b"".join(self._gathered)
        self._gathered, self._bytes = [], 0
        if hub is not None:
            hub.write(packets)

    def _hub(self) -> asyncio.StreamWriter | None:
        """The hub's connection, once it listens. What was under way in one before may be lost: its senders are sent
        away."""
        session, _ = self._broker.sessions.get(HUB_NAME, (None, None))
        listens = any(one is session for one, _ in self._broker.subscriptions.get(ALL_UP, ()))
        hub = self._writers.get(HUB_NAME) if listens else None
        if hub is not None and hub.is_closing():
            hub = None
        if hub is not self._to:
            for sender in self._senders:
                sender.transport.abort()
            self._senders.clear()
            self._to = hub
        return hub

    def _warn(self, said: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._warned_s.get(said, -WARN_S) >= WARN_S:
            self._warned_s[said] = now_s
            _LOG.warning("%s", said)


def _behind(hub: asyncio.StreamWriter) -> bool:
    return hub.transport.get_write_buffer_size() > BEHIND_BYTES
