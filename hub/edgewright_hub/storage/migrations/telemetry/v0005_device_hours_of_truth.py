"""What truth said in a device's hour: outcomes, and labels by confidence. Hours of before hold none."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "telemetry_0005"
down_revision = "telemetry_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    empty = sa.text("''::bytea" if op.get_bind().dialect.name == "postgresql" else "x''")
    op.add_column("device_hours", sa.Column("outcomes", document, nullable=False, server_default="{}"))
    op.add_column("device_hours", sa.Column("confidence", sa.LargeBinary(), nullable=False, server_default=empty))
