"""Delayed labels and outcomes of each device's day, kept for as long as hub.db: windows go after a day, labels may come
after months.

They are counted by arrival, from telemetry.windows behind a cursor that moves in the transaction that adds them: each
exactly once. Sums are exact in any order, and stop at 2**40, the most that a packed cell holds. Cost: a window without
labels costs its place in an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import Cells, pack, unpack
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.report import CONFIDENCE_BINS

from ..storage import control, telemetry
from ..storage.store import upsert

CURSOR: Final = "accuracy.windows"
EVERY_S: Final = 30.0
BATCH: Final = 2000
DAY_MS: Final = 24 * 3600_000
KEY: Final = ("source", "device", "digest", "variant", "context", "day_ms")

Source = Literal["device", "import"]
Outcomes = dict[str, tuple[int, int]]  # name → n, hits


class Key(NamedTuple):
    source: Source
    device: str
    digest: str
    variant: str
    context: str
    day_ms: int


class Labels:
    """Counts of one key: outcomes by name, and `correct` by tenth of confidence, int64[2, 10]."""

    def __init__(self, outcomes: Mapping[str, Iterable[int]] | None = None, confidence: bytes = b"") -> None:
        self.outcomes: Outcomes = {}
        self.confidence: Cells = np.zeros((2, CONFIDENCE_BINS), np.int64)
        self.add(outcomes or {}, confidence)

    def add(self, outcomes: Mapping[str, Iterable[int]], confidence: bytes) -> None:
        for name, (n, hits) in outcomes.items():
            before = self.outcomes.get(name, (0, 0))
            self.outcomes[name] = before[0] + n, before[1] + hits
        if confidence:
            self.confidence += unpack(confidence, count=2 * CONFIDENCE_BINS).reshape(2, CONFIDENCE_BINS)

    def columns(self) -> dict[str, Any]:
        packed = pack(np.minimum(self.confidence, MAX_COUNT)) if self.confidence.any() else b""
        outcomes = {name: [min(one, MAX_COUNT) for one in pair] for name, pair in self.outcomes.items()}
        return {"outcomes": outcomes, "confidence": packed}


def tick(control_engine: sa.Engine, telemetry_engine: sa.Engine) -> bool:
    """Add what came since. True when there may be more."""
    c, w = control.cursors.c, telemetry.windows.c
    with control_engine.connect() as connection:
        since = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
    labelled = sa.or_(w.labels_n > 0, sa.cast(w.outcomes, sa.Text) != "{}")
    columns = (w.id, w.device, w.digest, w.variant, w.context, w.arrived_ms, w.placed, w.outcomes, w.confidence)
    with telemetry_engine.connect() as connection:
        last = connection.execute(sa.select(sa.func.max(w.id)).where(w.id > since)).scalar()
        if last is None:
            return False
        wanted = sa.select(*columns).where(w.id > since, w.id <= last, labelled, w.phase != "shadow")
        rows = connection.execute(wanted.order_by(w.id).limit(BATCH)).all()
    more = len(rows) == BATCH
    found: dict[Key, Labels] = {}
    for row in rows:
        source: Source = "import" if row.placed == "import" else "device"
        day = row.arrived_ms - row.arrived_ms % DAY_MS
        key = Key(source, row.device, row.digest, row.variant, row.context, day)
        found.setdefault(key, Labels()).add(row.outcomes, row.confidence)
    with control_engine.begin() as connection:
        _add(connection, found)
        position = rows[-1].id if more else last
        upsert(connection, control.cursors, [{"name": CURSOR, "position": position}], keys=["name"])
    return more


def _add(connection: sa.Connection, found: Mapping[Key, Labels]) -> None:
    if not found:
        return
    t = control.label_counts.c
    days, devices = sorted({key.day_ms for key in found}), sorted({key.device for key in found})
    for some in (devices[at : at + 500] for at in range(0, len(devices), 500)):
        known = sa.select(control.label_counts).where(t.device.in_(some), t.day_ms.in_(days))
        for row in connection.execute(known):
            if (mine := found.get(Key(*(getattr(row, name) for name in KEY)))) is not None:
                mine.add(row.outcomes, row.confidence)
    rows = [{**key._asdict(), **labels.columns()} for key, labels in sorted(found.items(), key=lambda pair: pair[0])]
    upsert(connection, control.label_counts, rows, keys=KEY)
