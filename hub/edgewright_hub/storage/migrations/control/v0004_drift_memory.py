"""What streams of drift remember, how windows vary, and what operators decided. Streams begin anew."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "control_0004"
down_revision = "control_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    op.execute("DELETE FROM drift")  # what it remembered cannot be read any more
    op.add_column("drift", sa.Column("kept", sa.LargeBinary()))
    op.create_table(
        "drift_dispersion",
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("variant", sa.String(length=32), nullable=False),
        sa.Column("context", sa.String(length=64), nullable=False),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("kept", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "variant", "context", "part", name=op.f("pk_drift_dispersion")),
    )
    op.create_table(
        "drift_decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", document, nullable=False),
        sa.Column("kept", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift_decisions")),
        sqlite_autoincrement=True,
    )
