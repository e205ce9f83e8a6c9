"""Which free address a pod gets: the longest-rested of the fullest prefix of the fullest usable interface.

What is full stays full, and the rest empties and can be given back. Two statements as a rule, both by
indexes that do not grow with history. Holding the address does not belong here; see `leases`.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, bindparam, func, literal_column, select

from ledger import schema
from ledger.database import Read, Statement

_leases, _addresses, _enis = schema.leases, schema.addresses, schema.enis
_ONE: ColumnElement[int] = literal_column("1")
_ZERO: ColumnElement[int] = literal_column("0")

_held = (
    select(func.count())
    .select_from(_addresses)
    .where(
        _addresses.c.eni_id == _enis.c.eni_id,
        _addresses.c.family == bindparam("family"),
        _addresses.c.released_at.is_(None),
    )
    .scalar_subquery()
)
_leased = (
    select(func.count())
    .select_from(_leases)
    .where(
        _leases.c.eni_id == _enis.c.eni_id,
        _leases.c.family == bindparam("family"),
        _leases.c.ended_at.is_(None),
    )
    .scalar_subquery()
)
# Every open lease has a live address row, so an interface without a surplus cannot have a free one.
_FULLEST_WITH_ROOM = Statement(
    select(_enis.c.eni_id)
    .where(_enis.c.state == schema.word("usable"), _enis.c.managed == _ONE, _held > _leased)
    .order_by(_leased.desc(), _enis.c.device)
)
_held_address = _addresses.alias("held")
_fullness = (
    select(_held_address.c.prefix, func.count().label("leased"))
    .select_from(
        _leases.join(
            _held_address,
            (_held_address.c.address == _leases.c.address) & _held_address.c.released_at.is_(None),
        )
    )
    .where(
        _leases.c.eni_id == bindparam("eni_id"),
        _leases.c.family == bindparam("family"),
        _leases.c.ended_at.is_(None),
        _held_address.c.prefix.is_not(None),
    )
    .group_by(_held_address.c.prefix)
    .subquery("fullness")
)
_FREE = (
    _addresses.c.eni_id == bindparam("eni_id"),
    _addresses.c.family == bindparam("family"),
    _addresses.c.state == schema.word("assigned"),
    _addresses.c.cooling_until <= bindparam("now"),
    _addresses.c.absent_since.is_(None),
    ~select(_ONE)
    .where(_leases.c.address == _addresses.c.address, _leases.c.ended_at.is_(None))
    .exists(),
)
# By an index, and so at half the cost of the next: without prefix delegation nearly always enough.
_LONGEST_RESTED_SINGLE = Statement(
    select(_addresses.c.address)
    .where(*_FREE, _addresses.c.prefix.is_(None))
    .order_by(_addresses.c.rested_since)
)
# Full prefixes stay full, so that the others can be given back; within one the longest-rested first.
_LONGEST_RESTED = Statement(
    select(_addresses.c.address)
    .select_from(_addresses.outerjoin(_fullness, _fullness.c.prefix == _addresses.c.prefix))
    .where(*_FREE)
    .order_by(
        _addresses.c.prefix.is_(None) == bindparam("prefixes"),
        func.coalesce(_fullness.c.leased, _ZERO).desc(),
        _addresses.c.rested_since,
    )
)


def longest_rested(
    tx: Read, family: int, prefixes: bool, now: int
) -> tuple[str | None, str | None]:
    """Such an address and its interface; None and None if there is none.

    `prefixes` says which kind comes first, the addresses of prefixes or single ones.
    """
    for (eni_id,) in tx.all(_FULLEST_WITH_ROOM, family=family):
        key = {"eni_id": eni_id, "family": family, "now": now}
        found = None if prefixes else tx.one(_LONGEST_RESTED_SINGLE, **key)
        found = found or tx.one(_LONGEST_RESTED, **key, prefixes=int(prefixes))
        if found is not None:
            return found[0], eni_id
    return None, None
