"""The link to the hub. With `wire` the only module that knows paho.

Guarantee: every connection subscribes, says `status` online, and only then reports itself; its will carries the boot
and the connection's number, so that a late will of an older connection can be told. Nothing is kept for a broker that
is away: what must arrive waits in the spool and is offered again. Reconnects back off from 1 s to 60 s, jittered, also
after connections that lasted less than `BRIEF_S`: two devices with one identity end each other's at every try. The way
(TCP, WebSocket) is `routes`' choice; each connection reads the certificate anew, which a renewal may have replaced.

Nothing here depends on MQTT 5 or on a broker's session: delivery is the hub's `ack`, not the broker's PUBACK.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import paho.mqtt.client as paho

from edgewright_contracts import birth, topics
from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.topics import RULES, Kind

from .. import tls
from ..clock import Clock, SystemClock
from ..identity import Identity
from . import keepalive, tunnel
from .keepalive import KeepAlive
from .routes import Route, choose, routes
from .wire import Bytes, Wire

BACKOFF_S: Final = (1.0, 60.0)
BRIEF_S: Final = 20.0  # a connection that ended within it does not count as one that was made
TAKEN_OVER: Final = 5  # brief ones in a row: not the link
LOOK_S: Final = 5.0  # how soon another profile is seen
STOP_S: Final = 10.0  # a connection attempt under way may take as long

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Called on the link's own thread; must return soon."""

    def connected(self, connection: int) -> None: ...
    def disconnected(self, reason: str) -> None: ...
    def received(self, kind: Kind, payload: bytes) -> None: ...


class Transport(Protocol):
    """One device's link. `connection` counts from 1."""

    @property
    def online(self) -> bool: ...

    def start(self, listener: Listener) -> None: ...
    def publish(self, kind: Kind, payload: bytes) -> bool:
        """Hand one message to the link; False when there is none, and then nothing was kept."""

    def traffic(self) -> tuple[int, int]:
        """(bytes sent, bytes received) of whole MQTT packets since the start, over all connections."""

    def overhead(self) -> tuple[int, int]:
        """(bytes sent, bytes received) that the link carried on top: WebSocket, TLS, TCP and IP."""

    def condition(self) -> Condition: ...
    def stop(self) -> None:
        """Say `status` offline and disconnect."""


class Condition(msgspec.Struct, frozen=True):
    """How the link is, for whoever looks at the device."""

    online: bool
    way: str = ""  # of the connection, or of the last try
    since_s: float = 0.0  # how long it has been so
    connections: int = 0
    keepalive_s: float = keepalive.FIXED_S
    trouble: str = ""  # why the last connection ended or was not made


class MqttTransport:
    """MQTT 3.1.1 over TLS with the device's certificate. While `metered` says so, pings find the longest silence that
    the link bears. Raises Unavailable when the identity cannot be used."""

    def __init__(
        self,
        identity: Identity,
        boot_id: str,
        uniform: Callable[[], float] = random.random,
        *,
        clock: Clock | None = None,
        metered: Callable[[], bool] = lambda: False,
    ) -> None:
        self._identity, self._boot_id, self._uniform = identity, boot_id, uniform
        self._clock, self._metered = clock or SystemClock(), metered
        self._device = identity.device
        self._routes = routes(identity.hub)
        self._proxy = tunnel.parse(identity.hub.proxy) if identity.hub.proxy else None
        self._connection = 0
        self._failures = self._brief = 0
        self._good: Route | None = None
        self._connected_s: float | None = None  # of this connection
        self._pace = KeepAlive()
        self._past = self._past_wire = Bytes(0, 0)  # of the connections before
        self._changed_s = time.monotonic()
        self._trouble = ""
        self._listener: Listener | None = None
        self._online = threading.Event()
        self._client: Wire | None = None
        self._ended = threading.Event()  # the connection of `_client`
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgewright-link", daemon=True)

    @property
    def online(self) -> bool:
        return self._online.is_set()

    @property
    def thread(self) -> threading.Thread:
        return self._thread

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._thread.start()

    def publish(self, kind: Kind, payload: bytes) -> bool:
        client = self._client
        if client is None or not self.online:
            return False
        rule = RULES[kind]
        try:
            info = client.publish(topics.topic(self._device, kind), payload, rule.qos, rule.retain)
        except OSError:  # it ended just now, and its sockets are closed
            return False
        return info.rc == paho.MQTT_ERR_SUCCESS

    def traffic(self) -> tuple[int, int]:
        client = self._client
        return self._past.plus(client.traffic) if client is not None else self._past

    def overhead(self) -> tuple[int, int]:
        client = self._client
        wire = self._past_wire.plus(client.wire) if client is not None else self._past_wire
        sent, received = self.traffic()
        return max(0, wire.sent - sent), max(0, wire.received - received)

    def condition(self) -> Condition:
        client = self._client
        return Condition(
            online=self.online,
            way=str(client.route) if client is not None else "",
            since_s=time.monotonic() - self._changed_s,
            connections=self._connection,
            keepalive_s=(client.pace if client is not None else self._pace).interval_s
            if self._metered()
            else keepalive.FIXED_S,
            trouble="" if self.online else self._trouble,
        )

    def stop(self) -> None:
        self._stopping.set()
        client = self._client
        if client is not None and self.online:
            try:
                client.publish(*self._status(online=False)).wait_for_publish(2)
            except (OSError, RuntimeError, ValueError) as error:  # the link broke meanwhile: the will says the same
                log.info("could not say goodbye: %s", error)
        self._online.clear()
        if client is not None:
            client.disable_logger()  # it calls its own disconnecting an error
            client.disconnect()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        """One connection after another, each with a client of its own: a client would send what it still holds of
        earlier connections again, on top of what the spool offers, and hold more after each."""
        while not self._stopping.is_set():
            self._connection += 1
            self._ended.clear()
            if self._stopping.is_set():  # `stop` may have set `_ended` before it was cleared
                return
            route = choose(self._routes, self._good, self._failures)
            self._connected_s = None
            try:
                self._once(route)
            except (OSError, ValueError, Unavailable) as error:
                self._trouble = f"{route}: {error}"
                level = logging.WARNING if self._failures == 0 else logging.DEBUG  # once, not at every try
                log.log(level, "no connection to the hub at %s (%s); trying again", route, error)
            except Exception as error:
                self._trouble = f"{route}: {error}"
                log.exception("the link went wrong and goes on")
            self._judge()
            low, high = BACKOFF_S
            self._stopping.wait(min(high, low * 2.0 ** min(self._failures, 16)) * (0.5 + self._uniform()))

    def _once(self, route: Route) -> None:
        """From the connection to its end. Raises OSError, ValueError, Unavailable."""
        metered = self._metered()
        client = self._fresh(route)
        self._keep_count()
        self._client = client
        try:
            client.open(keepalive.LONGEST_S if metered else keepalive.FIXED_S)
            client.loop_start()
            while not self._ended.wait(LOOK_S):
                if self._metered() != metered and self.online:  # the broker must be told another keep-alive
                    log.info("connecting again, because the profile changed")
                    client.disconnect()
                    self._ended.wait(STOP_S)
                    break
        finally:
            client.close()
            self._pace = client.pace

    def _keep_count(self) -> None:
        """What the connection before has counted stays counted."""
        before = self._client
        if before is not None:
            self._past, self._past_wire = self._past.plus(before.traffic), self._past_wire.plus(before.wire)

    def _judge(self) -> None:
        """How the connection that ended, or was never made, counts for the wait before the next."""
        if self._connected_s is None:
            self._failures += 1
            return
        lasted_s = time.monotonic() - self._connected_s
        self._brief = self._brief + 1 if lasted_s < BRIEF_S else 0
        self._failures = self._brief
        if self._brief == TAKEN_OVER:
            log.warning(
                "%d connections in a row ended within %d s of being made: another device may run with this identity "
                "(a cloned disk); the hub tells its operator when it sees two",
                *(TAKEN_OVER, BRIEF_S),
            )

    def _fresh(self, route: Route) -> Wire:
        client = Wire(
            self._device,
            route,
            tls.context(self._identity, self._clock),
            proxy=self._proxy,
            pace=self._pace,
            learning=self._metered,
        )
        client.enable_logger(log)
        client.username_pw_set(self._device)
        client.will_set(*self._status(online=False))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _status(self, *, online: bool) -> tuple[str, bytes, int, bool]:
        """What is published: topic, payload, quality of service, whether it is retained."""
        said = birth.Status(online=online, boot_id=self._boot_id, connection=self._connection)
        rule = RULES["status"]
        return topics.topic(self._device, "status"), birth.encode(said), rule.qos, rule.retain

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            said = f"the broker refused the connection: {reason}"
            log.log(logging.DEBUG if said == self._trouble else logging.WARNING, "%s", said)  # once, not at every try
            self._trouble = said
            return  # paho disconnects
        self._connected_s = self._changed_s = time.monotonic()
        self._good = self._client.route if self._client is not None else None
        log.info("connected to the hub at %s", self._good)
        client.subscribe(topics.all_down(self._device), 1)
        client.publish(*self._status(online=True))
        self._online.set()
        assert self._listener is not None
        self._listener.connected(self._connection)

    def _on_disconnect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if client is not self._client:
            return
        was = self.online
        self._online.clear()
        if was:
            self._trouble, self._changed_s = str(reason), time.monotonic()
        self._ended.set()
        if was and self._listener is not None:
            self._listener.disconnected(str(reason))

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            address = topics.parse(message.topic)
        except ContractError as error:
            log.warning("ignored: %s", error)
            return
        if address.device == self._device and RULES[address.kind].direction == "down":
            assert self._listener is not None
            self._listener.received(address.kind, bytes(message.payload))
