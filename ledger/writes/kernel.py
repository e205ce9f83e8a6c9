"""Kernel objects the ledger vouches for: about to be made, present, about to go, forgotten.

A row is there before the object and goes after it, so that a crash leaves nothing unaccounted for.
Which objects a lease needs does not belong here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import (
    ColumnElement,
    Update,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import journal

_installed = schema.installed
_ids = select(func.json_each(bindparam("ids")).table_valued("value").c.value)
_OF_IDS = _installed.c.id.in_(_ids)
_OF_OWNER = (
    _installed.c.owner_kind == bindparam("kind_of_owner"),
    _installed.c.owner == bindparam("the_owner"),
)

_insert = sqlite.insert(_installed)
_new = _insert.excluded
_PLAN = Statement(
    _insert.on_conflict_do_update(
        index_elements=["place", "kind", "key"],
        set_={
            "owner_kind": _new["owner_kind"],
            "owner": _new["owner"],
            "spec": _new["spec"],
            "state": _new["state"],
            "changed_at": _new["changed_at"],
            "error": _new["error"],
        },
        where=or_(
            _installed.c.state == schema.word("removing"),
            (_installed.c.owner_kind == _new["owner_kind"]) & (_installed.c.owner == _new["owner"]),
        ),
    ).returning(_installed.c.id),
    ("owner_kind", "owner", "place", "kind", "key", "spec", "state", "changed_at", "error"),
)


_RETIRE = Statement(
    _insert.on_conflict_do_nothing(),
    ("owner_kind", "owner", "place", "kind", "key", "spec", "state", "changed_at", "error"),
)


def _becomes(state: str) -> Update:
    no_error: ColumnElement[str] = literal_column("''")
    return update(_installed).values(
        state=schema.word(state), changed_at=bindparam("changed_at"), error=no_error
    )


_PRESENT_OF = Statement(
    _becomes("present").where(*_OF_OWNER, _installed.c.state == schema.word("pending"))
)
_REMOVING_OF = Statement(
    _becomes("removing").where(*_OF_OWNER, _installed.c.state != schema.word("removing"))
)
_SAID = Statement(
    update(_installed)
    .where(
        _installed.c.place == schema.word("host"),
        _installed.c.kind == bindparam("kind_of_thing"),
        _installed.c.key == bindparam("the_key"),
        _installed.c.error != bindparam("said"),
    )
    .values(error=bindparam("said"))
)
_FORGET = Statement(delete(_installed).where(_OF_IDS))
_FORGET_OF = Statement(delete(_installed).where(*_OF_OWNER))


class Taken(Exception):
    """Two owners want the same kernel object; the sentence names it."""


def plan_installed(
    tx: Write,
    owner_kind: model.OwnerKind,
    owner: str,
    things: Iterable[model.KernelObject],
    now: int,
) -> tuple[model.Installed, ...]:
    """Write down kernel objects about to be made (pending), before the kernel is touched.

    An object whose removal is under way is taken over from its last owner. Raises Taken if another
    owner has it.
    """
    planned = []
    for thing in things:
        kind, *rest = thing.key
        row = tx.one(
            _PLAN,
            owner_kind=owner_kind,
            owner=owner,
            place=rows.place(thing, owner),
            kind=kind,
            key=" ".join(rest),
            spec=rows.spec(thing),
            state="pending",
            changed_at=now,
            error="",
        )
        if row is None:
            raise Taken(f"{' '.join(thing.key)} belongs to another owner than {owner_kind} {owner}")
        planned.append(model.Installed(row[0], owner_kind, owner, thing, "pending"))
    _note(tx, now, "kernel.planned", owner_kind, owner, len(planned))
    return tuple(planned)


def mark_owner_installed(tx: Write, owner_kind: model.OwnerKind, owner: str, now: int) -> None:
    """The kernel has acknowledged everything pending of this owner."""
    changed = tx.run(_PRESENT_OF, kind_of_owner=owner_kind, the_owner=owner, changed_at=now)
    _note(tx, now, "kernel.present", owner_kind, owner, changed.rowcount)


def mark_owner_removing(tx: Write, owner_kind: model.OwnerKind, owner: str, now: int) -> None:
    """Everything of this owner is about to be removed."""
    changed = tx.run(_REMOVING_OF, kind_of_owner=owner_kind, the_owner=owner, changed_at=now)
    _note(tx, now, "kernel.removing", owner_kind, owner, changed.rowcount)


def installed_failed(tx: Write, thing: model.KernelObject, error: str, now: int) -> None:
    """What the kernel said when a thing of the node's was mended, empty for success; it keeps its state."""
    kind, *rest = thing.key
    changed = tx.run(_SAID, kind_of_thing=kind, the_key=" ".join(rest), said=error)
    _note(tx, now, "kernel.failed", "", "", changed.rowcount if error else 0, error)


def forget_installed(tx: Write, ids: Iterable[int], now: int) -> None:
    """These are gone from the kernel."""
    _note(tx, now, "kernel.gone", "", "", tx.run(_FORGET, **_named(ids)).rowcount)


def retire(tx: Write, owner: int, link: model.Link | None, now: int) -> None:
    """A lease's kernel objects are gone, but for its link, which is out of service under this name.

    The row outlives the lease, so that a crash before the link's removal is finished after a start.
    """
    _note(
        tx, now, "kernel.gone", "lease", str(owner),
        tx.run(_FORGET_OF, kind_of_owner="lease", the_owner=str(owner)).rowcount,
    )  # fmt: skip
    if link is None:
        return
    kind, *rest = link.key
    tx.run(
        _RETIRE,
        owner_kind="lease",
        owner=str(owner),
        place="host",
        kind=kind,
        key=" ".join(rest),
        spec=rows.spec(link),
        state="removing",
        changed_at=now,
        error="",
    )
    _note(tx, now, "kernel.retired", "lease", str(owner), 1, link.name)


def forget_owner_installed(tx: Write, owner_kind: model.OwnerKind, owner: str, now: int) -> None:
    """Everything of this owner is gone from the kernel."""
    changed = tx.run(_FORGET_OF, kind_of_owner=owner_kind, the_owner=owner)
    _note(tx, now, "kernel.gone", owner_kind, owner, changed.rowcount)


def _named(ids: Iterable[int]) -> dict[str, str]:
    return {"ids": json.dumps(list(ids))}


def _note(
    tx: Write, now: int, kind: str, owner_kind: str, owner: str, count: int, text: str = ""
) -> None:
    if count == 0:
        return
    journal.line(
        tx,
        now,
        kind,
        f"{owner_kind} {owner}".strip(),
        f"{count} objects {text}".rstrip(),
        lease_id=int(owner) if owner_kind == "lease" else None,
        eni_id=owner if owner_kind == "eni" else None,
    )
