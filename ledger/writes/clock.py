"""The node's clock was set: moments keep their distance to now.

Set back: a pause, a cooldown or a token bucket that ended an hour later than meant would hold up pods for as
long. Set forward: what was given back a minute ago would seem to have gone an hour ago, and EC2's picture of
before be believed; so what is recent is moved along. Who notices the step does not belong here.
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
RECENT_MS = 3_600_000
"""Moments longer ago than this are moved by no step forward: nothing depends on how long ago they were."""
AHEAD_MS = 130_000
"""Pauses and cooldowns end so much later than they were written, at most."""
_FORWARD = tuple(
    Statement(
        update(table)
        .where(table.c[name].between(bindparam("since"), bindparam("until")))
        .values({name: table.c[name] + bindparam("step")})
    )
    for table, names in _MOMENTS
    if table is not schema.leases  # a deletion in the spool is held against when its lease was made
    for name in names
)
_BOOTED = Statement(
    update(schema.boots)
    .where(schema.boots.c.boot_id == bindparam("of"))
    .values(booted_at=bindparam("booted_at"))
)


def clock_stepped_back(tx: Write, step: int, now: int) -> None:
    """The clock shows `step` ms less than it did; `now` is what it shows."""
    tx.must_outlive_power()
    moved = sum(tx.run(statement, now=now, step=step).rowcount for statement in _BACK)
    journal.line(tx, now, "clock.stepped_back", f"{step} ms", f"{moved} moments moved back")


def clock_stepped_forward(tx: Write, step: int, now: int) -> None:
    """The clock shows `step` ms more than the time that has passed; `now` is what it shows.

    What was written since the step stays, but for what lies within AHEAD_MS of it.
    """
    tx.must_outlive_power()
    then = now - step
    span = {"since": then - RECENT_MS, "until": then + AHEAD_MS}
    moved = sum(tx.run(statement, step=step, **span).rowcount for statement in _FORWARD)
    journal.line(tx, now, "clock.stepped_forward", f"{step} ms", f"{moved} moments moved along")


def boot_began(tx: Write, boot_id: str, booted_at: int) -> None:
    """By the clock as it is now, this boot began then (ms)."""
    tx.run(_BOOTED, of=boot_id, booted_at=booted_at)
