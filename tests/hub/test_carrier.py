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
def test_a_device_is_acknowledged_while_no_hub_listens_and_heard_when_one_does(
    broker: Any, authority: Authority, context_of: Contexts
) -> None:
    with WireClient(broker.port, context_of("c-3"), "c-3") as device:
        device.up("c-3", "report", b"to nobody")
        with WireClient(broker.port, authority.client_context(), HUB_NAME) as hub:
            device.up("c-3", "report", b"not subscribed yet")
            hub.subscribe(topics.ALL_UP)
            device.up("c-3", "report", b"heard")
            while hub.next("report") != b"heard":
                pass


class Line:
    """A connection of asyncio as far as the carrier knows it."""

    def __init__(self) -> None:
        self.behind = 0
        self.sent = b""
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: self.behind)

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        pass


def test_a_hub_that_is_behind_gets_nothing_more_until_it_has_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES", 100)
    hub, device, session = Line(), Line(), object()
    broker = SimpleNamespace(sessions={HUB_NAME: (session, None)}, subscriptions={topics.ALL_UP: [(session, 1)]})

    async def run() -> None:
        carrier = Carrier(broker, {HUB_NAME: hub})  # type: ignore[dict-item]
        for behind, body in ((0, b"a"), (module.BEHIND_BYTES + 1, b"b"), (2**40, b"c"), (0, b"d")):
            hub.behind = behind
            assert await carrier.took("cam", packet(100 * body), device)  # type: ignore[arg-type]
        assert not await carrier.took("cam", packet(b"x", topic="ew/1/other/up/report"), device)  # type: ignore[arg-type]
        carrier.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert [hub.sent.count(letter) for letter in (100 * b"a", b"bb", b"cc", 100 * b"d")] == [1, 0, 0, 1]
    assert device.sent == 4 * b"\x40\x02\x00\x07"
    assert len(caplog.records) == 1
