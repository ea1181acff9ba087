"""The link to the hub. The only module that knows paho.

Guarantee: every connection subscribes, says `status` online, and only then reports itself; its will carries the boot
and the connection's number, so that a late will of an older connection can be told. Nothing is kept for a broker that
is away: what must arrive waits in the spool and is offered again. Reconnects back off from 1 s to 60 s, jittered.

Nothing here depends on MQTT 5 or on a broker's session: delivery is the hub's `ack`, not the broker's PUBACK.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgewright_contracts import birth, topics
from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.topics import RULES, Kind

from ..identity import Identity

KEEPALIVE_S: Final = 120  # a ping costs about 120 bytes: 86 kB a day
BACKOFF_S: Final = (1.0, 60.0)
STOP_S: Final = 10.0  # a connection attempt under way may take as long

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Called on the link's own thread; must return soon."""

    def connected(self, connection: int) -> None: ...
    def disconnected(self, reason: str) -> None: ...
    def received(self, kind: Kind, payload: bytes) -> None: ...


class Transport(Protocol):
    """One device's link. `connection` counts from 1; traffic is (bytes sent, bytes received) of payloads."""

    @property
    def online(self) -> bool: ...

    def start(self, listener: Listener) -> None: ...
    def publish(self, kind: Kind, payload: bytes) -> bool:
        """Hand one message to the link; False when there is none, and then nothing was kept."""

    def traffic(self) -> tuple[int, int]: ...
    def stop(self) -> None:
        """Say `status` offline and disconnect."""


class MqttTransport:
    """MQTT 3.1.1 over TLS with the device's certificate."""

    def __init__(self, identity: Identity, boot_id: str, uniform: Callable[[], float] = random.random) -> None:
        self._device, self._boot_id, self._uniform = identity.device, boot_id, uniform
        self._broker = identity.hub.broker
        self._connection = 0
        self._failures = 0
        self._sent = self._received = 0
        self._listener: Listener | None = None
        self._online = threading.Event()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            self._tls.load_cert_chain(str(identity.certificate), str(identity.key))
            self._tls.load_verify_locations(str(identity.ca))
        except (OSError, ValueError) as error:
            raise Unavailable(f"the identity in {identity.home} cannot be used for TLS: {error}") from error
        self._client: paho.Client | None = None
        self._ended = threading.Event()  # the connection of `_client`
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgewright-link", daemon=True)

    @property
    def online(self) -> bool:
        return self._online.is_set()

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._thread.start()

    def publish(self, kind: Kind, payload: bytes) -> bool:
        client = self._client
        if client is None or not self.online:
            return False
        rule = RULES[kind]
        info = client.publish(topics.topic(self._device, kind), payload, rule.qos, rule.retain)
        self._sent += len(payload)
        return info.rc == paho.MQTT_ERR_SUCCESS

    def traffic(self) -> tuple[int, int]:
        return self._sent, self._received

    def stop(self) -> None:
        self._stopping.set()
        client = self._client
        if client is not None and self.online:
            said = client.publish(*self._status(online=False))
            try:
                said.wait_for_publish(2)
            except (RuntimeError, ValueError) as error:  # the link broke meanwhile: the will says the same
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
            try:
                client = self._client = self._fresh()
                client.connect(self._broker.host, self._broker.port, KEEPALIVE_S)
                client.loop_start()
                self._ended.wait()
                client.loop_stop()
            except (OSError, ValueError) as error:
                level = logging.WARNING if self._failures == 0 else logging.DEBUG  # once, not at every try
                where = (self._broker.host, self._broker.port)
                log.log(level, "no connection to the hub at %s:%d (%s); trying again", *where, error)
            except Exception:
                log.exception("the link went wrong and goes on")
            self._failures += 1
            low, high = BACKOFF_S
            self._stopping.wait(min(high, low * 2.0 ** min(self._failures, 16)) * (0.5 + self._uniform()))

    def _fresh(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device,
            protocol=paho.MQTTv311,
            clean_session=True,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True  # a bug in a callback is logged; it does not end the thread
        client.enable_logger(log)
        client.username_pw_set(self._device)
        client.tls_set_context(self._tls)
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
            log.warning("the broker refused the connection: %s", reason)
            return  # paho disconnects
        self._failures = -1  # the first wait after a connection that was made is the shortest
        log.info("connected to the hub at %s:%d", self._broker.host, self._broker.port)
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
        self._ended.set()
        if was and self._listener is not None:
            self._listener.disconnected(str(reason))

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._received += len(message.payload)
        try:
            address = topics.parse(message.topic)
        except ContractError as error:
            log.warning("ignored: %s", error)
            return
        if address.device == self._device and RULES[address.kind].direction == "down":
            assert self._listener is not None
            self._listener.received(address.kind, bytes(message.payload))
