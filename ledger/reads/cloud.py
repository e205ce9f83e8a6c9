"""What EC2 was asked and answered, and what it did not show: what the next call is decided by.

What is outside as nouns does not belong here; see `nouns`.
"""

from __future__ import annotations

from sqlalchemy import (
    bindparam,
    func,
    or_,
    select,
)

from ledger import model, rows, schema
from ledger.database import Read, Statement
from ledger.reads.terms import HOLDS, LIVE, ONE, OPEN, OPEN_STATES, ZERO

_leases, _addresses, _enis = schema.leases, schema.addresses, schema.enis
_intents = schema.intents
_earlier = schema.intents.alias("earlier")
_UNKNOWN = Statement(
    select(*rows.INTENT)
    .where(_intents.c.state.in_([schema.word("sent"), schema.word("unknown")]))
    .order_by(_intents.c.id)
)
_NEXT_RETRY = Statement(
    select(func.min(_intents.c.retry_at)).where(
        _intents.c.state == schema.word("failed"), _intents.c.retry_at > bindparam("now")
    )
)
_DONE_LAST = (
    select(func.coalesce(func.max(_earlier.c.id), ZERO))
    .where(
        _earlier.c.operation == bindparam("operation"),
        _earlier.c.subject == bindparam("subject"),
        _earlier.c.state == schema.word("done"),
    )
    .scalar_subquery()
)
_REFUSED = Statement(
    select(_intents.c.created_at, _intents.c.retry_at)
    .where(
        _intents.c.operation == bindparam("operation"),
        _intents.c.subject == bindparam("subject"),
        _intents.c.state == schema.word("failed"),
        _intents.c.ended_at >= bindparam("since"),
        _intents.c.id > _DONE_LAST,
    )
    .order_by(_intents.c.id)
)
_CALLS = Statement(
    select(schema.api_calls.c.operation, schema.api_calls.c.at, schema.api_calls.c.code)
    .where(schema.api_calls.c.at >= bindparam("since"))
    .order_by(schema.api_calls.c.at)
)
_LAST_SENT = Statement(select(func.max(_intents.c.sent_at)))
_QUARANTINED = Statement(
    select(*rows.ADDRESS, _leases.c.id.is_not(None))
    .select_from(_addresses.outerjoin(_leases, HOLDS))
    .where(
        LIVE,
        or_(
            _addresses.c.state == schema.word("quarantine"),
            # Missed by EC2's picture and nobody's: with a pod on it, it stays as it is (decision 2).
            _addresses.c.absent_since.is_not(None)
            & (_addresses.c.state == schema.word("assigned"))
            & _addresses.c.prefix.is_(None)
            & _leases.c.id.is_(None),
        ),
    )
)
_MISSED = Statement(
    select(_addresses.c.address).where(LIVE, _addresses.c.absent_since == bindparam("at"))
)
_LONG_HELD = Statement(
    select(_addresses.c.address, _addresses.c.prefix, _addresses.c.eni_id)
    .select_from(_addresses.join(schema.enis, schema.enis.c.eni_id == _addresses.c.eni_id))
    .where(
        _addresses.c.state == schema.word("assigned"),
        _addresses.c.assigned_at <= bindparam("since"),
        schema.enis.c.state == schema.word("usable"),
        schema.enis.c.managed == ONE,
        schema.enis.c.changed_at <= bindparam("since"),
    )
)
_MISSED_ENI = Statement(
    select(_enis.c.eni_id).where(_enis.c.gone_at.is_(None), _enis.c.absent_since == bindparam("at"))
)
# Not under a lease (decision 2), and not while a call that names it has no outcome yet.
_LOST_ENIS = Statement(
    select(_enis.c.eni_id).where(
        _enis.c.gone_at.is_(None),
        _enis.c.is_primary == ZERO,
        _enis.c.absent_since <= bindparam("since"),
        ~select(ONE).where(_leases.c.eni_id == _enis.c.eni_id, OPEN).exists(),
        ~select(ONE)
        .where(_intents.c.subject == _enis.c.eni_id, _intents.c.state.in_(OPEN_STATES))
        .exists(),
    )
)


_earlier = _intents.alias("earlier")


def unknown_intents(tx: Read) -> tuple[model.Intent, ...]:
    """Calls of which the outcome is not known: the reply was lost, or the daemon died before it."""
    return tuple(map(rows.intent, tx.all(_UNKNOWN)))


def quarantined(tx: Read) -> tuple[model.Address, ...]:
    """Doubtful addresses, each with whether a lease holds it."""
    return tuple(map(rows.address, tx.all(_QUARANTINED)))


def missed_at(tx: Read, at: int) -> bool:
    """Was it the picture of this moment (ms) that first missed an interface, or an address, whoever holds it?"""
    return tx.one(_MISSED, at=at) is not None or tx.one(_MISSED_ENI, at=at) is not None


def lost_enis(tx: Read, since: int) -> list[str]:
    """Interfaces that EC2's pictures have missed since then (ms), with no pod on them and no call under way."""
    return [str(eni_id) for (eni_id,) in tx.all(_LOST_ENIS, since=since)]


def not_shown(tx: Read, seen: model.ObservedCloud, since: int) -> frozenset[str]:
    """Addresses of usable interfaces that have been ours since before `since` (ms) and that this leaves out."""
    shown = {each.eni.eni_id: {*each.addresses, *each.prefixes} for each in seen.enis}
    return frozenset(
        address
        for address, prefix, eni_id in tx.all(_LONG_HELD, since=since)
        if (prefix or address) not in shown.get(eni_id, ())
    )


def calls_since(tx: Read, since: int) -> list[tuple[str, int, str]]:
    """EC2 calls that ended at `since` (ms) or later: action, when, error code ('' for success)."""
    return [(operation, at, code) for operation, at, code in tx.all(_CALLS, since=since)]


def last_sent_at(tx: Read) -> int | None:
    """When (ms) EC2 was last asked to change something; None if never."""
    row = tx.one(_LAST_SENT)
    return None if row is None else row[0]


def next_retry_at(tx: Read, now: int) -> int | None:
    """When the next refused call may be made again (ms); None if none backs off."""
    row = tx.one(_NEXT_RETRY, now=now)
    return None if row is None else row[0]


def last_pause(tx: Read, operation: str, subject: str, since: int) -> tuple[int, int]:
    """How long (ms) this call's last pause is and until when (ms) it lasts, for refusals at `since` or later.

    Calls refused within a pause share it. 0 and 0 if there was none, or if it has been done since.
    """
    began, until = 0, 0
    for created_at, retry_at in tx.all(_REFUSED, operation=operation, subject=subject, since=since):
        began = created_at if created_at >= until else began
        until = max(until, retry_at)
    return until - began, until
