"""Streams as hub.db keeps them, and what of them is in memory.

In memory are all streams, also ended ones, of the digests that some device runs or ran within a day (`Watch.forget`).
Those of others stay in hub.db for 30 days after they ended: a device that goes back to a release finds its baseline
there. Cost of reading: about 50 µs a stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np
import sqlalchemy as sa

from ..storage import control
from .watch import GroupKey, Key, Watch

FORGET_MS: Final = 30 * 24 * 3600_000  # after this a stream that ended is not kept any more


def running(connection: sa.Connection) -> set[str]:
    """Digests with a stream that has not ended."""
    d = control.drift.c
    query = sa.select(d.digest).where(d.scope == "device", d.verdict != "ended").distinct()
    return set(connection.execute(query).scalars())


def cohorts(connection: sa.Connection) -> set[Key]:
    """Streams of cohorts that have not ended."""
    d = control.drift.c
    query = sa.select(*(d[name] for name in Key._fields)).where(d.scope == "cohort", d.verdict != "ended")
    return {Key(*row) for row in connection.execute(query)}


def remember(connection: sa.Connection, watch: Watch, digests: set[str]) -> None:
    """Read all streams of these digests, of which none is in memory, and what is known of their dispersion."""
    d, s = control.drift.c, control.drift_dispersion.c
    columns = (*(d[name] for name in Key._fields), d.model, d.verdict, d.kept)
    mine = sa.select(*columns).where(d.scope == "device", d.kept.is_not(None), d.digest.in_(digests))
    for row in connection.execute(mine.order_by(d.updated_ms)).all():
        key = Key(*row[: len(Key._fields)])
        group = watch.group(key.group)
        if group is None:
            continue
        group.streams.unpack(group.baselines.enter(key.subject, watch.cohorts_of(key.subject)[0]), row.kept)
        if row.verdict != "ended":
            watch.running.note(key.subject, row.model, key.digest)
    for row in connection.execute(sa.select(control.drift_dispersion).where(s.digest.in_(digests))):
        group = watch.groups.get(GroupKey(row.digest, row.variant, row.context, row.part))
        if group is not None:
            group.unpack_dispersion(row.kept)
    read = {key for key in watch.groups if key.digest in digests}
    for one in read:
        watch.groups[one].baselines.pool()
    watch.decide_cohorts(read)


def packed(watch: Watch, keys: Iterable[Key]) -> dict[Key, bytes]:
    """The streams of devices among these, as bytes."""
    groups: dict[GroupKey, list[Key]] = defaultdict(list)
    for key in keys:
        if key.scope == "device":
            groups[key.group].append(key)
    out: dict[Key, bytes] = {}
    for group_key, mine in groups.items():
        streams = watch.groups[group_key].streams
        at = np.array([streams.index[key.subject] for key in mine])
        out.update(zip(mine, streams.pack(at), strict=True))
    return out


def forget(connection: sa.Connection, now_ms: int) -> None:
    """Remove what ended too long ago, and the dispersion of digests that are not known any more."""
    d = control.drift.c
    connection.execute(control.drift.delete().where(d.verdict == "ended", d.updated_ms < now_ms - FORGET_MS))
    digests = sa.select(d.digest).distinct()
    connection.execute(control.drift_dispersion.delete().where(control.drift_dispersion.c.digest.not_in(digests)))
