"""The node's clock was set back: moments that now lie ahead are moved back by as much.

A pause, a cooldown or a token bucket that ends an hour later than meant would hold up pods for as long. A
step forward only ends pauses early. Who notices the step does not belong here.
"""

from __future__ import annotations

from sqlalchemy import bindparam, update

from ledger import schema
from ledger.database import Statement, Write
from ledger.writes import journal

_MOMENTS = (
    (
        schema.addresses,
        ("assigned_at", "rested_since", "cooling_until", "absent_since", "released_at"),
    ),
    (schema.prefixes, ("assigned_at", "released_at")),
    (schema.enis, ("created_at", "attached_at", "changed_at", "absent_since")),
    (schema.intents, ("created_at", "sent_at", "ended_at", "retry_at")),
    (schema.leases, ("created_at",)),
    (schema.api_calls, ("at",)),
)
_BACK = tuple(
    Statement(
        update(table)
        .where(table.c[name] > bindparam("now"))
        .values({name: table.c[name] - bindparam("step")})
    )
    for table, names in _MOMENTS
    for name in names
)


def clock_stepped_back(tx: Write, step: int, now: int) -> None:
    """The clock shows `step` ms less than it did; `now` is what it shows."""
    tx.must_outlive_power()
    moved = sum(tx.run(statement, now=now, step=step).rowcount for statement in _BACK)
    journal.line(tx, now, "clock.stepped_back", f"{step} ms", f"{moved} moments moved back")
