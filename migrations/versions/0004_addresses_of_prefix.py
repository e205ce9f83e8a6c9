"""The addresses of a prefix by how long they have rested, for the choice of a pod's address."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENT = """\
CREATE INDEX addresses_of_prefix ON addresses (prefix, rested_since) \
WHERE state = 'assigned' AND prefix IS NOT NULL"""


def upgrade() -> None:
    """One index; nothing in the rows changes."""
    op.get_bind().exec_driver_sql(STATEMENT)


def downgrade() -> None:
    """It goes."""
    op.get_bind().exec_driver_sql("DROP INDEX addresses_of_prefix")
