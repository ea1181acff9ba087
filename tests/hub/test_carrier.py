"""What devices publish reaches the hub: all of it, once, in order; and a hub that is behind costs no memory."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgewright_contracts import topics
from edgewright_hub.fleet.ca import HUB_NAME, Authority
from edgewright_hub.mqtt import carrier as module
from edgewright_hub.mqtt.carrier import Carrier
from edgewright_hub.mqtt.packets import read_publish
from sim.wire import WireClient

Contexts = Callable[[str], ssl.SSLContext]
TOPIC = "ew/1/cam/up/report"


def packet(body: bytes, *, head: int = 0x32, topic: str = TOPIC) -> bytes:
    number = b"\x00\x07" if head & 6 else b""
    rest = len(topic).to_bytes(2, "big") + topic.encode() + number + body
    length = bytes([len(rest)]) if len(rest) < 128 else bytes([len(rest) & 0x7F | 0x80, len(rest) >> 7])
    return bytes([head]) + length + rest


@pytest.mark.parametrize("size", [0, 1, 103, 104, 105, 106, 300])
def test_a_publish_is_acknowledged_with_its_number_and_carried_without(size: int) -> None:
    publish = read_publish(packet(bytes(size), head=0x3B))  # QoS 1, sent again, retained
    assert publish is not None
    assert (publish.topic, publish.qos, publish.retain, publish.body) == (TOPIC, 1, True, bytes(size))
    assert publish.acknowledgement() == b"\x40\x02\x00\x07"
    assert publish.unnumbered() == packet(bytes(size), head=0x30)


def test_a_publish_of_quality_0_is_not_acknowledged() -> None:
    publish = read_publish(packet(b"abc", head=0x31))
    assert publish is not None
    assert (publish.qos, publish.retain, publish.body, publish.acknowledgement()) == (0, True, b"abc", b"")
    assert publish.unnumbered() == packet(b"abc", head=0x30)


@pytest.mark.parametrize(
    "data",
    [
        packet(b"", head=0x34),
        packet(b"", head=0x36),
        packet(b"", head=0x82),
        packet(b"")[:-1],
        packet(b"")[:10],
        b"\x32\x00",
        b"\x32\x01\x00",
        b"\x32\x03\x00\x01\xff",
        packet(b"").replace(b"\x00\x07", b"\x00\x00"),
        packet(b"", topic="a").replace(b"a", b"\xff"),
    ],
)
def test_what_is_malformed_or_of_quality_2_is_left_to_amqtt(data: bytes) -> None:
    assert read_publish(data) is None


@pytest.mark.process
def test_all_messages_of_all_devices_reach_the_hub_once_and_in_order(
    broker: Any, authority: Authority, context_of: Contexts
) -> None:
    names, each = ("c-1", "c-2"), 150
    with (
        WireClient(broker.port, authority.client_context(), HUB_NAME) as hub,
        WireClient(broker.port, context_of(names[0]), names[0]) as first,
        WireClient(broker.port, context_of(names[1]), names[1]) as second,
    ):
        hub.subscribe(topics.ALL_UP)
        for i in range(each):
            for name, device in zip(names, (first, second), strict=True):
                kind = ("report", "event", "status")[i % 3]
                device.mqtt.publish(f"ew/1/{name}/up/{kind}", b"%d" % i + bytes(i), qos=1, retain=kind == "status")
        heard = [hub.received.get(timeout=60) for _ in range(2 * each)]
        for name in names:
            numbers = [int(body.rstrip(b"\0")) for topic, body in heard if f"/{name}/" in topic]
            assert numbers == list(range(each))
        assert hub.received.empty()
    with WireClient(broker.port, authority.client_context(), HUB_NAME) as hub:
        hub.subscribe(topics.ALL_UP)
        assert hub.next("status").startswith(b"149")  # kept for a hub that comes later


@pytest.mark.process
def test_a_device_is_sent_away_while_no_hub_listens_and_heard_when_one_does(
    broker: Any, authority: Authority, context_of: Contexts
) -> None:
    embedded = type(broker).__name__ == "Amqtt"
    with WireClient(broker.port, context_of("c-3"), "c-3") as device:
        device.mqtt.publish("ew/1/c-3/up/report", b"to nobody", qos=1)
        if embedded:  # mosquitto keeps it
            assert device.gone.wait(60)
        with WireClient(broker.port, authority.client_context(), HUB_NAME) as hub:
            hub.subscribe(topics.ALL_UP)
            if embedded:
                assert hub.next("report") == b"to nobody"  # paho, like a device, kept what was not acknowledged
            device.up("c-3", "report", b"heard")
            while hub.next("report") != b"heard":
                pass


class Line:
    """A connection of asyncio as far as the carrier knows it; `behind` is what waits in it."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = False
        self._behind = 0
        self._changed = asyncio.Event()
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: self._behind, abort=self.abort)

    def holds(self, behind: int) -> None:
        self._behind = behind
        self._changed.set()

    def abort(self) -> None:
        self.ended = True
        self._changed.set()

    def is_closing(self) -> bool:
        return self.ended

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        while self._behind and not self.ended:
            self._changed.clear()
            await self._changed.wait()


class Bench:
    """A carrier between devices and a hub that listens; each message is written at once."""

    def __init__(self) -> None:
        self.hub = Line()
        self.writers: dict[str, Any] = {HUB_NAME: self.hub}
        session = object()
        self.broker = SimpleNamespace(
            sessions={HUB_NAME: (session, None)}, subscriptions={topics.ALL_UP: [(session, 1)]}
        )
        self.carrier = Carrier(self.broker, self.writers)

    def send(self, device: Line, body: bytes, head: int = 0x32) -> asyncio.Task[bool]:
        took = self.carrier.took("cam", packet(100 * body, head=head), device)  # type: ignore[arg-type]
        return asyncio.ensure_future(took)


PUBACK = b"\x40\x02\x00\x07"


async def turns() -> None:
    """All that can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES", 100)


@pytest.mark.usefixtures("at_once")
def test_devices_wait_while_the_hub_is_behind_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        bench, first, second = Bench(), Line(), Line()
        assert await bench.send(first, b"a")
        bench.hub.holds(module.BEHIND_BYTES + 1)
        waiting = [bench.send(first, b"b"), bench.send(second, b"c")]
        await turns()
        assert not any(one.done() for one in waiting)
        assert (first.sent, second.sent, bench.hub.sent.count(b"b" * 100)) == (PUBACK, b"", 0)
        bench.hub.holds(0)
        assert all(await asyncio.gather(*waiting))
        assert (first.sent, second.sent) == (2 * PUBACK, PUBACK)
        assert [bench.hub.sent.count(100 * letter) for letter in (b"a", b"b", b"c")] == [1, 1, 1]
        stranger = packet(b"x", topic="ew/1/other/up/report")
        assert not await bench.carrier.took("cam", stranger, first)  # type: ignore[arg-type]
        bench.carrier.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("ends", ["hub", "device"])
def test_who_waits_is_not_acknowledged_when_a_connection_ends_and_waits_no_longer(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)

    async def run() -> None:
        bench, device = Bench(), Line()
        bench.hub.holds(module.BEHIND_BYTES + 1)
        waiting = bench.send(device, b"b")
        await turns()
        {"hub": bench.hub, "device": device}[ends].abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(waiting, 60)
        assert (device.ended, device.sent, bench.hub.sent) == (True, b"", b"")
        bench.carrier.close()

    asyncio.run(run())


def test_who_was_acknowledged_is_sent_away_when_the_hubs_connection_changes() -> None:
    """What was gathered, or under way in the connection, may be lost."""

    async def run() -> None:
        bench, first, second = Bench(), Line(), Line()
        assert await bench.send(first, b"a")
        assert first.sent == PUBACK
        bench.writers[HUB_NAME] = Line()
        assert await bench.send(second, b"b")
        assert (first.ended, second.ended) == (True, False)
        bench.writers[HUB_NAME].abort()
        with pytest.raises(ConnectionResetError):
            await bench.send(Line(), b"c")
        assert second.ended
        bench.carrier.close()

    asyncio.run(run())


def test_without_a_hub_what_the_broker_keeps_is_acknowledged_and_quality_0_is_dropped() -> None:
    kept = []

    async def keep(*message: object) -> None:
        kept.append(message)

    async def run() -> None:
        bench, device = Bench(), Line()
        bench.writers.clear()
        bench.broker.retain_message = keep
        assert await bench.send(device, b"s", head=0x33)
        assert await bench.send(device, b"q", head=0x30)
        assert (device.sent, device.ended, len(kept)) == (PUBACK, False, 1)

    asyncio.run(run())
