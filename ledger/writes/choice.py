"""Which free address a pod gets: the longest-rested of the fullest prefix of the fullest usable interface.

Of the first network card that has any. What is full stays full, and the rest empties and can be given
back. Few statements, all by indexes that do not grow with history; what they count is kept for the claims
that share a transaction. Holding the address does not belong here; see `leases`.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, func, literal_column, select

from ledger import schema
from ledger.database import Statement, Write

_leases, _addresses, _enis = schema.leases, schema.addresses, schema.enis
_ONE: ColumnElement[int] = literal_column("1")

_held = (
    select(func.count())
    .select_from(_addresses)
    .where(
        _addresses.c.eni_id == bindparam("eni_id"),
        _addresses.c.family == bindparam("family"),
        _addresses.c.released_at.is_(None),
    )
    .scalar_subquery()
)


def _leased(eni_id: ColumnElement[str]) -> ScalarSelect[int]:
    return (
        select(func.count())
        .select_from(_leases)
        .where(
            _leases.c.eni_id == eni_id,
            _leases.c.family == bindparam("family"),
            _leases.c.ended_at.is_(None),
        )
        .scalar_subquery()
    )


_FULLEST = Statement(
    select(_enis.c.eni_id)
    .where(
        _enis.c.state == schema.word("usable"),
        _enis.c.managed == _ONE,
        _enis.c.subnet_id.not_in(select(schema.excluded_subnets.c.subnet_id)),
    )
    .order_by(_enis.c.card, _leased(_enis.c.eni_id).desc(), _enis.c.device)
)
# Every open lease has a live address row, so an interface without a surplus cannot have a free one.
_HAS_ROOM = Statement(select(_held > _leased(bindparam("eni_id"))))
_held_address = _addresses.alias("held")
_STARTED = Statement(
    select(_held_address.c.prefix, func.count())
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
)
_FREE = (
    _addresses.c.state == schema.word("assigned"),
    _addresses.c.cooling_until <= bindparam("now"),
    _addresses.c.absent_since.is_(None),
    ~select(_ONE)
    .where(_leases.c.address == _addresses.c.address, _leases.c.ended_at.is_(None))
    .exists(),
)
_OF_INTERFACE = (
    _addresses.c.eni_id == bindparam("eni_id"),
    _addresses.c.family == bindparam("family"),
)
_address = select(_addresses.c.address, _addresses.c.rested_since, _addresses.c.prefix).order_by(
    _addresses.c.rested_since
)
_OF_NO_PREFIX = Statement(_address.where(*_OF_INTERFACE, *_FREE, _addresses.c.prefix.is_(None)))
_OF_ANY_PREFIX = Statement(_address.where(*_OF_INTERFACE, *_FREE, _addresses.c.prefix.is_not(None)))
# By the prefix's own index (the + keeps SQLite from the interface's), which ends with the rest: the
# first that is free is the one.
_OF_THIS_PREFIX = Statement(
    _address.where(
        *_FREE,
        _addresses.c.prefix == bindparam("of_prefix"),
        literal_column("+addresses.eni_id") == bindparam("eni_id"),
    )
)


_Key = dict[str, str | int]


def longest_rested(
    tx: Write, family: int, prefixes: bool, now: int
) -> tuple[str | None, str | None]:
    """Such an address and its interface, for a lease that is now to be made; None and None if there is none.

    `prefixes` says which kind comes first, the addresses of prefixes or single ones.
    """
    for eni_id in _interfaces(tx, family):
        key: _Key = {"eni_id": eni_id, "family": family, "now": now}
        found = _of_a_started(tx, key) if prefixes else None
        if found is None and _has_room(tx, eni_id, family):
            found = _of_any_kind(tx, key, prefixes)
        if found is not None:
            return found, eni_id
    return None, None


def forget(tx: Write) -> None:
    """A lease came or went otherwise: what the transaction has counted so far is no longer so."""
    tx.counted.clear()


def _interfaces(tx: Write, family: int) -> list[str]:
    """Those pods may be on, the fullest first; a claim makes that one fuller still, and the order stays."""
    listed: list[str] | None = tx.counted.get(("interfaces", family))
    if listed is None:
        listed = [eni_id for (eni_id,) in tx.all(_FULLEST, family=family)]
        tx.counted["interfaces", family] = listed
    return listed


def _has_room(tx: Write, eni_id: str, family: int) -> bool:
    row = tx.one(_HAS_ROOM, eni_id=eni_id, family=family)
    return row is not None and bool(row[0])


def _of_any_kind(tx: Write, key: _Key, prefixes: bool) -> str | None:
    if prefixes:
        return _of_another(tx, key) or _single(tx, key)
    return _single(tx, key) or _of_a_started(tx, key) or _of_another(tx, key)


def _single(tx: Write, key: _Key) -> str | None:
    row = tx.one(_OF_NO_PREFIX, **key)
    return None if row is None else str(row[0])


def _of_a_started(tx: Write, key: _Key) -> str | None:
    """Of the fullest prefix that has one, so that others can be given back; among equals the longest-rested."""
    started = _started(tx, key)
    with_room = [(leased, prefix) for prefix, leased in started.items() if leased < _size(prefix)]
    with_room.sort(reverse=True)
    for leased, equals in groupby(with_room, key=itemgetter(0)):
        found = [
            tx.one(_OF_THIS_PREFIX, of_prefix=prefix, eni_id=key["eni_id"], now=key["now"])
            for _, prefix in equals
        ]
        rested = min((row for row in found if row is not None), key=itemgetter(1), default=None)
        if rested is not None:
            started[rested[2]] = leased + 1
            return str(rested[0])
    return None


def _of_another(tx: Write, key: _Key) -> str | None:
    """Of a prefix without pods, for those with pods have none."""
    row = tx.one(_OF_ANY_PREFIX, **key)
    if row is None:
        return None
    _started(tx, key)[row[2]] = 1
    return str(row[0])


def _started(tx: Write, key: _Key) -> dict[str, int]:
    """The interface's prefixes that pods are on, and how many."""
    at = ("prefixes", key["eni_id"], key["family"])
    counted: dict[str, int] | None = tx.counted.get(at)
    if counted is None:
        rows = tx.all(_STARTED, eni_id=key["eni_id"], family=key["family"])
        counted = tx.counted[at] = dict(rows)
    return counted


@lru_cache(maxsize=1024)
def _size(prefix: str) -> int:
    return ipaddress.ip_network(prefix).num_addresses
