"""What EC2 lets this node have: learnt from its answers to our calls, kept as tombstones.

Only such an answer grants or takes back an address at once. What an observation may change does not
belong here, see `adoption`; intents and calls neither.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable

from sqlalchemy import ColumnElement, bindparam, func, insert, literal_column, select, update
from sqlalchemy.dialects import sqlite

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import journal, kernel

_boots, _enis, _addresses = schema.boots, schema.enis, schema.addresses
_ONE: ColumnElement[int] = literal_column("1")

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
ENI_KNOWN = Statement(select(*rows.ENI).where(_enis.c.eni_id == bindparam("eni_id")))
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
SURVIVES_NOT = Statement(
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

LIVE_ONE = Statement(
    select(_addresses.c.eni_id, _addresses.c.state, _addresses.c.assigned_at).where(
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
_PRIMARY_OF = Statement(
    select(_enis.c.eni_id).where(
        _enis.c.primary_ip == bindparam("address"), _enis.c.gone_at.is_(None)
    )
)
_HOLDER = Statement(
    select(schema.leases.c.id).where(
        schema.leases.c.address == bindparam("address"), schema.leases.c.ended_at.is_(None)
    )
)
_CONFIRM = Statement(
    update(_addresses)
    .where(
        _addresses.c.address == bindparam("of"),
        _addresses.c.eni_id == bindparam("on"),
        _addresses.c.released_at.is_(None),
        _addresses.c.state.in_([schema.word("assigned"), schema.word("releasing")]),
    )
    .values(
        state=schema.word("assigned"),
        absent_since=literal_column("NULL"),
        prefix=func.coalesce(bindparam("within"), _addresses.c.prefix),
    )
)
_REGAINED = Statement(
    update(_addresses)
    .where(
        _addresses.c.address == bindparam("of"),
        _addresses.c.eni_id == bindparam("on"),
        _addresses.c.state == schema.word("assigned"),
    )
    .values(absent_since=literal_column("NULL"), assigned_at=bindparam("now"))
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
_STILL_SINGLE = Statement(
    select(_addresses.c.address).where(
        _addresses.c.address == bindparam("address"),
        _addresses.c.eni_id == bindparam("on"),
        _addresses.c.prefix.is_(None),
        _addresses.c.released_at.is_(None),
    )
)
_QUARANTINE = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(state=schema.word("quarantine"), reason=bindparam("reason"))
)
_TRUSTED = Statement(
    update(_addresses)
    .where(
        _addresses.c.address == bindparam("of"),
        _addresses.c.state == schema.word("quarantine"),
    )
    .values(
        state=schema.word("assigned"),
        reason=literal_column("''"),
        absent_since=literal_column("NULL"),
        rested_since=bindparam("now"),
        cooling_until=bindparam("until"),
    )
)
_prefixes = schema.prefixes
LIVE_PREFIX = Statement(
    select(_prefixes.c.eni_id, _prefixes.c.state).where(
        _prefixes.c.cidr == bindparam("cidr"), _prefixes.c.released_at.is_(None)
    )
)
_PREFIX = Statement(insert(_prefixes), ["cidr", "eni_id", "state", "source", "assigned_at"])
_PREFIX_STATE = Statement(
    update(_prefixes)
    .where(_prefixes.c.cidr == bindparam("of"), _prefixes.c.released_at.is_(None))
    .values(state=bindparam("state"))
)
_PREFIX_RELEASED = Statement(
    update(_prefixes)
    .where(_prefixes.c.cidr == bindparam("of"), _prefixes.c.released_at.is_(None))
    .values(state=schema.word("released"), released_at=bindparam("now"))
)
_IN_PREFIX = Statement(
    select(_addresses.c.address).where(
        _addresses.c.prefix == bindparam("cidr"), _addresses.c.released_at.is_(None)
    )
)
_PREFIXES_OF_ENI = Statement(
    select(_prefixes.c.cidr).where(
        _prefixes.c.eni_id == bindparam("eni_id"), _prefixes.c.released_at.is_(None)
    )
)
_OF_ENI = Statement(
    select(_addresses.c.address).where(
        _addresses.c.eni_id == bindparam("eni_id"), _addresses.c.released_at.is_(None)
    )
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


def eni_created(
    tx: Write, eni: model.Eni, addresses: Iterable[str], now: int, prefixes: Iterable[str] = ()
) -> None:
    """EC2 has answered CreateNetworkInterface with this interface, these secondaries and prefixes."""
    tx.must_outlive_power()
    if tx.one(ENI_KNOWN, eni_id=eni.eni_id) is None:  # a repeated token is answered the same again
        insert_eni(tx, eni, "create", now)
    addresses_assigned(tx, eni.eni_id, addresses, "create", now)
    prefixes_assigned(tx, eni.eni_id, prefixes, "create", now)


def insert_eni(tx: Write, eni: model.Eni, source: str, now: int) -> None:
    """An interface the ledger did not know; `source` is create or adopted."""
    values = {field: getattr(eni, field) for field in model.Eni.__slots__ if field != "primary"}
    for name in ("managed", "delete_on_termination"):
        values[name] = int(values[name])
    tx.run(
        _ENI, **values, is_primary=int(eni.primary), source=source, created_at=now, changed_at=now
    )
    _give_up_primary(tx, eni, now)
    text = f"{source} {eni.state} device {eni.device}"
    journal.line(tx, now, "eni.known", eni.mac, text, eni_id=eni.eni_id)


def _give_up_primary(tx: Write, eni: model.Eni, now: int) -> None:
    """EC2 gives out as primary only what is nobody's: an address we thought ours in the pool is not."""
    if tx.one(LIVE_ONE, address=eni.primary_ip) is None:
        return
    text = f"EC2 made it the primary address of {eni.eni_id}"
    if tx.one(_HOLDER, address=eni.primary_ip) is None:
        addresses_released(tx, [eni.primary_ip], now, text)
    else:
        address_quarantine(tx, eni.primary_ip, text, now)


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
    tx.run(SURVIVES_NOT, of=eni_id, set=1)
    journal.line(tx, now, "eni.delete_on_termination", eni_id, eni_id=eni_id)


def eni_gone(tx: Write, eni_id: str, reason: str, now: int) -> None:
    """EC2 has confirmed that the interface is gone, and with it its addresses and its link's objects."""
    tx.must_outlive_power()
    kernel.forget_owner_installed(
        tx, "eni", eni_id, now
    )  # the next on its device has the same ones
    left = [address for (address,) in tx.all(_OF_ENI, eni_id=eni_id)]
    prefixes_released(tx, [cidr for (cidr,) in tx.all(_PREFIXES_OF_ENI, eni_id=eni_id)], now)
    addresses_released(tx, left, now, reason)
    tx.run(_GONE, of=eni_id, reason=reason, now=now)
    journal.line(tx, now, "eni.gone", eni_id, reason, eni_id=eni_id)


# --------------------------------------------------------------------------- addresses


def addresses_assigned(
    tx: Write, eni_id: str, addresses: Iterable[str], source: str, now: int
) -> int:
    """EC2 says that these secondaries are the interface's; how many the ledger did not know."""
    tx.must_outlive_power()
    return sum(assigned(tx, eni_id, address, source, now) for address in addresses)


def assigned(
    tx: Write, eni_id: str, address: str, source: str, now: int, prefix: str | None = None
) -> bool:
    """True if the address is new. One in quarantine stays there: EC2 was not asked why.

    One that the ledger has as an interface's primary address waits until that interface's end is known.
    """
    primary_of = tx.one(_PRIMARY_OF, address=address)
    if primary_of is not None:
        text = f"it is the primary address of {primary_of[0]}, which may be gone"
        journal.line(tx, now, "address.passed_over", address, text, eni_id=eni_id, address=address)
        return False
    if tx.run(_CONFIRM, of=address, on=eni_id, within=prefix).rowcount:
        return False
    row = tx.one(LIVE_ONE, address=address)
    if row is not None:
        if row[0] == eni_id:
            return False
        if tx.one(_HOLDER, address=address) is not None:
            text = f"EC2 gave it to {eni_id} while a pod holds it on {row[0]}"
            address_quarantine(tx, address, text, now)
            return False
        addresses_released(tx, [address], now, f"moved to {eni_id}")
    tx.run(
        _ADDRESS,
        address=address,
        eni_id=eni_id,
        family=6 if ":" in address else 4,
        prefix=prefix,
        state="assigned",
        source=source,
        assigned_at=now,
        rested_since=0,
        cooling_until=0,
        reason="",
    )
    journal.line(tx, now, "address.assigned", address, source, eni_id=eni_id, address=address)
    return True


def addresses_regained(tx: Write, eni_id: str, addresses: Iterable[str], now: int) -> None:
    """EC2 has assigned these again, by name, to the interface they had gone from: confirmed anew."""
    tx.must_outlive_power()
    for address in addresses:
        tx.run(_REGAINED, of=address, on=eni_id, now=now)
        journal.line(tx, now, "address.regained", address, eni_id=eni_id, address=address)


def addresses_releasing(tx: Write, eni_id: str, addresses: Iterable[str], now: int) -> None:
    """EC2 is about to be asked to take these back: no pod gets one from now on.

    Raises sqlite3.IntegrityError if a pod was given one since this was planned: plan again.
    """
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


def given_back(
    tx: Write, eni_id: str, now: int, addresses: Iterable[str] = (), cidrs: Iterable[str] = ()
) -> None:
    """EC2 has taken single addresses, or prefixes, from this interface. The answer may be late.

    What has come to us in the meantime by another road, such as within a prefix, stays.
    """
    addresses_released(
        tx, [a for a in addresses if tx.one(_STILL_SINGLE, address=a, on=eni_id)], now
    )
    live = {cidr: tx.one(LIVE_PREFIX, cidr=cidr) for cidr in cidrs}
    prefixes_released(tx, [cidr for cidr, row in live.items() if row and row[0] == eni_id], now)


def address_trusted(tx: Write, address: str, now: int, cooling_ms: int) -> None:
    """The doubt is gone: the address can be used, after a rest as if a pod had just left it."""
    tx.run(_TRUSTED, of=address, now=now, until=now + cooling_ms)
    journal.line(tx, now, "address.trusted", address, address=address)


def address_quarantine(tx: Write, address: str, reason: str, now: int) -> None:
    """The address is doubtful: neither given to a pod nor given back; a lease on it stays."""
    tx.run(_QUARANTINE, of=address, reason=reason)
    journal.line(tx, now, "address.quarantine", address, reason, address=address)


# --------------------------------------------------------------------------- prefixes


def prefixes_assigned(tx: Write, eni_id: str, cidrs: Iterable[str], source: str, now: int) -> int:
    """EC2 says that these networks are delegated to the interface; how many the ledger did not know.

    Every address of a /28 is a pod's to have, its first and last too (EC2 User Guide, "Prefix delegation").
    """
    tx.must_outlive_power()
    return sum(prefix_assigned(tx, eni_id, cidr, source, now) for cidr in cidrs)


def prefix_assigned(tx: Write, eni_id: str, cidr: str, source: str, now: int) -> bool:
    """True if the prefix is new. One whose release did not happen is in use again."""
    held = tx.one(LIVE_PREFIX, cidr=cidr)
    if held is not None and held[0] != eni_id:
        prefixes_released(tx, [cidr], now, f"moved to {eni_id}")
        held = None
    if held is None:
        tx.run(_PREFIX, cidr=cidr, eni_id=eni_id, state="assigned", source=source, assigned_at=now)
        journal.line(tx, now, "prefix.assigned", cidr, source, eni_id=eni_id)
    else:
        tx.run(_PREFIX_STATE, of=cidr, state="assigned")
    for address in ipaddress.ip_network(cidr):
        assigned(tx, eni_id, str(address), source, now, prefix=cidr)
    return held is None


def prefixes_regained(tx: Write, eni_id: str, cidrs: Iterable[str], now: int) -> None:
    """EC2 has delegated these again, by name, to the interface they had gone from: confirmed anew."""
    tx.must_outlive_power()
    for cidr in cidrs:
        addresses_regained(tx, eni_id, [a for (a,) in tx.all(_IN_PREFIX, cidr=cidr)], now)
        journal.line(tx, now, "prefix.regained", cidr, eni_id=eni_id)


def prefixes_releasing(tx: Write, eni_id: str, cidrs: Iterable[str], now: int) -> None:
    """EC2 is about to be asked to take these back: no pod gets an address of theirs from now on.

    Raises sqlite3.IntegrityError if a pod was given one since this was planned: plan again.
    """
    tx.must_outlive_power()
    for cidr in cidrs:
        tx.run(_PREFIX_STATE, of=cidr, state="releasing")
        addresses_releasing(tx, eni_id, [a for (a,) in tx.all(_IN_PREFIX, cidr=cidr)], now)
        journal.line(tx, now, "prefix.releasing", cidr, eni_id=eni_id)


def prefixes_released(tx: Write, cidrs: Iterable[str], now: int, reason: str = "released") -> None:
    """EC2 has confirmed that these are no longer ours; they and their addresses stay as tombstones."""
    tx.must_outlive_power()
    for cidr in cidrs:
        addresses_released(tx, [a for (a,) in tx.all(_IN_PREFIX, cidr=cidr)], now, reason)
        tx.run(_PREFIX_RELEASED, of=cidr, now=now)
        journal.line(tx, now, "prefix.released", cidr, reason)
