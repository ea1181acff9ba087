"""Attributes, holds and cohorts of devices, what is expected, stages of packages, subjects of audit entries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "control_0003"
down_revision = "control_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    op.add_column("devices", sa.Column("attributes", document, nullable=False, server_default="{}"))
    op.add_column("devices", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "expected",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("attributes", document, nullable=False, server_default="{}"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_expected")),
    )
    op.create_table(
        "cohorts",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cohorts")),
    )
    op.add_column("enrol_tokens", sa.Column("kind", sa.String(length=8), nullable=False, server_default="open"))
    op.add_column("packages", sa.Column("stage", sa.String(length=16), nullable=False, server_default="approved"))
    op.add_column("audit", sa.Column("subject", sa.String(length=128), nullable=False, server_default=""))
    op.create_index(op.f("ix_audit_subject_audit_id"), "audit", ["subject", "id"])
