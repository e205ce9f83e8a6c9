"""Subnets that their tags keep pods out of, as EC2 last showed them.

Which tags do that, and what becomes of interfaces there, does not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam, delete, insert, select

from ledger import schema
from ledger.database import Statement, Write
from ledger.writes import journal

_excluded = schema.excluded_subnets
_KNOWN = Statement(select(_excluded.c.subnet_id))
_PUT = Statement(insert(_excluded), [column.name for column in _excluded.c])
_FORGET = Statement(delete(_excluded).where(_excluded.c.subnet_id == bindparam("of")))


def record_excluded(tx: Write, reasons: Mapping[str, str], now: int) -> bool:
    """These are excluded, each for its reason, and no others; True if that is new."""
    known = {subnet_id for (subnet_id,) in tx.all(_KNOWN)}
    for subnet_id in sorted(known - set(reasons)):
        tx.run(_FORGET, of=subnet_id)
        journal.line(tx, now, "subnet.allowed", subnet_id)
    for subnet_id in sorted(set(reasons) - known):
        tx.run(_PUT, subnet_id=subnet_id, reason=reasons[subnet_id], seen_at=now)
        journal.line(tx, now, "subnet.excluded", subnet_id, reasons[subnet_id])
    return known != set(reasons)
