"""Refusals by device and reason, sums of a device's hour, and rollups whose histograms need no unpacking."""

import sqlalchemy as sa
from alembic import op

from edgewright_contracts.binning import unpack, unpack_grid
from edgewright_hub.storage.histograms import cells_bytes, latency_bytes

revision = "telemetry_0004"
down_revision = "telemetry_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device", "reason", name=op.f("pk_refusals")),
    )
    op.create_index(op.f("ix_refusals_last_ms"), "refusals", ["last_ms"])
    op.create_table(
        "device_hours",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("t0_ms", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("variant", sa.String(length=32), nullable=False),
        sa.Column("context", sa.String(length=64), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("windows", "n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong", "repeated")
        ),
        sa.Column("shadow_n", sa.BigInteger(), nullable=False),
        sa.Column("shadow_agree", sa.BigInteger(), nullable=False),
        sa.Column("latency_total", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "device", "t0_ms", "digest", "variant", "context", "phase", name=op.f("pk_device_hours")
        ),
    )
    op.create_index(op.f("ix_device_hours_t0_ms"), "device_hours", ["t0_ms"])
    op.create_table(
        "cursors",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cursors")),
    )
    op.add_column("dead_letters", sa.Column("device", sa.String(length=63), nullable=False, server_default=""))
    op.create_index(op.f("ix_dead_letters_device_dead_letters_id"), "dead_letters", ["device", "id"])
    op.create_index(op.f("ix_dead_letters_arrived_ms"), "dead_letters", ["arrived_ms"])
    op.add_column("devices", sa.Column("birth_mark", sa.String(length=33), nullable=False, server_default=""))
    _marks()
    _histograms()


def _marks() -> None:
    devices = sa.table("devices", sa.column("device"), sa.column("birth", sa.JSON()), sa.column("birth_mark"))
    connection = op.get_bind()
    for device, born in connection.execute(sa.select(devices.c.device, devices.c.birth)).all():
        if born:
            mark = f"{born['boot_id']}.{born['connection']}"
            connection.execute(devices.update().where(devices.c.device == device).values(birth_mark=mark))


def _histograms() -> None:
    """From the varints of the wire."""
    key = ("tier_s", "t0_ms", "cohort", "digest", "variant", "context", "edge_hash", "phase")
    rollups = sa.table("rollups", *(sa.column(name) for name in (*key, "latency_total", "cells")))
    connection = op.get_bind()
    for row in connection.execute(sa.select(rollups)).all():
        same = [rollups.c[name] == getattr(row, name) for name in key]
        cells = unpack(row.cells) if row.cells else None
        latency = latency_bytes(unpack_grid(row.latency_total)) if row.latency_total else b""
        values = {"cells": cells_bytes(cells), "latency_total": latency}
        connection.execute(rollups.update().where(*same).values(**values))
