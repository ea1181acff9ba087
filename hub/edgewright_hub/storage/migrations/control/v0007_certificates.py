"""Every certificate that was signed for a device, so that those of before can be revoked."""

import sqlalchemy as sa
from alembic import op

revision = "control_0007"
down_revision = "control_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
    )
    op.create_index(op.f("ix_certificates_device"), "certificates", ["device"])
    op.execute(
        "INSERT INTO certificates (serial, device, key_sha256, at_ms) "
        "SELECT serial, id, key_sha256, enrolled_ms FROM devices WHERE serial IN "
        "(SELECT serial FROM devices GROUP BY serial HAVING count(*) = 1)"
    )
