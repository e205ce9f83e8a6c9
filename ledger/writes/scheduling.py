"""What the cluster's API says of this node, kept for the time when it is down.

One row, the last answer. What a plan makes of it does not belong here.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from ledger import model, schema
from ledger.database import Statement, Write
from ledger.writes import journal

_said = schema.scheduling.c
_new = sqlite.insert(schema.scheduling)
_PUT = Statement(
    _new.on_conflict_do_update(
        index_elements=["id"],
        set_={column.name: _new.excluded[column.name] for column in _said if column.name != "id"},
    ),
    [column.name for column in _said],
)
_BEFORE = Statement(select(_said.schedulable, _said.max_pods))


def record_scheduling(tx: Write, said: model.Scheduling) -> None:
    """Keep the answer in place of the last; a journal line if that said otherwise, or there was none."""
    before = tx.one(_BEFORE)
    now = (int(said.schedulable), said.max_pods)
    tx.run(_PUT, id=1, schedulable=now[0], max_pods=now[1], seen_at=said.at)
    if before is not None and tuple(before) == now:
        return
    whether = "takes pods" if said.schedulable else "is cordoned"
    most = "" if said.max_pods is None else f", {said.max_pods} fit"
    journal.line(tx, said.at, "node.scheduling", "node", whether + most)
