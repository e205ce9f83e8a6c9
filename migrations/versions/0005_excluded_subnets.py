"""Subnets that their tags keep pods out of."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENT = """\
CREATE TABLE excluded_subnets (
    subnet_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (subnet_id)
) STRICT"""


def upgrade() -> None:
    """One table, empty until EC2 is asked."""
    op.get_bind().exec_driver_sql(STATEMENT)


def downgrade() -> None:
    """It goes; EC2 can be asked again."""
    op.get_bind().exec_driver_sql("DROP TABLE excluded_subnets")
