"""What a window says besides counts of channels: outcomes, confidence, shadow, input age, when the next is due."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "telemetry_0003"
down_revision = "telemetry_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    empty = sa.text("''::bytea" if op.get_bind().dialect.name == "postgresql" else "x''")
    # Not in a batch: that would copy the table on SQLite, and with it forget that its ids never come back.
    for name, kind, default in (
        ("next_due_s", sa.BigInteger(), "0"),
        ("repeated", sa.BigInteger(), "0"),
        ("latency_run", sa.LargeBinary(), empty),
        ("input_age", sa.LargeBinary(), empty),
        ("outcomes", document, "{}"),
        ("confidence", sa.LargeBinary(), empty),
        ("shadow_n", sa.BigInteger(), "0"),
        ("shadow_agree", sa.BigInteger(), "0"),
    ):
        op.add_column("windows", sa.Column(name, kind, nullable=False, server_default=default))
