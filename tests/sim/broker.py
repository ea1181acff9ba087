"""A broker in memory, and a transport that implements edgewright_agent.delivery.mqtt.Transport over it.

Delivery is immediate, on the sender's thread. `cut` breaks a link, and `drop_up` loses what `dropped` names, as
a broker may that has said PUBACK.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgewright_agent.delivery.mqtt import Condition
from edgewright_contracts import birth, topics
from edgewright_contracts.topics import Kind


class SimBroker:
    """Retains what the topic table says, hands everything to the subscribers of `up` and of each device's `down`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._links: dict[str, SimTransport] = {}
        self._retained: dict[tuple[str, Kind], bytes] = {}
        self._hub: list[Callable[[str, Kind, bytes], None]] = []
        self.drop_up = False
        self.dropped: tuple[Kind, ...] = ("report", "event")  # what `drop_up` loses

    def subscribe(self, hub: Callable[[str, Kind, bytes], None]) -> None:
        self._hub.append(hub)

    def send(self, device: str, kind: Kind, payload: bytes) -> None:
        """A message from the hub to a device."""
        with self._lock:
            if topics.RULES[kind].retain:
                self._retained[device, kind] = payload
            link = self._links.get(device)
        if link is not None:
            link.deliver(kind, payload)

    def status(self, device: str) -> birth.Status | None:
        data = self._retained.get((device, "status"))
        return birth.decode_status(data) if data else None

    def attach(self, device: str, link: SimTransport) -> None:
        with self._lock:
            self._links[device] = link
            desired = self._retained.get((device, "desired"))
        if desired is not None:
            link.deliver("desired", desired)

    def detach(self, device: str) -> None:
        with self._lock:
            self._links.pop(device, None)

    def up(self, device: str, kind: Kind, payload: bytes) -> None:
        topics.topic(device, kind)
        if len(payload) > topics.RULES[kind].limit:
            raise AssertionError(f"{kind} of {len(payload)} bytes")
        if topics.RULES[kind].retain:
            self._retained[device, kind] = payload
        if self.drop_up and kind in self.dropped:
            return
        for hub in self._hub:
            hub(device, kind, payload)


class SimTransport:
    def __init__(self, broker: SimBroker, device: str, boot_id: str = "0" * 16) -> None:
        self._broker, self._device, self._boot_id = broker, device, boot_id
        self._listener = None
        self._connection = 0
        self._online = False
        self._sent = self._received = 0

    @property
    def online(self) -> bool:
        return self._online

    def start(self, listener) -> None:
        self._listener = listener
        self.connect()

    def connect(self) -> None:
        self._connection += 1
        self._online = True
        self._say(online=True)
        self._listener.connected(self._connection)
        self._broker.attach(self._device, self)

    def cut(self) -> None:
        """The link breaks: the broker publishes the will."""
        self._online = False
        self._broker.detach(self._device)
        self._say(online=False)
        self._listener.disconnected("cut")

    def publish(self, kind: Kind, payload: bytes) -> bool:
        if not self._online:
            return False
        self._sent += len(payload)
        self._broker.up(self._device, kind, payload)
        return True

    def deliver(self, kind: Kind, payload: bytes) -> None:
        if self._online:
            self._received += len(payload)
            self._listener.received(kind, payload)

    def traffic(self) -> tuple[int, int]:
        return self._sent, self._received

    def overhead(self) -> tuple[int, int]:
        return 0, 0

    def condition(self) -> Condition:
        return Condition(online=self._online, connections=self._connection)

    def stop(self) -> None:
        if self._online:
            self._say(online=False)
        self._online = False
        self._broker.detach(self._device)

    def _say(self, *, online: bool) -> None:
        status = birth.Status(online=online, boot_id=self._boot_id, connection=self._connection)
        self._broker.up(self._device, "status", birth.encode(status))
