"""When a boot began, by the clock: by this a clock that is set forward is noticed."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One column, empty until the next start."""
    op.get_bind().exec_driver_sql("ALTER TABLE boots ADD COLUMN booted_at INTEGER")


def downgrade() -> None:
    """It goes; the next start knows no better than before."""
    op.get_bind().exec_driver_sql("ALTER TABLE boots DROP COLUMN booted_at")
