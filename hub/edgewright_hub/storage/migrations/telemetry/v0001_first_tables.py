"""The first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "telemetry_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("arrived_ms", sa.BigInteger(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "devices",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column(
            "birth", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=True
        ),
        sa.Column("birth_ms", sa.BigInteger(), nullable=True),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("boot_id", sa.String(length=16), nullable=False),
        sa.Column("connection", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("next_due_ms", sa.BigInteger(), nullable=True),
        sa.Column("desired_rev", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("windows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("inferences", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=True),
        sa.Column("variant", sa.String(length=32), nullable=True),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("rollout", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_devices")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_devices_last_seen_ms_devices_online"), ["last_seen_ms", "online"], unique=False
        )

    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("spool_id", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("arrived_ms", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=16), nullable=False),
        sa.Column("mono_ms", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("variant", sa.String(length=32), nullable=False),
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("before", sa.String(length=32), nullable=False),
        sa.Column("after", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failure", sa.String(length=16), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("device", "spool_id", "seq", name=op.f("uq_events_device_spool_id_seq")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_rollout_events_id"), ["rollout", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_arrived_ms"), ["arrived_ms"], unique=False)

    op.create_table(
        "interruptions",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("boot_id", sa.String(length=16), nullable=False),
        sa.Column("open_since_mono_ms", sa.BigInteger(), nullable=False),
        sa.Column("told_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "boot_id", name=op.f("pk_interruptions")),
    )
    op.create_table(
        "rollups",
        sa.Column("tier_s", sa.Integer(), nullable=False),
        sa.Column("t0_ms", sa.BigInteger(), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("variant", sa.String(length=32), nullable=False),
        sa.Column("context", sa.String(length=64), nullable=False),
        sa.Column("edge_hash", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("windows", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("n_monitored", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("rejected", sa.BigInteger(), nullable=False),
        sa.Column("labels_n", sa.BigInteger(), nullable=False),
        sa.Column("labels_wrong", sa.BigInteger(), nullable=False),
        sa.Column("latency_total", sa.LargeBinary(), nullable=False),
        sa.Column("cells", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tier_s", "t0_ms", "cohort", "digest", "variant", "context", "edge_hash", "phase", name=op.f("pk_rollups")
        ),
    )
    op.create_table(
        "spools",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("spool_id", sa.String(length=16), nullable=False),
        sa.Column("high_water", sa.BigInteger(), nullable=False),
        sa.Column("mask", sa.String(length=16), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("renewed_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("device", "spool_id", name=op.f("pk_spools")),
    )
    op.create_table(
        "windows",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("spool_id", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("arrived_ms", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("placed", sa.String(length=8), nullable=False),
        sa.Column("mono_start_ms", sa.BigInteger(), nullable=False),
        sa.Column("mono_end_ms", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=16), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("variant", sa.String(length=32), nullable=False),
        sa.Column("context", sa.String(length=64), nullable=False),
        sa.Column("edge_hash", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("n_monitored", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("rejected", sa.BigInteger(), nullable=False),
        sa.Column("labels_n", sa.BigInteger(), nullable=False),
        sa.Column("labels_wrong", sa.BigInteger(), nullable=False),
        sa.Column("latency_total", sa.LargeBinary(), nullable=False),
        sa.Column("cells", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_windows")),
        sa.UniqueConstraint("device", "spool_id", "seq", name=op.f("uq_windows_device_spool_id_seq")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("windows", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_windows_device_windows_digest_windows_start_ms"),
            ["device", "digest", "start_ms"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_windows_start_ms_windows_device_windows_n_windows_errors"),
            ["start_ms", "device", "n", "errors"],
            unique=False,
        )
