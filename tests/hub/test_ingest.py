from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts import topics
from edgewright_contracts.binning import pack
from edgewright_contracts.report import Hits
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.turns import Answer
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.histograms import cells_of
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire

NOW = 1_800_000_100_000
DEV = "dev-1"


@pytest.fixture
def telemetry_engine(stores: Places) -> Iterator[sa.Engine]:
    """On SQLite and on PostgreSQL."""
    engine = open_telemetry(stores.telemetry)
    yield engine
    engine.dispose()


def cohort_of(device: str) -> str:
    return "plant" if device.startswith("dev") else "default"


def message(kind: topics.Kind, body: bytes, *, device: str = DEV, now: int = NOW, **flags: bool) -> Message:
    return Message(topics.topic(device, kind), body, now, **flags)


def report(seq: int, *, device: str = DEV, **changes: Any) -> Message:
    changes = {"wall_start_ms": NOW - 100_000, **changes}
    return message("report", wire.report_bytes(seq, **changes), device=device)


def take(engine: sa.Engine, *messages: Message) -> dict[str, Answer]:
    """By spool id."""
    return {answer.spool_id: answer for answer in commit(engine, messages, cohort_of)}


def rows(engine: sa.Engine, table: sa.Table) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(table)))


def total(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.coalesce(sa.func.sum(telemetry.windows.c.n), 0))).scalar_one()


def test_a_report_is_a_window_and_adds_to_each_tier(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1, errors={"timeout": 2}, outcomes={"correct": Hits(5, 4)}))
    take(telemetry_engine, report(2), report(1, device="dev-2"))
    (first, *_) = rows(telemetry_engine, telemetry.windows)
    assert (first.n, first.errors, first.labels_n, first.labels_wrong) == (10, 2, 5, 1)
    assert (first.placed, first.start_ms, first.cohort) == ("wall", 1_800_000_000_000, "plant")
    sums = rows(telemetry_engine, telemetry.rollups)
    assert {r.tier_s for r in sums} == {60, 300, 3600}
    for one in sums:
        assert (one.windows, one.n, one.errors, one.cohort) == (3, 30, 2, "plant")
        cells = cells_of(one.cells)
        assert cells is not None
        assert cells.tolist() == [3, 6, 21]
        assert one.t0_ms % (one.tier_s * 1000) == 0


def test_a_window_goes_only_to_tiers_at_least_as_wide_and_the_widest_takes_all(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1, mono_end_ms=61_000), report(2, mono_end_ms=86_400_000, digest="f" * 16))
    tiers = {(r.digest, r.tier_s) for r in rows(telemetry_engine, telemetry.rollups)}
    assert tiers == {(wire.DIGEST, 300), (wire.DIGEST, 3600), ("f" * 16, 3600)}


def test_a_shadow_run_is_summed_apart(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1), report(2, phase="shadow"))
    assert {(r.phase, r.n) for r in rows(telemetry_engine, telemetry.rollups)} == {("normal", 10), ("shadow", 10)}


def test_what_comes_again_is_acknowledged_and_not_counted(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1), report(2), report(1))
    answers = take(telemetry_engine, report(2), report(1))  # as after a kill between commit and acknowledgement
    assert total(telemetry_engine) == 20
    assert answers[wire.SPOOL].ack.high_water == 2


def test_reports_and_events_share_one_sequence_in_any_order(telemetry_engine: sa.Engine) -> None:
    answers = take(
        telemetry_engine, message("event", wire.event_bytes(3)), report(1), message("event", wire.event_bytes(2))
    )
    assert answers[wire.SPOOL].ack.high_water == 3
    answers = take(telemetry_engine, message("event", wire.event_bytes(2)), message("event", wire.event_bytes(3)))
    assert len(rows(telemetry_engine, telemetry.events)) == 2


def test_equal_numbers_of_two_devices_or_two_spools_are_different_reports(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1), report(1, device="dev-2"), report(1, spool="6" * 16))
    assert total(telemetry_engine) == 30


def test_a_restored_hub_takes_up_where_the_device_is(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1))
    answers = take(telemetry_engine, report(1000), report(999))
    (spool,) = rows(telemetry_engine, telemetry.spools)
    assert (spool.high_water, spool.lost) == (936, 935)
    assert 999 in answers[wire.SPOOL].ack
    assert 1000 in answers[wire.SPOOL].ack
    assert total(telemetry_engine) == 30


def test_a_cloned_spool_is_told_to_begin_a_new_one_and_never_freed(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV)), report(1), report(2), report(3))
    born = message("birth", wire.birth_bytes(DEV, next_seq=3, boot="c" * 16))
    answer = take(telemetry_engine, born)[wire.SPOOL]
    assert answer.renew
    assert answer.at_once
    # What it sends under the old id is neither counted nor freed; it comes again under the new id.
    answer = take(telemetry_engine, report(3, n=99), report(4, n=99))[wire.SPOOL]
    assert answer.renew
    assert total(telemetry_engine) == 30
    (spool,) = rows(telemetry_engine, telemetry.spools)
    assert spool.renewed_ms == NOW
    # A later birth of the same spool, beyond what was counted, changes nothing.
    assert take(telemetry_engine, message("birth", wire.birth_bytes(DEV, next_seq=9, boot="d" * 16)))[wire.SPOOL].renew
    new = "7" * 16
    answers = take(telemetry_engine, report(1, spool=new, n=99), report(2, spool=new, n=99))
    assert not answers[new].renew
    assert total(telemetry_engine) == 30 + 198


def test_a_rewound_spool_is_seen_also_when_the_status_comes_before_the_birth(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV)), report(1))
    take(telemetry_engine, message("status", wire.status_bytes(online=True, boot="c" * 16)))
    assert take(telemetry_engine, message("birth", wire.birth_bytes(DEV, next_seq=1, boot="c" * 16)))[wire.SPOOL].renew


def test_an_old_birth_that_the_broker_delivers_again_is_no_clone(telemetry_engine: sa.Engine) -> None:
    born = wire.birth_bytes(DEV, next_seq=1)
    take(telemetry_engine, message("birth", born), report(1), report(2))
    again = take(telemetry_engine, message("birth", born, repeated=True))
    assert not again[wire.SPOOL].renew
    assert not take(telemetry_engine, message("birth", born))[wire.SPOOL].renew  # the device's own retransmission
    assert again[wire.SPOOL].at_once
    assert again[wire.SPOOL].ack.high_water == 2


def test_a_birth_of_a_spool_that_stands_where_it_was_is_acknowledged_at_once(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1), report(2))
    answer = take(telemetry_engine, message("birth", wire.birth_bytes(DEV, next_seq=3)))[wire.SPOOL]
    assert (answer.at_once, answer.renew, answer.ack.high_water) == (True, False, 2)


def test_every_ack_names_the_newest_birth_that_is_committed(telemetry_engine: sa.Engine) -> None:
    def named(*messages: Message) -> str:
        return take(telemetry_engine, *messages)[wire.SPOOL].ack.birth

    old, new = "b" * 16, "c" * 16
    assert named(report(1)) == ""
    assert named(message("birth", wire.birth_bytes(DEV, boot=old, connection=3, next_seq=2))) == f"{old}.3"
    assert named(report(2)) == f"{old}.3"
    # A status is no birth, and one of the boot that follows says nothing of what that boot's birth will tell.
    assert named(message("status", wire.status_bytes(online=True, boot=new)), report(3)) == f"{old}.3"
    assert named(message("birth", wire.birth_bytes(DEV, boot=new, connection=2, next_seq=4)), report(4)) == f"{new}.2"
    # An earlier connection's birth that comes late is answered with the one in force.
    late = message("birth", wire.birth_bytes(DEV, boot=new, connection=1, next_seq=4), repeated=True)
    assert named(late) == f"{new}.2"


@pytest.mark.parametrize("body", [b"", b"\x00" * 10, b"\xff" * 70_000, b"\x78\x9c" + b"\x00" * 20, b"{}"])
def test_poison_becomes_a_dead_letter_and_stops_nothing(telemetry_engine: sa.Engine, body: bytes) -> None:
    take(
        telemetry_engine,
        report(1),
        *(message(kind, body) for kind in ("report", "event", "birth", "status")),
        report(2),
    )
    assert total(telemetry_engine) == 20
    letters = rows(telemetry_engine, telemetry.dead_letters)
    assert len(letters) == 4
    assert all(letter.reason and len(letter.body) <= 65536 for letter in letters)


def test_a_number_that_can_be_read_of_a_report_that_cannot_is_freed(telemetry_engine: sa.Engine) -> None:
    good = wire.report_bytes(1)
    bad = good.replace(b"synced", b"sinked")
    answers = take(telemetry_engine, message("report", bad), report(2))
    assert answers[wire.SPOOL].ack.high_water == 2
    assert total(telemetry_engine) == 10
    (letter,) = rows(telemetry_engine, telemetry.dead_letters)
    assert "clock" in letter.reason


def test_a_device_that_speaks_for_another_is_a_dead_letter(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes("dev-2"), device="dev-1"))
    (letter,) = rows(telemetry_engine, telemetry.dead_letters)
    assert "dev-1" in letter.reason
    assert rows(telemetry_engine, telemetry.devices) == []


@pytest.mark.parametrize("topic", ["ew/1/dev-1/down/desired", "ew/1/dev-1/up/other", "ew/1/DEV/up/report", "x", ""])
def test_a_topic_that_no_device_publishes_is_a_dead_letter(telemetry_engine: sa.Engine, topic: str) -> None:
    commit(telemetry_engine, [Message(topic, wire.report_bytes(1), NOW)], cohort_of)
    assert len(rows(telemetry_engine, telemetry.dead_letters)) == 1
    assert total(telemetry_engine) == 0


def test_another_width_under_one_edge_hash_keeps_the_window_and_leaves_a_note(telemetry_engine: sa.Engine) -> None:
    answers = take(telemetry_engine, report(1), report(2, cells=pack([1, 1])), report(3))
    assert answers[wire.SPOOL].ack.high_water == 3
    assert total(telemetry_engine) == 30
    assert {r.n for r in rows(telemetry_engine, telemetry.rollups)} == {20}
    assert all("rollup" in letter.reason for letter in rows(telemetry_engine, telemetry.dead_letters))


def test_a_message_that_breaks_its_transaction_is_buried_alone(
    telemetry_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with telemetry_engine.begin() as connection:  # the row is there, the spool does not know of it
        take_row = {c.name: 0 for c in telemetry.windows.c if c.name != "id"}
        texts = {c.name: "" for c in telemetry.windows.c if isinstance(c.type, sa.String)}
        blobs = {c.name: b"" for c in telemetry.windows.c if isinstance(c.type, sa.LargeBinary)}
        key = {"device": DEV, "spool_id": wire.SPOOL, "seq": 2}
        connection.execute(telemetry.windows.insert().values({**take_row, **texts, **blobs, **key}))
    answers = take(telemetry_engine, report(1), report(2), report(3))
    assert answers[wire.SPOOL].ack.high_water == 3
    assert total(telemetry_engine) == 20
    (letter,) = rows(telemetry_engine, telemetry.dead_letters)
    assert "IntegrityError" in letter.reason


def test_a_locked_database_counts_nothing_and_the_batch_may_be_given_again(tmp_path: Path) -> None:
    engine = open_telemetry(tmp_path / "telemetry.db")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
        connection.commit()
    other = sqlite3.connect(tmp_path / "telemetry.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sa.exc.OperationalError):
            take(engine, report(1))
        other.execute("ROLLBACK")
    finally:
        other.close()
    take(engine, report(1))
    assert total(engine) == 10
    engine.dispose()


@pytest.mark.parametrize(
    ("changes", "start_ms", "placed"),
    [
        ({"wall_start_ms": NOW - 60_000}, NOW - 60_000, "wall"),
        ({"wall_start_ms": NOW - 90 * 86_400_000, "clock": "free"}, NOW - 90 * 86_400_000, "wall"),
        ({"wall_start_ms": None, "clock": "unknown"}, NOW - 60_000, "arrival"),
        ({"wall_start_ms": NOW + 200_000}, NOW + 200_000, "wall"),  # a clock that runs a little ahead of ours
        ({"wall_start_ms": NOW - 60_000, "clock": "unknown"}, NOW - 60_000, "arrival"),
        ({"wall_start_ms": 3_000}, NOW - 60_000, "arrival"),  # a clock that was never set
        ({"wall_start_ms": NOW - 366 * 86_400_000, "clock": "free"}, NOW - 60_000, "arrival"),
    ],
)
def test_where_a_window_is_placed(
    telemetry_engine: sa.Engine, changes: dict[str, Any], start_ms: int, placed: str
) -> None:
    take(telemetry_engine, report(1, **changes))
    (row,) = rows(telemetry_engine, telemetry.windows)
    assert (row.start_ms, row.placed) == (start_ms, placed)


@pytest.mark.parametrize(
    ("wall_ms", "at_ms"), [(NOW - 7000, NOW - 7000), (3_000, NOW), (NOW + 400_000, NOW), (None, NOW)]
)
def test_an_event_happened_when_its_device_says_if_its_clock_can_be_right(
    telemetry_engine: sa.Engine, wall_ms: int | None, at_ms: int
) -> None:
    take(telemetry_engine, message("event", wire.event_bytes(1, wall_ms=wall_ms)))
    (row,) = rows(telemetry_engine, telemetry.events)
    assert row.at_ms == at_ms


def _device(engine: sa.Engine) -> Any:
    (row,) = rows(engine, telemetry.devices)
    return row


def test_a_late_will_of_an_older_connection_changes_nothing(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV, connection=3)))
    take(telemetry_engine, message("status", wire.status_bytes(online=False, connection=2)))
    take(telemetry_engine, message("status", wire.status_bytes(online=False, boot="a" * 16, connection=9)))
    assert _device(telemetry_engine).online
    take(telemetry_engine, message("status", wire.status_bytes(online=False, connection=3)))
    assert not _device(telemetry_engine).online


def test_an_older_birth_of_the_same_boot_changes_nothing(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV, connection=3)))
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV, connection=2)))
    assert _device(telemetry_engine).connection == 3


def test_what_the_broker_kept_is_no_sign_of_life(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, message("birth", wire.birth_bytes(DEV)))
    take(telemetry_engine, message("status", wire.status_bytes(online=True), now=NOW + 99, retained=True))
    assert _device(telemetry_engine).last_seen_ms == NOW


def test_a_report_says_when_the_next_is_due(telemetry_engine: sa.Engine) -> None:
    take(telemetry_engine, report(1, next_due_s=300))
    assert _device(telemetry_engine).next_due_ms == NOW + 300_000


def test_a_window_that_comes_late_does_not_say_what_runs_now(telemetry_engine: sa.Engine) -> None:
    old, new = ({"digest": name * 16, "rollout": f"r{name}"} for name in "ab")
    for seq, which, runs in ((1, old, "a"), (3, new, "b"), (2, old, "b"), (4, old, "a")):
        take(telemetry_engine, report(seq, **which))
        row = _device(telemetry_engine)
        assert (row.digest, row.rollout) == (runs * 16, f"r{runs}")
    assert (row.windows, row.inferences) == (4, 40)
