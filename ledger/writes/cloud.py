"""What EC2 lets this node have: learnt from its answers, doubted by observations, kept as tombstones.

Only EC2's own answer to a call of ours grants or takes back an address at once. An observation may
bring in what the ledger never knew and mark what it misses; it ends no lease. Intents and calls do not
belong here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, bindparam, func, insert, literal_column, select, update
from sqlalchemy.dialects import sqlite

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import journal

_boots, _enis, _addresses = schema.boots, schema.enis, schema.addresses
_ONE: ColumnElement[int] = literal_column("1")

ADOPTION_LAG_MS = 300_000
"""EC2's and IMDS's pictures may be this old: what we released later than that is not believed back."""

_new_boot = sqlite.insert(_boots)
_BOOT = Statement(
    _new_boot.on_conflict_do_update(
        index_elements=["boot_id"],
        set_={"last_start_at": _new_boot.excluded.last_start_at, "starts": _boots.c.starts + _ONE},
    ).returning(_boots.c.starts),
    ("boot_id", "first_seen_at", "last_start_at", "starts"),
)
_new_node = sqlite.insert(schema.node)
_NODE = Statement(
    _new_node.on_conflict_do_update(
        index_elements=["id"],
        set_={c.name: _new_node.excluded[c.name] for c in schema.node.c if c.name != "id"},
    ),
    [column.name for column in schema.node.c],
)
_ENI = Statement(
    insert(_enis),
    [
        column.name
        for column in _enis.c
        if column.name not in {"absent_since", "gone_at", "gone_reason"}
    ],
)
_ENI_KNOWN = Statement(
    select(*rows.ENI, _enis.c.absent_since).where(_enis.c.eni_id == bindparam("eni_id"))
)
_LIVE_ENIS = Statement(select(*rows.ENI, _enis.c.absent_since).where(_enis.c.gone_at.is_(None)))
_ATTACHING = Statement(
    update(_enis)
    .where(_enis.c.eni_id == bindparam("of"), _enis.c.gone_at.is_(None))
    .values(
        state=schema.word("attaching"),
        device=bindparam("device"),
        card=bindparam("card"),
        attachment_id=bindparam("attachment_id"),
        attached_at=bindparam("now"),
        changed_at=bindparam("now"),
    )
)
_STATE = Statement(
    update(_enis)
    .where(_enis.c.eni_id == bindparam("of"), _enis.c.gone_at.is_(None))
    .values(state=bindparam("state"), changed_at=bindparam("now"))
)
_SURVIVES_NOT = Statement(
    update(_enis)
    .where(_enis.c.eni_id == bindparam("of"))
    .values(delete_on_termination=bindparam("set"))
)
_GONE = Statement(
    update(_enis)
    .where(_enis.c.eni_id == bindparam("of"), _enis.c.gone_at.is_(None))
    .values(
        state=schema.word("gone"),
        gone_at=bindparam("now"),
        gone_reason=bindparam("reason"),
        changed_at=bindparam("now"),
    )
)
_ENI_ABSENT = Statement(
    update(_enis).where(_enis.c.eni_id == bindparam("of")).values(absent_since=bindparam("since"))
)

_LIVE = Statement(
    select(
        _addresses.c.address,
        _addresses.c.eni_id,
        _addresses.c.state,
        _addresses.c.assigned_at,
        _addresses.c.absent_since,
    ).where(_addresses.c.released_at.is_(None))
)
_LIVE_ONE = Statement(
    select(_addresses.c.eni_id, _addresses.c.state).where(
        _addresses.c.address == bindparam("address"), _addresses.c.released_at.is_(None)
    )
)
_ADDRESS = Statement(
    insert(_addresses),
    [
        "address", "eni_id", "family", "prefix", "state", "source",
        "assigned_at", "rested_since", "cooling_until", "reason",
    ],
)  # fmt: skip
_CONFIRM = Statement(
    update(_addresses)
    .where(
        _addresses.c.address == bindparam("of"),
        _addresses.c.eni_id == bindparam("on"),
        _addresses.c.released_at.is_(None),
        _addresses.c.state.in_([schema.word("assigned"), schema.word("releasing")]),
    )
    .values(state=schema.word("assigned"), absent_since=literal_column("NULL"))
)
_RELEASING = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.state == schema.word("assigned"))
    .values(state=schema.word("releasing"))
)
_RELEASED = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(state=schema.word("released"), released_at=bindparam("now"), reason=bindparam("reason"))
)
_QUARANTINE = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(state=schema.word("quarantine"), reason=bindparam("reason"))
)
_ABSENT = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(absent_since=bindparam("since"))
)
_OF_ENI = Statement(
    select(_addresses.c.address).where(
        _addresses.c.eni_id == bindparam("eni_id"), _addresses.c.released_at.is_(None)
    )
)
_LAST_RELEASE = Statement(
    select(func.max(_addresses.c.released_at)).where(_addresses.c.address == bindparam("address"))
)


# --------------------------------------------------------------------------- the node


def record_boot(tx: Write, boot_id: str, now: int) -> bool:
    """Note a start of the daemon; True if the machine was booted since the last one."""
    row = tx.one(_BOOT, boot_id=boot_id, first_seen_at=now, last_start_at=now, starts=1)
    new = row is not None and row[0] == 1
    journal.line(tx, now, "boot.new" if new else "daemon.start", boot_id)
    return new


def record_node(tx: Write, node: model.Node, now: int) -> None:
    """Who this machine is, as instance metadata says now."""
    values = {field: getattr(node, field) for field in model.Node.__slots__}
    values["vpc_cidrs"] = json.dumps(node.vpc_cidrs)
    values["security_groups"] = json.dumps(node.security_groups)
    tx.run(_NODE, id=1, seen_at=now, **values)
    journal.line(tx, now, "node.seen", node.instance_id)


# --------------------------------------------------------------------------- interfaces


def eni_created(tx: Write, eni: model.Eni, addresses: Iterable[str], now: int) -> None:
    """EC2 has answered CreateNetworkInterface with this interface and these secondaries."""
    tx.must_outlive_power()
    if tx.one(_ENI_KNOWN, eni_id=eni.eni_id) is None:  # a repeated token is answered the same again
        _insert_eni(tx, eni, "create", now)
    addresses_assigned(tx, eni.eni_id, addresses, "create", now)


def _insert_eni(tx: Write, eni: model.Eni, source: str, now: int) -> None:
    values = {field: getattr(eni, field) for field in model.Eni.__slots__ if field != "primary"}
    for name in ("managed", "delete_on_termination"):
        values[name] = int(values[name])
    tx.run(
        _ENI, **values, is_primary=int(eni.primary), source=source, created_at=now, changed_at=now
    )
    text = f"{source} {eni.state} device {eni.device}"
    journal.line(tx, now, "eni.known", eni.mac, text, eni_id=eni.eni_id)


def eni_attaching(
    tx: Write, eni_id: str, device: int, card: int, attachment_id: str, now: int
) -> None:
    """EC2 has accepted AttachNetworkInterface."""
    tx.must_outlive_power()
    tx.run(_ATTACHING, of=eni_id, device=device, card=card, attachment_id=attachment_id, now=now)
    journal.line(tx, now, "eni.attaching", attachment_id, f"device {device}", eni_id=eni_id)


def eni_state(tx: Write, eni_id: str, state: model.EniState, now: int) -> None:
    """The interface has moved on; the schema refuses to take one away that pods use."""
    tx.run(_STATE, of=eni_id, state=state, now=now)
    journal.line(tx, now, f"eni.{state}", eni_id, eni_id=eni_id)


def eni_dot(tx: Write, eni_id: str, now: int) -> None:
    """EC2 will remove the interface together with the instance."""
    tx.must_outlive_power()
    tx.run(_SURVIVES_NOT, of=eni_id, set=1)
    journal.line(tx, now, "eni.delete_on_termination", eni_id, eni_id=eni_id)


def eni_gone(tx: Write, eni_id: str, reason: str, now: int) -> None:
    """EC2 has confirmed that the interface is gone, and with it its addresses."""
    tx.must_outlive_power()
    left = [address for (address,) in tx.all(_OF_ENI, eni_id=eni_id)]
    addresses_released(tx, left, now, reason)
    tx.run(_GONE, of=eni_id, reason=reason, now=now)
    journal.line(tx, now, "eni.gone", eni_id, reason, eni_id=eni_id)


# --------------------------------------------------------------------------- addresses


def addresses_assigned(
    tx: Write, eni_id: str, addresses: Iterable[str], source: str, now: int
) -> int:
    """EC2 says that these secondaries are the interface's; how many the ledger did not know."""
    tx.must_outlive_power()
    return sum(_assigned(tx, eni_id, address, source, now) for address in addresses)


def _assigned(tx: Write, eni_id: str, address: str, source: str, now: int) -> bool:
    if tx.run(_CONFIRM, of=address, on=eni_id).rowcount:
        return False
    tx.run(
        _ADDRESS,
        address=address,
        eni_id=eni_id,
        family=6 if ":" in address else 4,
        prefix=None,
        state="assigned",
        source=source,
        assigned_at=now,
        rested_since=0,
        cooling_until=0,
        reason="",
    )
    journal.line(tx, now, "address.assigned", address, source, eni_id=eni_id, address=address)
    return True


def addresses_releasing(tx: Write, eni_id: str, addresses: Iterable[str], now: int) -> None:
    """EC2 is about to be asked to take these back: no pod gets one from now on."""
    tx.must_outlive_power()
    for address in addresses:
        tx.run(_RELEASING, of=address)
        journal.line(tx, now, "address.releasing", address, eni_id=eni_id, address=address)


def addresses_released(
    tx: Write, addresses: Iterable[str], now: int, reason: str = "released"
) -> None:
    """EC2 has confirmed that these are no longer ours; the rows stay as tombstones."""
    tx.must_outlive_power()
    for address in addresses:
        tx.run(_RELEASED, of=address, now=now, reason=reason)
        journal.line(tx, now, "address.released", address, reason, address=address)


def address_quarantine(tx: Write, address: str, reason: str, now: int) -> None:
    """The address is doubtful: neither given to a pod nor given back; a lease on it stays."""
    tx.run(_QUARANTINE, of=address, reason=reason)
    journal.line(tx, now, "address.quarantine", address, reason, address=address)


# --------------------------------------------------------------------------- observations


def adopt(tx: Write, seen: model.ObservedCloud, now: int) -> bool:
    """Bring in what EC2 shows and the ledger does not know; mark what it misses. True if any is new.

    Nothing but EC2's own picture is adopted. An address we released is believed back only by a picture
    newer than the release by ADOPTION_LAG_MS, and one we were given is missed no sooner. What is missing gets `absent_since`, so that no pod is
    given it meanwhile; leases are left alone.
    """
    if seen.source != "ec2":
        return False
    known = {row[0]: row for row in tx.all(_LIVE_ENIS)}
    changed = False
    for each in seen.enis:
        changed |= _adopt_eni(tx, each, seen.at, now)
    shown = {each.eni.eni_id for each in seen.enis}
    for eni_id, row in known.items():
        _mark_eni(tx, rows.eni(row[:-1]), row[-1], eni_id in shown, seen.at)
    _mark_addresses(tx, seen, now)
    return changed


def _adopt_eni(tx: Write, each: model.ObservedEni, seen_at: int, now: int) -> bool:
    eni = each.eni
    row = tx.one(_ENI_KNOWN, eni_id=eni.eni_id)
    changed = row is None
    if row is None:
        _insert_eni(tx, eni, "adopted", now)
    else:
        before = rows.eni(row[:-1])
        if before.state == "gone":  # an old picture of what we deleted
            return False
        if before.state == "created" and eni.attachment_id is not None:
            eni_attaching(tx, eni.eni_id, eni.device, eni.card, eni.attachment_id, now)
            changed = True
        if eni.attachment_id and before.delete_on_termination != eni.delete_on_termination:
            tx.run(_SURVIVES_NOT, of=eni.eni_id, set=int(eni.delete_on_termination))
    if eni.managed:
        for address in each.addresses:
            changed |= _adopt_address(tx, eni.eni_id, address, seen_at, now)
    return changed


def _adopt_address(tx: Write, eni_id: str, address: str, seen_at: int, now: int) -> bool:
    """True if it is new. One that the ledger has on another interface is doubtful from now on."""
    held = tx.one(_LIVE_ONE, address=address)
    if held is None:
        return _believed(tx, address, seen_at) and _assigned(tx, eni_id, address, "adopted", now)
    if held[0] != eni_id and held[1] == "assigned":
        address_quarantine(tx, address, f"EC2 shows it on {eni_id}, we had it on {held[0]}", now)
    return False


def _believed(tx: Write, address: str, seen_at: int) -> bool:
    row = tx.one(_LAST_RELEASE, address=address)
    released_at = row[0] if row else None
    return released_at is None or seen_at > released_at + ADOPTION_LAG_MS


def _mark_eni(
    tx: Write, eni: model.Eni, absent_since: int | None, shown: bool, seen_at: int
) -> None:
    if shown and absent_since is not None:
        tx.run(_ENI_ABSENT, of=eni.eni_id, since=None)
    elif not shown and absent_since is None:
        tx.run(_ENI_ABSENT, of=eni.eni_id, since=seen_at)


def _mark_addresses(tx: Write, seen: model.ObservedCloud, now: int) -> None:
    shown: dict[str, Sequence[str]] = {each.eni.eni_id: each.addresses for each in seen.enis}
    for address, eni_id, state, assigned_at, absent_since in tx.all(_LIVE):
        there = address in shown.get(eni_id, ())
        if there and absent_since is not None:
            tx.run(_ABSENT, of=address, since=None)
            journal.line(tx, now, "address.seen_again", address, eni_id=eni_id, address=address)
        elif assigned_at > seen.at - ADOPTION_LAG_MS:
            continue  # our own answer is younger than what this picture can be
        elif not there and absent_since is None and state == "assigned":
            tx.run(_ABSENT, of=address, since=seen.at)
            journal.line(tx, now, "address.absent", address, eni_id=eni_id, address=address)
