"""What devices publish is carried to the hub's own session past amqtt, many messages in one write.

Amqtt makes five tasks of every message, two of its acknowledgement, and the hub is the only one that may hear what
devices say. So a publish that its sender may make goes straight from the door to the hub's connection, at most
`GATHER_S` later, in the order in which it came, and the sender gets its PUBACK. All else is amqtt's: what the hub says,
QoS 2, wills, and what is refused. No client can tell the difference.

As with amqtt, a message that the hub cannot take is gone: it has no session, or is `BEHIND_BYTES` behind. Devices keep
everything until the hub has acknowledged it end to end, so its session need not acknowledge it to the broker, too: it
gets all at QoS 0. Cost: about 20 µs for each message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from edgewright_contracts.topics import ALL_UP, allowed

from ..fleet.ca import HUB_NAME
from .packets import read_publish

GATHER_S: Final = 0.05
GATHER_BYTES: Final = 64 * 1024
BEHIND_BYTES: Final = 16 * 1024 * 1024
_LOG = logging.getLogger(__name__)


class Carrier:
    """For amqtt's broker, and the connections of its clients by name. Only in the thread of their loop."""

    def __init__(self, broker: Any, writers: Mapping[str, asyncio.StreamWriter]) -> None:
        self._broker, self._writers = broker, writers
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._flushed_s = 0.0
        self._due: asyncio.TimerHandle | None = None
        self._losing = False

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()

    async def took(self, client: str, packet: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether this packet of a client needs nothing of amqtt any more."""
        publish = read_publish(packet)
        if publish is None or not allowed(client, publish.topic, publish=True):
            return False
        self._gather(publish.unnumbered())
        if publish.retain:
            await self._broker.retain_message(None, publish.topic, publish.body, publish.qos)
        writer.write(publish.acknowledgement())
        await writer.drain()  # who does not read is not read
        return True

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
        losing = hub is None or hub.transport.get_write_buffer_size() > BEHIND_BYTES
        if losing and not self._losing:
            _LOG.warning("the hub does not take what devices send: they will send it again")
        self._losing = losing
        if hub is not None and not losing:
            hub.write(packets)

    def _hub(self) -> asyncio.StreamWriter | None:
        """The hub's connection, once it listens."""
        session, _ = self._broker.sessions.get(HUB_NAME, (None, None))
        listens = any(one is session for one, _ in self._broker.subscriptions.get(ALL_UP, ()))
        return self._writers.get(HUB_NAME) if listens else None
