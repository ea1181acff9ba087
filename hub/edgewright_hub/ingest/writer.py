"""The one writer of telemetry.db: a batch of messages in, one transaction, and the answers that it makes due.

`commit` returns only after the transaction is durable in the sense of telemetry.db, so whatever is acknowledged after
it is counted. It raises only when the database itself fails (locked, disk full); then nothing of the batch is counted
and the same batch may be given again. A message that breaks a transaction in any other way is refused alone. It keeps
nothing between two batches. benchmarks/ingest.py says what a report costs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from ..storage import telemetry
from ..storage.store import away, fill, upsert
from .counting import Spool
from .ingest import WINDOW, Device, Known, Ledger, keys
from .messages import Batch, Message, read
from .refusals import LETTERS_EACH, LETTERS_KEPT, Reason, Tally
from .rollups import ROLLUP_KEY, SUMMED, Rollup, RollupKey
from .turns import Answer

_CHUNK: Final = 500  # devices in one SELECT
_ROLLUPS: Final = 50  # rollups in one SELECT: 8 columns of a key each
_ROLLUP: Final = (*ROLLUP_KEY, *SUMMED, "latency_total", "cells")
_SPOOL: Final = ("device", "spool_id", "high_water", "mask", "lost", "first_ms")
_DEVICE: Final = (
    "device", "online", "boot_id", "connection", "last_seen_ms", "next_due_ms", "windows", "inferences", "digest",
    "variant", "phase", "rollout", "birth_mark",
)  # fmt: skip
_BORN: Final = ("boots", "cloned_ms")
_device_row: Final = attrgetter(*_DEVICE)
_LOG = logging.getLogger(__name__)


def commit(engine: sa.Engine, messages: Sequence[Message], known: Known | Callable[[str], str]) -> list[Answer]:
    """Count the messages, in their order, in one transaction; `known` may be `Known.cohort_of` alone. Raises what
    sqlalchemy does when a database is `away`, nothing else."""
    known = known if isinstance(known, Known) else Known(known)
    try:
        return _commit(engine, read(messages), known)
    except Exception as error:
        if away(error):
            raise
        if len(messages) == 1:
            _LOG.exception("a message on %s broke its transaction", messages[0].topic[:120])
            return _commit(engine, _broken(messages[0], error), known)
    answers: dict[tuple[str, str], Answer] = {}
    for message in messages:
        for answer in commit(engine, [message], known):
            key = (answer.device, answer.spool_id)
            answers[key] = answer.behind(answers.get(key))
    return list(answers.values())


def tell(engine: sa.Engine, noted: Iterable[tuple[str, Reason, str, int]]) -> None:
    """Count what was refused before it became a message: (device, reason, what was said, when)."""
    refused: dict[tuple[str, Reason], Tally] = {}
    for device, reason, said, at_ms in noted:
        tally = refused.setdefault((device, reason), Tally(0, at_ms, at_ms, ""))
        tally.count, tally.last_ms, tally.said = tally.count + 1, at_ms, said[:1024]
    with engine.begin() as connection:
        _write_refusals(connection, refused)


def _broken(message: Message, error: Exception) -> Batch:
    batch = read([message])
    batch.items[0].refuse("broken", f"{type(error).__name__}: {error}")
    return batch


def _commit(engine: sa.Engine, batch: Batch, known: Known) -> list[Answer]:
    with engine.begin() as connection:
        ledger = _load(connection, batch, known)
        for item in batch.items:
            ledger.take(item)
        rollups = _load_rollups(connection, ledger.rollup_keys())
        changed = ledger.add(rollups, batch.items)
        _write(connection, ledger)
        rows = [rollups[key].row(key) for key in sorted(changed)]
        fill(connection, telemetry.rollups, _ROLLUP, rows, keys=ROLLUP_KEY)
    return list(ledger.answers.values())


def _load(connection: sa.Connection, batch: Batch, known: Known) -> Ledger:
    wanted = keys(batch.items)
    ledger = Ledger(known, batch.columns)
    d, s = telemetry.devices.c, telemetry.spools.c
    for some in _chunks(sorted(wanted.devices), _CHUNK):
        for row in connection.execute(sa.select(*(d[name] for name in _DEVICE)).where(d.device.in_(some))).all():
            ledger.devices[row[0]] = Device(*row)
        spools = sa.select(s.device, s.spool_id, s.high_water, s.mask, s.lost, s.renewed_ms)
        found = connection.execute(spools.where(s.device.in_(some))).all()
        for device, spool_id, high_water, mask, lost, renewed_ms in found:
            ledger.spools[device, spool_id] = Spool(high_water, int(mask, 16), lost)
            if renewed_ms is not None:
                ledger.renewed.add((device, spool_id))
    for some in _chunks(sorted(wanted.born), _CHUNK):
        born = sa.select(d.device, *(d[name] for name in _BORN)).where(d.device.in_(some))
        for row in connection.execute(born):
            ledger.births[row.device] = {name: getattr(row, name) for name in _BORN}
    return ledger


def _load_rollups(connection: sa.Connection, wanted: Iterable[RollupKey]) -> dict[RollupKey, Rollup]:
    found: dict[RollupKey, Rollup] = {}
    key = sa.tuple_(*(telemetry.rollups.c[name] for name in ROLLUP_KEY))
    for some in _chunks(sorted(wanted), _ROLLUPS):
        for row in connection.execute(sa.select(telemetry.rollups).where(key.in_(some))).mappings():
            tier_s, t0_ms, cohort, digest, variant, context, edge_hash, phase = (row[name] for name in ROLLUP_KEY)
            found[tier_s, t0_ms, cohort, digest, variant, context, edge_hash, phase] = Rollup.of(row)
    return found


def _chunks(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _write(connection: sa.Connection, ledger: Ledger) -> None:
    fill(connection, telemetry.windows, WINDOW, ledger.windows)
    if ledger.events:
        connection.execute(telemetry.events.insert(), ledger.events)
    if ledger.dead_letters:
        connection.execute(telemetry.dead_letters.insert(), ledger.dead_letters)
        _bound_letters(connection, {row["device"] for row in ledger.dead_letters})
    _write_refusals(connection, ledger.refused)
    spools = [
        (*key, spool.high_water, f"{spool.mask:016x}", spool.lost, first_ms)
        for key, first_ms in sorted(ledger.changed_spools.items())
        for spool in [ledger.spools[key]]
    ]
    fill(connection, telemetry.spools, _SPOOL, spools, keys=("device", "spool_id"), keep=("first_ms",))
    for (device, spool_id), at_ms in ledger.newly_renewed.items():
        s = telemetry.spools.c
        connection.execute(
            telemetry.spools.update().where(s.device == device, s.spool_id == spool_id).values(renewed_ms=at_ms)
        )
    lost = list(ledger.interruptions.values())
    upsert(connection, telemetry.interruptions, lost, keys=["device", "boot_id"], keep=["told_ms"])
    devices = [_device_row(ledger.devices[device]) for device in sorted(ledger.changed_devices)]
    fill(connection, telemetry.devices, _DEVICE, devices, keys=("device",))
    for device in sorted(ledger.changed_births):
        mine = telemetry.devices.update().where(telemetry.devices.c.device == device)
        connection.execute(mine.values(**ledger.births[device]))


def _bound_letters(connection: sa.Connection, devices: set[str]) -> None:
    """The newest of each device, and of all."""
    c = telemetry.dead_letters.c
    for device in sorted(devices):
        kept = sa.select(c.id).where(c.device == device).order_by(c.id.desc()).offset(LETTERS_EACH).limit(1)
        last = connection.execute(kept).scalar()
        if last is not None:
            connection.execute(telemetry.dead_letters.delete().where(c.device == device, c.id <= last))
    newest = sa.select(sa.func.max(c.id)).scalar_subquery()
    connection.execute(telemetry.dead_letters.delete().where(c.id <= newest - LETTERS_KEPT))


def _write_refusals(connection: sa.Connection, refused: dict[tuple[str, Reason], Tally]) -> None:
    if not refused:
        return
    r = telemetry.refusals.c
    devices = sorted({device for device, _ in refused})
    before = {
        (device, reason): (count, first_ms)
        for some in _chunks(devices, _CHUNK)
        for device, reason, count, first_ms in connection.execute(
            sa.select(r.device, r.reason, r["count"], r.first_ms).where(r.device.in_(some))
        )
    }
    rows = []
    for (device, reason), tally in sorted(refused.items()):
        count, first_ms = before.get((device, reason), (0, tally.first_ms))
        said = tally.said.replace("\0", "\N{REPLACEMENT CHARACTER}")
        rows.append((device, reason, count + tally.count, first_ms, tally.last_ms, said))
    names = ("device", "reason", "count", "first_ms", "last_ms", "said")
    fill(connection, telemetry.refusals, names, rows, keys=("device", "reason"))
