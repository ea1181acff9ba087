"""What devices may not send, over the real embedded broker: refused, counted, visible, never merged."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from edgewright_contracts import topics
from edgewright_contracts.binning import pack
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.desired import decode_ack
from edgewright_contracts.report import Hits
from edgewright_hub.doctor import _refusals
from edgewright_hub.fleet.ca import Authority
from edgewright_hub.ingest import refusals
from edgewright_hub.ingest.consumer import Consumer
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry.edges import Layout
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire
from sim.wire import WireClient

from .conftest import Amqtt

pytestmark = pytest.mark.process

NOW = 1_800_000_000_000
OTHER = "a" * 16
LAYOUT = Layout(wire.EDGES, 3, 1 + 2 * (1 + 4096))
KNOWN = Known(lambda _: "lab", lambda digest, variant: LAYOUT if digest == wire.DIGEST else None)


class Hub:
    """The embedded broker and a consumer in this process."""

    def __init__(self, broker: Any, authority: Authority, place: Path) -> None:
        self.broker = broker
        self.data = place
        self.engine = open_telemetry(place / "telemetry.db")
        self.consumer = Consumer(
            self.engine, host="127.0.0.1", port=broker.port, context=authority.client_context(), known=KNOWN,
            desired=list, noted=broker.noted, ack_s=0.05,
        )  # fmt: skip
        self.consumer.start()
        assert self.consumer.ready.wait(60)

    def refused(self, device: str) -> dict[str, int]:
        with self.engine.connect() as connection:
            return {one.reason: one.times for one in refusals.since(connection, 0) if one.device == device}

    def counted(self, device: str) -> tuple[int, int]:
        """(windows of the device, inferences in all rollups)."""
        with self.engine.connect() as connection:
            w = telemetry.windows
            number = sa.select(sa.func.count()).select_from(w).where(w.c.device == device)
            r = telemetry.rollups.c
            n = sa.select(sa.func.coalesce(sa.func.sum(r.n), 0)).where(r.tier_s == 3600)
            return connection.execute(number).scalar_one(), connection.execute(n).scalar_one()


@pytest.fixture(scope="module")
def hub(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    broker = Amqtt(authority)
    one = Hub(broker, authority, tmp_path_factory.mktemp("hub"))
    yield one
    one.consumer.stop()
    one.engine.dispose()
    broker.close()


def below_zero(seq: int) -> bytes:
    """As no encoder of ours writes it: n is -5."""
    raw = msgspec.msgpack.decode(wire.report_bytes(seq))
    at = [field.name for field in msgspec.structs.fields(type(wire.window()))].index("n")
    raw[3][at] = -5
    return msgspec.msgpack.encode(raw)


def ahead(seq: int) -> bytes:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    return wire.report_bytes(seq, wall_start_ms=now_ms + 86_400_000)


BAD: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "another edge hash": ("edges", lambda seq: wire.report_bytes(seq, edge_hash=OTHER)),
    "a negative count": ("counts", below_zero),
    "more inferences than any device makes": ("counts", lambda seq: wire.report_bytes(seq, n=MAX_COUNT)),
    "a future clock": ("clock", ahead),
    "no report at all": ("malformed", lambda seq: b"\xc1\xc1\xc1"),
    "another device's name": ("foreign", lambda seq: wire.birth_bytes("somebody-else")),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_reports_are_refused_counted_and_hold_no_good_one_up(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None], what: str
) -> None:
    name = new_device()
    reason, made = BAD[what]
    before = hub.counted(name)[1]
    with WireClient(hub.broker.port, context_of(name), name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "birth" if reason == "foreign" else "report", made(1))
        device.up(name, "report", wire.report_bytes(2))
        while 2 not in decode_ack(device.next("ack")):
            pass
    assert hub.refused(name) == {reason: 1}
    windows, inferences = hub.counted(name)
    assert (windows, inferences - before) == (1, 10)
    with hub.engine.connect() as connection:
        d = telemetry.dead_letters.c
        (letter,) = connection.execute(sa.select(d.reason).where(d.device == name)).scalars()
    assert letter.startswith(reason)


def test_a_replay_is_counted_as_one_and_not_again(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None]
) -> None:
    name = new_device()
    with WireClient(hub.broker.port, context_of(name), name) as device:
        for _ in range(3):
            device.up(name, "report", wire.report_bytes(1))
        until(lambda: hub.refused(name) == {"replay": 2}, "the replays")
    assert hub.counted(name)[0] == 1


def test_a_device_that_publishes_for_another_is_refused_by_the_broker_and_counted(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None]
) -> None:
    name, victim = new_device(), new_device()
    with WireClient(hub.broker.port, context_of(name), name) as device:
        device.mqtt.publish(topics.topic(victim, "report"), wire.report_bytes(1), qos=1)
        until(lambda: hub.refused(name) == {"foreign": 1}, "the refusal")
    assert hub.counted(victim)[0] == 0
    assert hub.refused(victim) == {}


@pytest.mark.parametrize("what", ["client id", "will"])
def test_who_connects_in_the_name_of_another_is_refused_and_counted(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None], what: str
) -> None:
    name, victim = new_device(), new_device()
    client_id = victim if what == "client id" else name
    will = (topics.topic(victim, "status"), b"gone") if what == "will" else None
    with WireClient(hub.broker.port, context_of(name), client_id, will=will) as device:
        assert not device.connected
        until(lambda: hub.refused(name).get("foreign", 0) >= 1, "the refusal")
    assert hub.refused(victim) == {}


def test_ten_megabytes_end_the_connection_and_are_counted(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None]
) -> None:
    name = new_device()
    with WireClient(hub.broker.port, context_of(name), name) as device:
        device.mqtt.publish(topics.topic(name, "report"), bytes(10 * 1024**2), qos=1)
        until(lambda: hub.refused(name).get("size", 0) >= 1, "the refusal")
    assert hub.counted(name) == (0, hub.counted(name)[1])


def test_quality_2_ends_the_connection_before_anything_is_kept_and_is_counted(
    hub: Hub, context_of: Callable[[str], ssl.SSLContext], new_device: Any, until: Callable[..., None]
) -> None:
    name = new_device()
    with WireClient(hub.broker.port, context_of(name), name) as device:
        device.mqtt.publish(topics.topic(name, "report"), wire.report_bytes(1), qos=2)
        assert device.gone.wait(60)
        until(lambda: hub.refused(name).get("malformed", 0) >= 1, "the refusal")
    assert hub.counted(name)[0] == 0


def test_what_was_refused_is_said_by_the_doctor(hub: Hub) -> None:
    (finding,) = _refusals(hub.data, datetime.now(UTC))
    assert not finding.well
    assert "kinds in 24 hours" in finding.said


@pytest.fixture
def engine(stores: Places) -> Iterator[sa.Engine]:
    one = open_telemetry(stores.telemetry)
    yield one
    one.dispose()


def _message(seq: int, body: bytes, device: str = "dev-1") -> Message:
    return Message(topics.topic(device, "report"), body, NOW + seq)


def test_refusals_add_up_and_dead_letters_are_bounded_for_each_device(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewright_hub.ingest.writer.LETTERS_EACH", 3)
    commit(engine, [_message(0, wire.report_bytes(1, edge_hash=OTHER), "dev-2")], KNOWN)
    for start in range(1, 11, 5):
        commit(engine, [_message(i, wire.report_bytes(i, edge_hash=OTHER)) for i in range(start, start + 5)], KNOWN)
    with engine.connect() as connection:
        assert refusals.totals(connection) == {"edges": 11}
        newest, other = refusals.since(connection, 0)
        assert (newest.device, newest.times, newest.last_ms) == ("dev-1", 10, NOW + 10)
        assert (other.device, other.times) == ("dev-2", 1)
        d = telemetry.dead_letters.c
        kept = connection.execute(sa.select(d.device, d.arrived_ms).order_by(d.id)).all()
    assert [tuple(row) for row in kept] == [("dev-2", NOW), *(("dev-1", NOW + i) for i in (8, 9, 10))]


def test_one_bad_report_among_many_is_found_and_the_others_are_summed(engine: sa.Engine) -> None:
    good = [_message(i, wire.report_bytes(i)) for i in range(1, 10)]
    grid = struct.pack("BB", 3, 99)  # 99 durations of 10 inferences
    raw = msgspec.msgpack.decode(wire.report_bytes(10))
    at = [field.name for field in msgspec.structs.fields(type(wire.window()))].index("latency_total")
    raw[3][at] = grid
    commit(engine, [*good[:4], _message(10, msgspec.msgpack.encode(raw)), *good[4:]], KNOWN)
    with engine.connect() as connection:
        assert refusals.totals(connection) == {"counts": 1}
        n = connection.execute(sa.select(telemetry.rollups.c.n)).scalars().all()
        (spool,) = connection.execute(sa.select(telemetry.spools.c.high_water)).scalars()
    assert n == [90, 90, 90]
    assert spool == 10


MOST = 1000 * 61_000  # of anything in a minute, and a second


@pytest.mark.parametrize(
    ("reason", "said", "changes"),
    [
        ("counts", "repeated: expected at most 61000000 in 60000 ms", {"repeated": MOST + 1}),
        ("counts", "shadow.n", {"shadow": Hits(MOST + 1, 0)}),
        ("counts", "rejected", {"rejected": {"nan": MOST, "shape": 1}}),
        ("counts", "outcomes[pick_ok]", {"outcomes": {"correct": Hits(MOST, 1), "pick_ok": Hits(MOST + 1, 1)}}),
        ("counts", "correct_by_confidence", {"correct_by_confidence": pack([MOST, 1] + [0] * 18)}),
        ("counts", "cells: expected a sum of at most 81950", {"cells": pack([10, 10, 10 * 8194])}),
        ("edges", "cells: expected 3 cells, as of the channels of", {"cells": pack([1, 2])}),
    ],
)
def test_more_than_any_device_can_do_in_so_long_is_refused_and_never_merged(
    engine: sa.Engine, reason: str, said: str, changes: dict[str, Any]
) -> None:
    commit(engine, [_message(1, wire.report_bytes(1, **changes)), _message(2, wire.report_bytes(2))], KNOWN)
    with engine.connect() as connection:
        (one,) = refusals.since(connection, 0)
        n = connection.execute(sa.select(telemetry.rollups.c.n)).scalars().all()
        (spool,) = connection.execute(sa.select(telemetry.spools.c.high_water)).scalars()
    assert (one.reason, one.times, n, spool) == (reason, 1, [10, 10, 10], 2)
    assert one.said.startswith("report.window.")
    assert said in one.said


def test_as_much_as_a_device_can_do_is_counted(engine: sa.Engine) -> None:
    most = {
        "n": MOST, "repeated": MOST, "shadow": Hits(MOST, MOST), "rejected": {"nan": MOST - 1, "shape": 1},
        "outcomes": {"correct": Hits(MOST, 0), "pick_ok": Hits(MOST, 1)}, "cells": pack([10, 10, 10 * 8192]),
        "correct_by_confidence": pack([MOST - 1, 1] + [0] * 18),
    }  # fmt: skip
    commit(engine, [_message(1, wire.report_bytes(1, **most)), _message(2, wire.report_bytes(2, cells=b""))], KNOWN)
    with engine.connect() as connection:
        assert refusals.totals(connection) == {}
        assert connection.execute(sa.select(telemetry.rollups.c.n)).scalars().all() == [MOST + 10] * 3
