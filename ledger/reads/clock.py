"""What the ledger says of the node's clock: does it show less than it did, and when did this boot begin by it.

What is made of a step does not belong here; see `writes.clock`.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, literal_column, select

from ledger import schema
from ledger.database import Read, Statement

_LATEST_LINES = Statement(
    select(schema.journal.c.at, schema.journal.c.kind)
    .where(
        schema.journal.c.id
        > select(func.max(schema.journal.c.id) - literal_column("500")).scalar_subquery()
    )
    .order_by(schema.journal.c.id.desc())
)
_BOOTED = Statement(
    select(schema.boots.c.booted_at).where(schema.boots.c.boot_id == bindparam("of"))
)
_LATEST = Statement(
    select(schema.journal.c.at).where(
        schema.journal.c.id == select(func.max(schema.journal.c.id)).scalar_subquery()
    )
)


def clock_step(tx: Read, now: int) -> int:
    """By how many ms the clock shows less than when one of the latest changes was written; 0 if by none.

    Of those since it was last said to have been set back.
    """
    ahead = 0
    for at, kind in tx.all(_LATEST_LINES):
        ahead = max(ahead, at - now)
        if kind == "clock.stepped_back":
            break
    return ahead


def latest_at(tx: Read) -> int | None:
    """When (ms) the last change was written; None if none was."""
    row = tx.one(_LATEST)
    return None if row is None else int(row[0])


def booted_at(tx: Read, boot_id: str) -> int | None:
    """When (ms) this boot began, by the clock as it was last seen; None if nobody has said."""
    row = tx.one(_BOOTED, of=boot_id)
    return None if row is None or row[0] is None else int(row[0])
