"""The conditions that several questions share, in the schema's own columns.

A whole question does not belong here.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, literal_column

from ledger import schema

_leases, _addresses = schema.leases, schema.addresses
ONE: ColumnElement[int] = literal_column("1")
ZERO: ColumnElement[int] = literal_column("0")
OPEN = _leases.c.ended_at.is_(None)
LIVE = _addresses.c.released_at.is_(None)
HOLDS = (_leases.c.address == _addresses.c.address) & OPEN
OPEN_STATES = [schema.word(state) for state in ("planned", "sent", "unknown")]
