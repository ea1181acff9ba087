"""From a device's publish to its acknowledgement, over both brokers, with the broker and the hub going away."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts import topics
from edgewright_contracts.desired import decode_ack, decode_command
from edgewright_hub.fleet.ca import Authority
from edgewright_hub.ingest.consumer import Consumer
from edgewright_hub.ingest.counting import Spool, ack
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.refusals import Noted
from edgewright_hub.ingest.turns import Answer, Turns
from edgewright_hub.storage import telemetry
from sim import wire
from sim.wire import WireClient

Contexts = Callable[[str], ssl.SSLContext]

pytestmark = pytest.mark.process


class Hub:
    """A consumer that can be stopped and begun again on the same database."""

    def __init__(self, broker: Any, authority: Authority, engine: sa.Engine) -> None:
        self.desired: dict[str, bytes] = {}
        self.engine = engine
        self._parts = (broker, authority)
        self.start()

    def start(self) -> None:
        broker, authority = self._parts
        self.consumer = Consumer(
            self.engine,
            host="127.0.0.1",
            port=broker.port,
            context=authority.client_context(),
            known=Known(lambda _: "default"),
            noted=Noted(),
            desired=lambda: list(self.desired.items()),
            ack_s=0.05,
        )
        self.consumer.start()
        assert self.consumer.ready.wait(10)

    def total(self, device: str) -> int:
        w = telemetry.windows.c
        with self.engine.connect() as connection:
            return int(
                connection.execute(
                    sa.select(sa.func.coalesce(sa.func.sum(w.n), 0)).where(w.device == device)
                ).scalar_one()
            )


@pytest.fixture
def hub(broker: Any, authority: Authority, telemetry_engine: sa.Engine) -> Iterator[Hub]:
    one = Hub(broker, authority, telemetry_engine)
    yield one
    one.consumer.stop()


def acknowledged(device: WireClient, high_water: int) -> None:
    while decode_ack(device.next("ack")).high_water < high_water:
        pass


def test_what_is_acknowledged_is_committed(broker: Any, hub: Hub, context_of: Contexts, new_device: Any) -> None:
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "birth", wire.birth_bytes(name))
        assert decode_ack(device.next("ack")).high_water == 0
        for seq in (2, 1, 3, 2, 4):
            device.up(name, "report", wire.report_bytes(seq))
        acknowledged(device, 4)
        assert hub.total(name) == 40


def test_a_birth_does_not_wait_until_a_batch_is_full(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgewright_hub.ingest.consumer as module

    monkeypatch.setattr(module, "BATCH_S", 60.0)
    monkeypatch.setattr(module, "STEP_S", 60.0)
    monkeypatch.setattr(module, "LULL_S", 0.3)
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        for seq in (1, 2, 3):
            device.up(name, "report", wire.report_bytes(seq))
        device.up(name, "birth", wire.birth_bytes(name, next_seq=4))
        assert decode_ack(device.next("ack")).high_water == 3


def test_a_rewound_spool_is_told_to_begin_a_new_one(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any
) -> None:
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", wire.report_bytes(1))
        acknowledged(device, 1)
        device.up(name, "birth", wire.birth_bytes(name, next_seq=1))
        command = decode_command(device.next("command"))
        assert (command.verb, command.argument) == ("new_spool", wire.SPOOL)


def test_poison_does_not_stop_ingest(broker: Any, hub: Hub, context_of: Contexts, new_device: Any) -> None:
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        for kind in ("report", "event", "birth"):
            device.up(name, kind, b"\xc1 poison")
        device.up(name, "report", wire.report_bytes(1))
        acknowledged(device, 1)


def test_desired_documents_are_published_at_every_start_of_hub_and_broker(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, until: Any
) -> None:
    name = new_device()
    hub.desired[name] = b'{"rev":1}'
    hub.consumer.stop()
    hub.start()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        assert device.next("desired") == b'{"rev":1}'
    hub.desired[name] = b'{"rev":2}'
    broker.stop()
    until(lambda: not hub.consumer.connected, "the hub to notice")
    broker.start()
    until(lambda: hub.consumer.connected, "the hub to come back")
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        while device.next("desired") != b'{"rev":2}':
            pass


def test_reports_after_the_broker_died_are_counted(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, until: Any
) -> None:
    name = new_device()
    broker.stop()
    until(lambda: hub.consumer.trouble == "the broker is not connected", "the hub to notice")
    broker.start()
    until(lambda: not hub.consumer.trouble, "the hub to come back")
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", wire.report_bytes(1))
        acknowledged(device, 1)
    assert hub.total(name) == 10


def test_nothing_is_acknowledged_while_the_database_fails_and_all_of_it_after(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    import edgewright_hub.ingest.consumer as module

    name, real, fails = new_device(), module.commit, threading.Event()
    fails.set()
    tried = threading.Event()

    def commit(*arguments: Any) -> Any:
        if fails.is_set():
            tried.set()
            raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
        return real(*arguments)

    monkeypatch.setattr(module, "commit", commit)
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", wire.report_bytes(1))
        assert tried.wait(10)
        assert hub.total(name) == 0
        until(lambda: hub.consumer.trouble.startswith("a database cannot be written"), "the hub to say so")
        fails.clear()
        acknowledged(device, 1)
        assert hub.total(name) == 10
        until(lambda: not hub.consumer.trouble, "the hub to say so")


def test_a_slow_database_slows_the_socket_and_not_the_memory(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    import edgewright_hub.ingest.consumer as module

    real, opened, tried = module.commit, threading.Event(), threading.Event()

    def commit(*arguments: Any) -> Any:
        tried.set()
        assert opened.wait(20)
        return real(*arguments)

    monkeypatch.setattr(module, "commit", commit)
    monkeypatch.setattr(module, "QUEUE", 8)
    monkeypatch.setattr(module, "BATCH", 8)
    hub.consumer.stop()
    hub.start()
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        for seq in range(1, 61):
            device.up(name, "report", wire.report_bytes(seq))
        assert tried.wait(10)
        until(hub.consumer._queue.full, "the queue to be full")
        assert hub.consumer._queue.qsize() == 8
        opened.set()
        until(lambda: hub.total(name) == 600, "all reports")


def test_a_hub_that_died_before_it_acknowledged_counts_what_comes_again_once(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """The commit is done, the acknowledgement is not; the device, and mosquitto, send it again."""
    name = new_device()
    monkeypatch.setattr(hub.consumer._client, "ack_all", lambda _mids: None)
    monkeypatch.setattr(hub.consumer, "publish", lambda *_a, **_k: None)
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", wire.report_bytes(1))
        until(lambda: hub.total(name) == 10, "the commit")
        with pytest.raises(queue.Empty):
            device.next("ack", timeout=0.3)
    hub.consumer.stop()
    hub.start()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", wire.report_bytes(1))
        acknowledged(device, 1)
        assert hub.total(name) == 10


def test_what_came_while_the_hub_was_away_waits_on_mosquitto(
    broker: Any, hub: Hub, context_of: Contexts, new_device: Any
) -> None:
    if type(broker).__name__ == "Amqtt":
        pytest.skip("the embedded broker dies with the hub")
    name = new_device()
    hub.consumer.stop()
    with WireClient(broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        for seq in range(1, 17):
            device.up(name, "report", wire.report_bytes(seq))
        hub.start()
        acknowledged(device, 16)
    assert hub.total(name) == 160


def _answer(device: str, high_water: int, *, at_once: bool = False, again: bool = False) -> Answer:
    return Answer(device, "a" * 16, ack("a" * 16, Spool(high_water)), at_once, again, renew=False)


def test_a_device_is_answered_when_half_of_what_may_be_in_flight_waits_or_the_first_has_waited_long() -> None:
    turns = Turns(1800.0)
    turns.add([_answer("a", 1), _answer("b", 8)], 0.0)
    assert [a.device for a in turns.due(0.0)] == ["b"]
    assert turns.due(1799.0) == []
    turns.add([_answer("a", 4)], 1799.5)
    assert [a.ack.high_water for a in turns.due(1800.0)] == [4]
    turns.add([_answer("a", 11)], 1801.0)
    assert turns.due(1900.0) == []
    turns.add([_answer("a", 12)], 1901.0)
    assert [a.ack.high_water for a in turns.due(1901.0)] == [12]


def test_acknowledgements_to_one_device_are_half_a_minute_apart_except_after_a_birth() -> None:
    turns = Turns(1800.0)
    turns.add([_answer("a", 8)], 0.0)
    assert len(turns.due(0.0)) == 1
    turns.add([_answer("a", 24)], 1.0)
    assert turns.due(29.0) == []
    assert [a.ack.high_water for a in turns.due(30.0)] == [24]
    turns.add([_answer("a", 25, at_once=True)], 30.1)
    turns.add([_answer("a", 26)], 30.1)
    assert [a.ack.high_water for a in turns.due(30.1)] == [26]
    assert turns.due(9999.0) == []


def test_a_device_that_repeats_itself_has_lost_an_acknowledgement_and_gets_it_again() -> None:
    turns = Turns(1800.0)
    turns.add([_answer("a", 8)], 0.0)
    turns.due(0.0)
    turns.add([_answer("a", 8, again=True)], 40.0)
    turns.add([_answer("a", 9)], 40.0)
    assert [a.ack.high_water for a in turns.due(40.0)] == [9]
