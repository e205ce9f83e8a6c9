"""The journal's line: every change writes one, in the same transaction.

What changed does not belong here.
"""

from __future__ import annotations

from sqlalchemy import insert

from ledger import schema
from ledger.database import Statement, Write

_LINE = Statement(
    insert(schema.journal),
    ("at", "kind", "subject", "lease_id", "eni_id", "address", "intent_id", "text"),
)


def line(
    tx: Write,
    at: int,
    kind: str,
    subject: str,
    text: str = "",
    *,
    lease_id: int | None = None,
    eni_id: str | None = None,
    address: str | None = None,
    intent_id: int | None = None,
) -> None:
    """Write down that `kind` happened to `subject`."""
    tx.run(
        _LINE,
        at=at,
        kind=kind,
        subject=subject,
        text=text,
        lease_id=lease_id,
        eni_id=eni_id,
        address=address,
        intent_id=intent_id,
    )
