"""`hub.db`: what was decided and who may decide: devices, tokens, packages, rollouts, settings, desired documents,
drift, audit.

Times are UTC milliseconds. Tokens are kept as sha256 of their 32 random bytes; nothing here lets one be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table, Text

from .store import NAMING, Document, Id, migrate, open_engine

metadata: Final = sa.MetaData(naming_convention=NAMING)

devices: Final = Table(
    "devices",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("serial", String(40), nullable=False),  # of the newest certificate, hexadecimal
    Column("key_sha256", String(64), nullable=False, server_default=""),  # of its public key
    Column("state", String(16), nullable=False),  # enrolled | retired
    Column("attributes", Document, nullable=False, server_default="{}"),  # fleet.attributes.Attributes
    Column("held", Boolean, nullable=False, server_default=sa.false()),  # nothing is to change on it
)

# Every one that was signed for a device; hub.db of an earlier release knew only the newest.
certificates: Final = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),  # hexadecimal
    Column("device", String(63), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index(None, "device"),
)

# Devices that may enrol, or ask to, before they did: of a list of serial numbers, or those that wait for a yes.
expected: Final = Table(
    "expected",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("token", String(64), nullable=False),  # the hash of the one that lets it in
    Column("fleet", String(64), nullable=False),
    Column("attributes", Document, nullable=False, server_default="{}"),
    Column("state", String(16), nullable=False),  # listed | waiting | accepted | refused
    Column("key_sha256", String(64), nullable=False, server_default=""),  # of the device that asked
    Column("since_ms", BigInteger, nullable=False),
)

cohorts: Final = Table(
    "cohorts",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("selector", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
)

enrol_tokens: Final = Table(
    "enrol_tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("uses_left", Integer, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("pattern", Text, nullable=False),  # a regular expression that the whole device id must match
    Column("fleet", String(64), nullable=False),
    # open: whoever has it; list: only devices that are `expected` under it; queue: each waits for a person's yes
    Column("kind", String(8), nullable=False, server_default="open"),
)

api_tokens: Final = Table(
    "api_tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("role", String(16), nullable=False),  # viewer | operator | publisher | admin
    Column("name", String(64), nullable=False),
)

packages: Final = Table(
    "packages",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),  # allowed (the owner signs it) | withdrawn (not any more)
    Column("published_ms", BigInteger, nullable=False),
    Column("manifest", Document, nullable=False),
    # What its operator says: candidate | approved | deprecated | revoked (registry.stages).
    Column("stage", String(16), nullable=False, server_default="approved"),
)

rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),  # the `rollout` of desired documents, windows and events
    Column("name", String(63), nullable=False),  # of the package
    Column("state", String(16), nullable=False),
    Column("spec", Document, nullable=False),  # as it was asked for; never changes
    Column("progress", Document, nullable=False),  # what the engine remembers between two ticks
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

desired: Final = Table(
    "desired",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("rev", BigInteger, nullable=False),
    Column("document", Document, nullable=False),  # contracts.desired.Desired as JSON
)

configs: Final = Table(  # rows are only added; the newest of each scope and subject is in force
    "configs",
    metadata,
    Column("version", Id, primary_key=True),
    Column("scope", String(8), nullable=False),  # all | fleet | selector | device
    Column("subject", String(64), nullable=False),  # the fleet, selector or device; "" for all
    Column("settings", Document, nullable=False),  # all that are set there, by key (configuration.KEYS)
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_autoincrement=True,
)

cursors: Final = Table(
    "cursors",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),  # the last id of a telemetry table that was taken into account
)

drift: Final = Table(
    "drift",
    metadata,
    Column("scope", String(8), primary_key=True),  # device | cohort
    Column("subject", String(64), primary_key=True),  # the device's id, or the cohort's name
    Column("digest", String(16), primary_key=True),
    Column("variant", String(32), primary_key=True),
    Column("context", String(64), primary_key=True),
    Column("part", String(16), primary_key=True),  # input | embedding | output | feed
    Column("model", String(63), nullable=False),
    Column("state", Document, nullable=False),  # as people read it
    Column("kept", LargeBinary),  # what a device's stream remembers (drift.memory)
    Column("verdict", String(16), nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

# How in-control windows of a part vary, over all devices (drift.dispersion).
drift_dispersion: Final = Table(
    "drift_dispersion",
    metadata,
    Column("digest", String(16), primary_key=True),
    Column("variant", String(32), primary_key=True),
    Column("context", String(64), primary_key=True),
    Column("part", String(16), primary_key=True),
    Column("kept", LargeBinary, nullable=False),
)

# What operators decided about drift; rows are only added.
drift_decisions: Final = Table(
    "drift_decisions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
    Column("what", String(16), nullable=False),  # budget | accept | undo
    Column("subject", String(64), nullable=False),  # device or cohort; "" for the budget
    Column("reason", Text, nullable=False),
    Column("detail", Document, nullable=False),
    Column("kept", LargeBinary),  # of an acceptance: the baselines that it replaced
    sqlite_autoincrement=True,
)

# What a person is to look at (alerts.alerts).
alerts: Final = Table(
    "alerts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("key", String(200), nullable=False),
    Column("open_key", String(200), unique=True),  # the key while it is open: one at most
    Column("severity", String(8), nullable=False),  # page | ticket
    Column("kind", String(32), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("text", Text, nullable=False),
    Column("detail", Document, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("acknowledged_ms", BigInteger),
    Column("acknowledged_by", String(64), nullable=False, server_default=""),
    Column("closed_ms", BigInteger),
    Column("closed_by", String(64), nullable=False, server_default=""),  # "": its reason is gone
    Index(None, "kind", "id"),
    sqlite_autoincrement=True,
)

webhooks: Final = Table(
    "webhooks",
    metadata,
    Column("id", Id, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(64), nullable=False),  # signs what is sent; whoever receives has it too
    Column("pages_only", Boolean, nullable=False),
    Column("kind", String(32), nullable=False),  # of alerts; "" is any
    Column("subject", String(128), nullable=False),  # likewise
    Column("added_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
    sqlite_autoincrement=True,
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("webhook", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(8), nullable=False),  # due | done | given up
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("done_ms", BigInteger),
    Column("said", Text, nullable=False, server_default=""),  # why it failed last
    Index(None, "state", "next_ms"),
    sqlite_autoincrement=True,
)

# Delayed labels and outcomes of a device's day, by arrival, for as long as hub.db lives (accuracy.labels).
label_counts: Final = Table(
    "label_counts",
    metadata,
    Column("source", String(16), primary_key=True),  # "windows", or an import: the first 16 digits of its file's hash
    Column("device", String(63), primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("variant", String(32), primary_key=True),
    Column("context", String(64), primary_key=True),
    Column("day_ms", BigInteger, primary_key=True),
    Column("outcomes", Document, nullable=False),  # {name: [n, hits]}
    Column("confidence", LargeBinary, nullable=False),  # as in telemetry.windows
)

label_imports: Final = Table(
    "label_imports",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the file: it is taken once
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("counted", BigInteger, nullable=False),  # labels
    Column("refused", BigInteger, nullable=False),  # lines
)

# Inputs that somebody wants to look at, for a while (rollouts.sampling).
sample_requests: Final = Table(
    "sample_requests",
    metadata,
    Column("id", Id, primary_key=True),
    Column("devices", Document, nullable=False),
    Column("count", Integer, nullable=False),  # of each device
    Column("reason", Text, nullable=False),
    Column("who", String(64), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),  # when the devices were told that it is over
    sqlite_autoincrement=True,
)

# What single devices are asked to do once, and what became of it (fleet.orders).
orders: Final = Table(
    "orders",
    metadata,
    Column("id", String(16), primary_key=True),  # of the command
    Column("device", String(63), nullable=False),
    Column("verb", String(16), nullable=False),  # collect | resample
    Column("who", String(64), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),  # asked | under way | arrived | failed | expired
    Column("sent_ms", BigInteger),  # last
    Column("arrived_ms", BigInteger),
    Column("said", Text, nullable=False, server_default=""),  # why it failed
    Index(None, "state", "expires_ms"),
)

# When a model is to be trained again (accuracy.retraining).
retrain_policies: Final = Table(
    "retrain_policies",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("on_drift", Boolean, nullable=False),
    Column("max_age_days", Integer),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(64), nullable=False),
    Column("what", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("subject", String(128), nullable=False, server_default=""),  # the device, or package as "name version"
    Index(None, "subject", "id"),
    sqlite_autoincrement=True,
)


def open_control(place: Path | str) -> sa.Engine:
    """The engine of hub.db (path) or of a server (URL), at the newest schema."""
    engine = open_engine(place, schema="control")
    migrate(engine, metadata, "control")
    return engine
