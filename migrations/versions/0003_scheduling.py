"""What the cluster's API says of this node."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENT = """\
CREATE TABLE scheduling (
    id INTEGER NOT NULL CHECK (id = 1),
    schedulable INTEGER NOT NULL CONSTRAINT schedulable_is_yes_or_no CHECK (schedulable IN (0, 1)),
    max_pods INTEGER,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT"""


def upgrade() -> None:
    """One table, empty until the API answers."""
    op.get_bind().exec_driver_sql(STATEMENT)


def downgrade() -> None:
    """It goes; the API can be asked again."""
    op.get_bind().exec_driver_sql("DROP TABLE scheduling")
