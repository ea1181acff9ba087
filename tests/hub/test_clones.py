"""A copied disk: two machines that report as one device are an event, told once."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from edgewright_agent.agent import Agent
from edgewright_contracts import event, topics
from edgewright_contracts.errors import ContractError
from edgewright_hub.ingest.clones import KEPT, QUIET_MS, followed
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import telemetry
from sim import wire
from sim.broker import SimBroker, SimTransport

NOW = 1_800_000_000_000


def told(engine: sa.Engine) -> list[str]:
    e = telemetry.events.c
    with engine.connect() as connection:
        return list(connection.execute(sa.select(e.reason).where(e.after == "cloned")).scalars())


def births(*boots: str, at_ms: int = NOW) -> list:
    numbers = itertools.count(1)
    return [
        wire.message("cam-1", "birth", wire.birth_bytes("cam-1", boot=boot * 16, connection=next(numbers)), at_ms + n)
        for n, boot in enumerate(boots)
    ]


@pytest.mark.parametrize(
    ("boots", "known"),
    [("a", 0), ("aaaa", 0), ("abcde", 0), ("aab", 0), ("aba", 1), ("abababab", 1), ("abcabc", 1), ("abcb", 1)],
)
def test_a_boot_that_comes_back_after_another_is_told_once(telemetry_engine: sa.Engine, boots: str, known: int) -> None:
    for message in births(*boots):
        commit(telemetry_engine, [message], lambda _: "default")
    assert len(told(telemetry_engine)) == known


def test_it_is_told_again_only_after_a_quiet_week(telemetry_engine: sa.Engine) -> None:
    for day in range(20):
        commit(telemetry_engine, births("a", "b", at_ms=NOW + day * 86_400_000), lambda _: "default")
    assert len(told(telemetry_engine)) == 1
    later = NOW + 20 * 86_400_000 + QUIET_MS
    commit(telemetry_engine, births("a", "b", at_ms=later), lambda _: "default")
    assert len(told(telemetry_engine)) == 2


def test_a_birth_that_the_broker_repeats_is_no_clone_and_what_is_remembered_is_bounded(
    telemetry_engine: sa.Engine,
) -> None:
    first, second = births("a", "b")
    commit(telemetry_engine, [first, second, first._replace(repeated=True)], lambda _: "default")
    assert told(telemetry_engine) == []
    boots: list[str] = []
    for n in range(100):
        boots, came_back = followed(boots, f"{n:016x}")
        assert not came_back
    assert len(boots) == KEPT


def test_two_real_agents_with_one_identity_are_told_of(telemetry_engine: sa.Engine, tmp_path: Path) -> None:
    broker, writer = SimBroker(), threading.Lock()

    def take(device: str, kind: topics.Kind, body: bytes) -> None:
        with writer:  # a hub has one, and agents publish from threads of their own
            commit(telemetry_engine, [wire.message(device, kind, body, NOW)], lambda _: "default")

    broker.subscribe(take)
    homes = [tmp_path / name for name in ("original", "copy")]
    for home in homes:
        (home / "identity").mkdir(parents=True)
        said = b'{"device": "cam-1", "broker": {"host": "127.0.0.1", "port": 1}, "repo": "http://127.0.0.1:1/"}'
        (home / "identity" / "hub.json").write_bytes(said)
        (home / "identity" / "root.json").write_bytes(b"{}")
    links = [SimTransport(broker, "cam-1") for _ in homes]
    with (
        Agent(homes[0], transport=links[0], runtimes=[]) as one,
        Agent(homes[1], transport=links[1], runtimes=[]) as two,
    ):
        for agent, link in ((one, links[0]), (two, links[1]), (one, links[0])):
            if link._connection > 0:  # takes over, as at a broker
                link.cut()
                link.connect()
            until(telemetry_engine, agent.boot_id)
        found = told(telemetry_engine)
    assert len(found) == 1
    assert one.boot_id in found[0]
    assert two.boot_id in found[0]


def until(engine: sa.Engine, boot_id: str) -> None:
    d = telemetry.devices.c
    for _ in range(2000):
        with engine.connect() as connection:
            boots = connection.execute(sa.select(d.boots)).scalar()
        if boots and boots[-1] == boot_id:
            return
    raise AssertionError("no birth came")


def test_the_event_reads_as_one_of_a_device_but_for_its_number(telemetry_engine: sa.Engine) -> None:
    commit(telemetry_engine, births("a", "b", "a"), lambda _: "default")
    with telemetry_engine.connect() as connection:
        row = connection.execute(sa.select(telemetry.events)).one()
    assert row.seq < 0
    assert len(row.reason) <= 1024
    with pytest.raises(ContractError):  # so no device's own number can meet it
        event.encode_event(
            event.Event(
                spool_id=row.spool_id, seq=row.seq, boot_id=row.boot_id, mono_ms=1, wall_ms=None, before="a", after="b"
            )
        )
