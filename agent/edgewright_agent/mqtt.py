"""The link to the hub. The only module that knows paho.

Guarantee: every connection subscribes, says `status` online, and only then reports itself; its will carries the boot
and the connection's number, so that a late will of an older connection can be told. Nothing is kept for a broker that
is away: what must arrive waits in the spool and is offered again. Reconnects back off from 1 s to 60 s, jittered.

Nothing here depends on MQTT 5 or on a broker's session: delivery is the hub's `ack`, not the broker's PUBACK.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgewright_contracts import birth, topics
from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.topics import RULES, Kind

from .identity import Identity

KEEPALIVE_S: Final = 120  # a ping costs about 120 bytes: 86 kB a day
BACKOFF_S: Final = (1.0, 60.0)

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
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=identity.device, protocol=paho.MQTTv311, clean_session=True
        )
        client.suppress_exceptions = True  # a bug in a callback is logged; it does not end the thread
        client.enable_logger(log)
        client.username_pw_set(identity.device)
        try:
            client.tls_set(str(identity.ca), str(identity.certificate), str(identity.key))
        except (OSError, ValueError) as error:
            raise Unavailable(f"the identity in {identity.home} cannot be used for TLS: {error}") from error
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client
        self._arm()

    @property
    def online(self) -> bool:
        return self._online.is_set()

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S)
        self._client.loop_start()

    def publish(self, kind: Kind, payload: bytes) -> bool:
        if not self.online:
            return False
        rule = RULES[kind]
        info = self._client.publish(topics.topic(self._device, kind), payload, rule.qos, rule.retain)
        self._sent += len(payload)
        return info.rc == paho.MQTT_ERR_SUCCESS

    def traffic(self) -> tuple[int, int]:
        return self._sent, self._received

    def stop(self) -> None:
        if self.online:
            rule = RULES["status"]
            said = self._client.publish(
                topics.topic(self._device, "status"), self._status(online=False), rule.qos, rule.retain
            )
            try:
                said.wait_for_publish(2)
            except (RuntimeError, ValueError) as error:  # the link broke meanwhile: the will says the same
                log.info("could not say goodbye: %s", error)
        self._online.clear()
        self._client.disconnect()
        self._client.loop_stop()

    def _arm(self) -> None:
        """Prepare the next connection: its will, and the wait before it should it fail."""
        self._connection += 1
        rule = RULES["status"]
        self._client.will_set(topics.topic(self._device, "status"), self._status(online=False), rule.qos, rule.retain)
        low, high = BACKOFF_S
        delay = min(high, low * 2.0**self._failures) * (0.5 + self._uniform())
        self._client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]  # floats work; its hint says int

    def _status(self, *, online: bool) -> bytes:
        return birth.encode(birth.Status(online=online, boot_id=self._boot_id, connection=self._connection))

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.warning("the broker refused the connection: %s", reason)
            return  # paho calls on_disconnect, which backs off
        self._failures = 0
        log.info("connected to the hub at %s:%d", self._broker.host, self._broker.port)
        client.subscribe(topics.all_down(self._device), 1)
        rule = RULES["status"]
        client.publish(topics.topic(self._device, "status"), self._status(online=True), rule.qos, rule.retain)
        self._online.set()
        assert self._listener is not None
        self._listener.connected(self._connection)

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.DEBUG  # once, not at every try
        log.log(level, "no connection to the hub at %s:%d; trying again", self._broker.host, self._broker.port)
        self._arm()

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        was, self._failures = self.online, self._failures + 1
        self._online.clear()
        self._arm()
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
