"""Leases taken over from another CNI, and when that was."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """\
ALTER TABLE leases
ADD COLUMN adopted INTEGER DEFAULT 0 NOT NULL CONSTRAINT adopted_is_yes_or_no CHECK (adopted IN (0, 1))""",
    """\
CREATE TABLE takeovers (
    id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    origin TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    leases INTEGER NOT NULL,
    stale INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    handed_back_at INTEGER,
    PRIMARY KEY (id)
) STRICT""",
)


def upgrade() -> None:
    """One column, one table."""
    connection = op.get_bind()
    for statement in STATEMENTS:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    """Both go; leases that were taken over stay as leases."""
    connection = op.get_bind()
    connection.exec_driver_sql("DROP TABLE takeovers")
    connection.exec_driver_sql("ALTER TABLE leases DROP COLUMN adopted")
