"""The embedded broker: amqtt behind a door of our own that knows who is calling before amqtt hears a word.

amqtt 0.12 looks up, takes over or deletes the session of a client id before it asks whether the caller may have that
id, publishes wills without asking the ACL, sends every retained message that anyone subscribed to, to everyone who
connects, and never closes a connection that fell silent. So the door reads the first packet itself and lets through
only MQTT 3.1.1 with a certificate of this hub's authority, whose common name is the client id (and the user name, if
one is sent), a key that is in force for this device, and a will within the device's own topics. Every session is a
clean one: what must not be lost is acknowledged end to end, and what must be known is retained, so a session that
outlives its connection gains nothing. A second connection of one client ends the first.

What devices publish goes to the hub without amqtt (`carrier`). Packets above `PACKET_BYTES` and silence of more than
1.5 keep-alives close the connection. A device's message costs about 200 µs, most of it TLS; the hub's, about 1 ms.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from amqtt.adapters import StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, ListenerConfig, ListenerType
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from cryptography import x509

from edgewright_contracts.topics import ROOT, allowed

from ..fleet.ca import HUB_NAME, key_sha256
from .carrier import Carrier
from .packets import Connect, Packets, read_connect, read_packet

CONNECT_BYTES: Final = 4096
CONNECT_S: Final = 10.0  # for the TLS handshake, and again for the first packet
DEFAULT_IDLE_S: Final = 3600.0  # of a client that asks for no keep-alive
_LISTENER: Final = "default"
_REFUSED: Final = b"\x20\x02\x00\x05"  # CONNACK, not authorised
_LOG = logging.getLogger(__name__)

Refused = Callable[[str, Literal["foreign", "size", "malformed"], str], None]  # device, reason, what was said


def may(client: str, topic: str, *, publish: bool) -> bool:
    if client == HUB_NAME:
        return topic.startswith(f"{ROOT}/")
    return allowed(client, topic, publish=publish)


class Identity(BaseAuthPlugin):  # type: ignore[misc]  # amqtt is not typed
    """Second look at what the door let through: the certificate's name is the client id."""

    async def authenticate(self, *, session: Session) -> bool:
        name = common_name(session.ssl_object)
        if name is None or name != session.client_id:
            return False
        session.username = name
        return True

    @dataclass
    class Config:
        pass


class Acl(BaseTopicPlugin):  # type: ignore[misc]  # amqtt is not typed
    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        if session is None or not session.username or not topic:
            return False
        publish = action == Action.PUBLISH
        if may(session.username, topic, publish=publish):
            return True
        if publish:
            self.context._broker_instance.refused(session.username, "foreign", f"it may not publish on {topic[:120]!r}")
        return False

    @dataclass
    class Config:
        pass


class _Subscriptions(dict[str, list[tuple[Session, int]]]):
    """amqtt waits while it walks over them, and clients come and go meanwhile: a walk sees them as they were when it
    began. Without this, a message that is being delivered while a device subscribes is lost to everybody."""

    def items(self) -> Any:
        return [(name, list(those)) for name, those in super().items()]

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))


class _Broker(Broker):  # type: ignore[misc]  # amqtt is not typed
    _sending: set[asyncio.Task[object]]
    refused: Refused

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Only of what this session subscribed to; and without waiting, since amqtt calls this while it walks over
        all subscriptions, which others may change meanwhile."""
        wanted, qos = subscription
        handler = self._get_handler(session)
        if handler is None or all(s is not session for s, _ in self._subscriptions.get(wanted, ())):
            return
        for topic, retained in list(self._retained_messages.items()):
            if self._matches(topic, wanted) and may(str(session.username), topic, publish=False):
                level = min(qos, retained.qos or 0)
                task = asyncio.ensure_future(handler.mqtt_publish(topic, retained.data, level, retain=True))
                self._sending.add(task)
                task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[object]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.info("a retained message was not delivered: %r", task.exception())


class EmbeddedBroker:
    """`await start()`, `await stop()`. Takes over a socket that listens already.

    `outdated(name, key_sha256)` says why a certificate of this hub's authority is not in force any more, or None. It is
    asked once per connection, in a thread. `refused` hears of what a client sent and may not, in the loop's thread.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        outdated: Callable[[str, str], str | None],
        refused: Refused,
    ) -> None:
        self._listener = listener
        self._outdated = outdated
        self._refused = refused
        self._context = context
        self._server: asyncio.Server | None = None
        self._writers: dict[str, asyncio.StreamWriter] = {}  # by client
        self._broker: _Broker | None = None
        self._carrier: Carrier | None = None

    async def start(self) -> None:
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # amqtt reports every client that leaves as a failure
        listener = ListenerConfig(type=ListenerType.EXTERNAL, bind="")
        plugins: dict[str, object] = {f"{__name__}.Identity": {}, f"{__name__}.Acl": {}}
        self._broker = _Broker({"listeners": {_LISTENER: listener.__dict__}, "plugins": plugins})
        self._broker._sending = set()
        self._broker._subscriptions = _Subscriptions()
        self._broker.refused = self._refused
        await self._broker.start()
        self._carrier = Carrier(self._broker, self._writers)
        self._server = await asyncio.start_server(
            self.connected, sock=self._listener, ssl=self._context, ssl_handshake_timeout=CONNECT_S
        )

    @property
    def serving(self) -> bool:
        return self._server is not None and self._server.is_serving()

    async def stop(self) -> None:
        if self._server is None or self._broker is None or self._carrier is None:
            return
        self._server.close()
        self._carrier.close()
        for writer in list(self._writers.values()):
            writer.transport.abort()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._broker.shutdown(), 2.0)
        self._server = self._broker = self._carrier = None

    def expel(self, names: Collection[str]) -> None:
        """End the connections of these clients; what they try next is `connected`'s to judge."""
        for name in names:
            if name in self._writers:
                self._writers[name].transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends: of our own port, or of `websocket`."""
        peer: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        name = common_name(peer) or ""
        packets: Packets | None = None
        try:
            why_not = await asyncio.to_thread(self._outdated, name, public_key_sha256(peer))
            packets = await self._admit(name, why_not, reader, writer)
            if packets is not None and self._broker is not None:
                if name in self._writers:
                    self._writers[name].transport.abort()
                self._writers[name] = writer
                await self._broker.external_connected(packets, StreamWriterAdapter(writer), _LISTENER)
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # left, or never said who it is
        except Exception:
            _LOG.exception("a connection failed")
        finally:
            if packets is not None:
                packets.close()
            if self._writers.get(name) is writer:
                del self._writers[name]
            writer.close()

    async def _admit(
        self, name: str, outdated: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Packets | None:
        async with asyncio.timeout(CONNECT_S):
            packet = await read_packet(reader, CONNECT_BYTES)
        connect = read_connect(packet) if packet else None
        refusal = outdated or _refusal(connect, name)
        if name and connect is not None and refusal and not outdated:
            self._refused(name, "foreign", refusal)
        if connect is None or refusal or self._carrier is None:
            _LOG.warning("refused a connection of %s: %s", name, refusal)
            writer.write(_REFUSED)
            await writer.drain()
            return None
        return Packets(
            reader,
            writer,
            first=connect.cleaned,
            # The hub is in this process: silent means that it waits for its database, not that it left.
            idle_s=DEFAULT_IDLE_S if name == HUB_NAME else connect.keep_alive_s * 1.5 or DEFAULT_IDLE_S,
            took=partial(self._carrier.took, name),
            refused=partial(self._refused, name),
        )


def _refusal(connect: Connect | None, name: str) -> str | None:
    if connect is None:
        return "expected an MQTT 3.1.1 CONNECT of at most 4 KiB"
    if connect.client != name or connect.username not in {None, name}:
        return f"expected its certificate's name as client id, got {connect.client[:80]!r}"
    if connect.will_topic is not None and not may(name, connect.will_topic, publish=True):
        return f"expected a will within its own topics, got {connect.will_topic[:120]!r}"
    return None


def common_name(peer: ssl.SSLObject | None) -> str | None:
    """Of the client's certificate, which the TLS layer has verified."""
    certificate = peer.getpeercert() if peer is not None else None
    if not certificate:
        return None
    subject: Any = certificate["subject"]
    names = [value for part in subject for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 else None


def public_key_sha256(peer: ssl.SSLObject | None) -> str:
    """Of the client's public key, as `ca.Signed` has it."""
    certificate = peer.getpeercert(binary_form=True) if peer is not None else None
    return key_sha256(x509.load_der_x509_certificate(certificate).public_key()) if certificate else ""
