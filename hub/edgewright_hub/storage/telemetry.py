"""`telemetry.db`: what devices reported. Written by ingest, in one transaction a batch, and
shortened by retention; read by everybody.

Times are UTC milliseconds. `digest` of a window and a rollup is the first 16 hex digits of the package digest, as on
the wire. Packed columns of windows and device_hours: `cells` are varints of all channels (binning.unpack), `latency*`
sparse grid counts (binning.unpack_grid); those of rollups are as `histograms` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table, Text, UniqueConstraint

from .store import NAMING, Document, Id, migrate, open_engine

metadata: Final = sa.MetaData(naming_convention=NAMING)

# What of each spool is counted: everything up to high_water, and high_water + 1 + i for each bit i of the mask.
spools: Final = Table(
    "spools",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("spool_id", String(16), primary_key=True),
    Column("high_water", BigInteger, nullable=False),
    Column("mask", String(16), nullable=False),  # hexadecimal: no database has an unsigned 64-bit integer
    Column("lost", BigInteger, nullable=False),  # numbers that a restored hub will never see
    Column("first_ms", BigInteger, nullable=False),
    Column("renewed_ms", BigInteger),  # when the device was told to begin a new spool: it was restored or cloned
)

windows: Final = Table(
    "windows",
    metadata,
    Column("id", Id, primary_key=True),
    Column("device", String(63), nullable=False),
    Column("spool_id", String(16), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("arrived_ms", BigInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("placed", String(8), nullable=False),  # start_ms is of the device's clock ("wall") or of ours ("arrival")
    Column("mono_start_ms", BigInteger, nullable=False),
    Column("mono_end_ms", BigInteger, nullable=False),
    Column("boot_id", String(16), nullable=False),
    Column("cohort", String(64), nullable=False),
    Column("digest", String(16), nullable=False),
    Column("variant", String(32), nullable=False),
    Column("context", String(64), nullable=False),
    Column("edge_hash", String(16), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("rollout", String(64), nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("n_monitored", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("labels_n", BigInteger, nullable=False),
    Column("labels_wrong", BigInteger, nullable=False),
    Column("latency_total", LargeBinary, nullable=False),
    Column("cells", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),  # the report as it came; contracts.report.decode_report reads it
    Column("next_due_s", BigInteger, nullable=False, server_default="0"),
    Column("repeated", BigInteger, nullable=False, server_default="0"),
    Column("latency_run", LargeBinary, nullable=False),
    Column("input_age", LargeBinary, nullable=False),
    Column("outcomes", Document, nullable=False, server_default="{}"),  # {name: [n, hits]}
    Column("confidence", LargeBinary, nullable=False),  # `correct_by_confidence`: varints of n of each bin, then hits
    Column("shadow_n", BigInteger, nullable=False, server_default="0"),
    Column("shadow_agree", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("device", "spool_id", "seq"),
    Index(None, "device", "digest", "start_ms"),
    Index(None, "start_ms", "device", "n", "errors"),  # covers the last hour of all devices, without their cells
    sqlite_autoincrement=True,  # readers keep cursors: an id must never come back after retention deleted it
)

# Sums over all devices of a cohort (its fleet), one row for each tier width and bucket start. Merged at ingest, exact.
rollups: Final = Table(
    "rollups",
    metadata,
    Column("tier_s", Integer, primary_key=True),
    Column("t0_ms", BigInteger, primary_key=True),
    Column("cohort", String(64), primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("variant", String(32), primary_key=True),
    Column("context", String(64), primary_key=True),
    Column("edge_hash", String(16), primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("windows", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("n_monitored", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("labels_n", BigInteger, nullable=False),
    Column("labels_wrong", BigInteger, nullable=False),
    Column("latency_total", LargeBinary, nullable=False),
    Column("cells", LargeBinary, nullable=False),
)

# Sums of one device's hour, in which its windows begin: from `windows`, somewhat later (ingest.device_hours).
device_hours: Final = Table(
    "device_hours",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("t0_ms", BigInteger, primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("variant", String(32), primary_key=True),
    Column("context", String(64), primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("windows", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("n_monitored", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("labels_n", BigInteger, nullable=False),
    Column("labels_wrong", BigInteger, nullable=False),
    Column("repeated", BigInteger, nullable=False),
    Column("shadow_n", BigInteger, nullable=False),
    Column("shadow_agree", BigInteger, nullable=False),
    Column("latency_total", LargeBinary, nullable=False),
    Column("outcomes", Document, nullable=False, server_default="{}"),  # as of windows, and so is `confidence`
    Column("confidence", LargeBinary, nullable=False),
    Index(None, "t0_ms"),
)

devices: Final = Table(
    "devices",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("birth", Document),  # the last birth; null before the first
    Column("birth_ms", BigInteger),
    Column("online", Boolean, nullable=False),
    Column("boot_id", String(16), nullable=False),
    Column("connection", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("next_due_ms", BigInteger),  # silence after this means something
    Column("desired_rev", BigInteger, nullable=False, server_default="0"),  # that it held at its last birth
    # Since it first spoke: never less, although retention removes the windows.
    Column("windows", BigInteger, nullable=False, server_default="0"),
    Column("inferences", BigInteger, nullable=False, server_default="0"),
    # What its newest window had run; null before the first.
    Column("digest", String(16)),
    Column("variant", String(32)),
    Column("phase", String(16)),
    Column("rollout", String(64)),
    Column("birth_mark", String(33), nullable=False, server_default=""),  # of `birth`, as acknowledgements name it
    Column("boots", Document),  # ids that its births told of, the newest last
    Column("cloned_ms", BigInteger),  # when a boot last came back after another: two machines run as this device
    Index(None, "last_seen_ms", "online"),
)

events: Final = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True),
    Column("device", String(63), nullable=False),
    Column("spool_id", String(16), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("arrived_ms", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),  # of the device's clock, or of arrival where it had none
    Column("boot_id", String(16), nullable=False),
    Column("mono_ms", BigInteger, nullable=False),
    Column("model", String(63), nullable=False),
    Column("digest", String(64), nullable=False),  # whole, or ""
    Column("variant", String(32), nullable=False),
    Column("rollout", String(64), nullable=False),
    Column("before", String(32), nullable=False),
    Column("after", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("failure", String(16)),  # model | link | power | disk | hub | operator
    Column("attempt", BigInteger, nullable=False),
    Column("log", Text, nullable=False),
    UniqueConstraint("device", "spool_id", "seq"),
    Index(None, "rollout", "id"),
    Index(None, "arrived_ms"),
    sqlite_autoincrement=True,
)

# Boots that ended without sealing their open window, as the births after them say: those counts are known to be lost.
interruptions: Final = Table(
    "interruptions",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("boot_id", String(16), primary_key=True),
    Column("open_since_mono_ms", BigInteger, nullable=False),
    Column("told_ms", BigInteger, nullable=False),
)

# What was refused and why: the newest of each device, for a month.
dead_letters: Final = Table(
    "dead_letters",
    metadata,
    Column("id", Id, primary_key=True),
    Column("arrived_ms", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),  # its first 4 KiB
    Column("device", String(63), nullable=False, server_default=""),  # "" of a topic that is no device's
    Index(None, "device", "id"),
    Index(None, "arrived_ms"),
    sqlite_autoincrement=True,
)

# How often, since the hub first ran: never less, although dead letters go.
refusals: Final = Table(
    "refusals",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("reason", String(16), primary_key=True),  # ingest.refusals.Reason
    Column("count", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("said", Text, nullable=False),  # of the last one
    Index(None, "last_ms"),
)

# How far those have come who make rows of this database from others of it.
cursors: Final = Table(
    "cursors",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
)


def open_telemetry(place: Path | str) -> sa.Engine:
    """The engine of telemetry.db (path) or of a server (URL), at the newest schema."""
    engine = open_engine(place, schema="telemetry")
    migrate(engine, metadata, "telemetry")
    return engine
