"""Who holds an address: claimed, activated, ended, in doubt after a reboot.

An observation never ends a lease (decision 2), so nothing here takes one. The schema's indexes are
the referee; the choice made for it (see `choice`) only aims to please it. What the kernel needs for a
lease does not belong here.
"""

from __future__ import annotations

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.dialects import sqlite

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import choice, journal

_leases, _addresses, _enis = schema.leases, schema.addresses, schema.enis

_OPEN = Statement(
    select(*rows.LEASE).where(
        _leases.c.container_id == bindparam("container_id"),
        _leases.c.ifname == bindparam("ifname"),
        _leases.c.family == bindparam("family"),
        _leases.c.ended_at.is_(None),
    )
)

_NOT_AT_FIRST = frozenset({"id", "activated_at", "ended_at", "adopted"})
_INSERT = Statement(
    insert(_leases),
    [column.name for column in _leases.c if column.name not in _NOT_AT_FIRST],
)
_STOP_WAITING = Statement(
    update(_leases)
    .where(_leases.c.id == bindparam("id"))
    .values(
        {
            name: bindparam(name)
            for name in ("network", "netns", "host_ifname", "host_mac", "boot_id", "pod_uid")
        }
        | {name: bindparam(name) for name in ("state", "address", "eni_id", "claimed_at", "reason")}
    )
    .returning(*rows.LEASE)
)
_ACTIVATE = Statement(
    update(_leases)
    .where(
        _leases.c.id == bindparam("id"),
        _leases.c.state.in_([schema.word("reserved"), schema.word("in_doubt")]),
    )
    .values(state=schema.word("active"), activated_at=bindparam("activated_at"))
    .returning(_leases.c.address, _leases.c.eni_id)
)
_END = Statement(
    update(_leases)
    .where(_leases.c.id == bindparam("id"), _leases.c.ended_at.is_(None))
    .values(state=schema.word("ended"), ended_at=bindparam("ended_at"), reason=bindparam("reason"))
    .returning(*rows.LEASE)
)
_REST = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(rested_since=bindparam("rested_since"), cooling_until=bindparam("cooling_until"))
)
_DOUBT = Statement(
    update(_leases)
    .where(_leases.c.id == bindparam("id"), _leases.c.state == schema.word("active"))
    .values(state=schema.word("in_doubt"))
    .returning(_leases.c.address)
)
_IDENTIFY = Statement(
    update(_leases)
    .where(_leases.c.id == bindparam("of"), _leases.c.ended_at.is_(None))
    .values(
        {name: bindparam(name) for name in ("container_id", "pod_namespace", "pod_name", "pod_uid")}
    )
)
_HAS_KEY = Statement(
    select(_leases.c.id).where(
        _leases.c.container_id == bindparam("container_id"),
        _leases.c.ended_at.is_(None),
        _leases.c.id != bindparam("id"),
    )
)
_late = sqlite.insert(schema.late_deletes)
_LATE_DELETE = Statement(
    _late.on_conflict_do_update(
        index_elements=["container_id", "ifname"], set_={"at": _late.excluded["at"]}
    ),
    ("container_id", "ifname", "at"),
)


def claim(
    tx: Write,
    *,
    container_id: str,
    ifname: str,
    network: str,
    netns: str,
    pod_namespace: str,
    pod_name: str,
    pod_uid: str,
    boot_id: str,
    host_ifname: str,
    host_mac: str,
    family: int = 4,
    prefixes: bool = False,
    now: int,
) -> model.Lease:
    """The lease of this sandbox interface: the one it has, or a new one, reserved or waiting.

    A held lease is returned unchanged, so that asking twice gives the same address. Otherwise the
    longest-rested address of the fullest prefix on the fullest usable interface is taken: what is full
    stays full, and the rest can be given back. `prefixes` says which kind is taken first, the addresses
    of prefixes or single ones. With none free the lease waits (reason 'growing') and is tried again by
    the next claim of the same key.
    """
    key = {"container_id": container_id, "ifname": ifname, "family": family}
    row = tx.one(_OPEN, **key)
    held = None if row is None else rows.lease(row)
    if held is not None and held.state != "waiting":
        return held
    address, eni_id = choice.longest_rested(tx, family, prefixes, now)
    if held is not None and address is None:
        return held
    state: model.LeaseState = "waiting" if address is None else "reserved"
    reason = "growing" if address is None else ""
    attempt = {
        "network": network,
        "netns": netns,
        "host_ifname": host_ifname,
        "host_mac": host_mac,
        "boot_id": boot_id,
        "pod_uid": pod_uid,
        "state": state,
        "address": address,
        "eni_id": eni_id,
        "reason": reason,
    }
    claimed_at = None if address is None else now
    if held is not None:
        again = tx.one(_STOP_WAITING, id=held.id, claimed_at=claimed_at, **attempt)
        assert again is not None
        lease = rows.lease(again)
    else:
        pod = {"pod_namespace": pod_namespace, "pod_name": pod_name}
        made = tx.run(_INSERT, **key, **pod, **attempt, claimed_at=claimed_at, created_at=now)
        lease = model.Lease(
            made.lastrowid or 0,
            container_id,
            ifname,
            network,
            netns,
            state,
            address,
            eni_id,
            family,
            host_ifname,
            host_mac,
            pod_namespace,
            pod_name,
            pod_uid,
            boot_id,
            now,
            None,
            reason,
        )
    kind = "lease.waiting" if address is None else "lease.claimed"
    who = f"{pod_namespace}/{pod_name} {ifname}"
    journal.line(tx, now, kind, who, reason, lease_id=lease.id, eni_id=eni_id, address=address)
    return lease


def of_key(tx: Write, container_id: str, ifname: str, family: int = 4) -> model.Lease | None:
    """The open lease of a sandbox interface."""
    row = tx.one(_OPEN, container_id=container_id, ifname=ifname, family=family)
    return None if row is None else rows.lease(row)


def activate(tx: Write, lease_id: int, now: int) -> None:
    """The sandbox is wired (or was found to be, for a lease in doubt). An active one stays as it is."""
    row = tx.one(_ACTIVATE, id=lease_id, activated_at=now)
    if row is not None:
        address, eni_id = row
        journal.line(
            tx, now, "lease.active", address, lease_id=lease_id, eni_id=eni_id, address=address
        )


def end(tx: Write, lease_id: int, reason: str, now: int, cooling_ms: int) -> model.Lease | None:
    """End an open lease and let its address cool for `cooling_ms`; None if it was not open.

    `reason` is a reason code; the schema refuses an empty one.
    """
    row = tx.one(_END, id=lease_id, ended_at=now, reason=reason)
    if row is None:
        return None
    choice.forget(tx)
    lease = rows.lease(row)
    if lease.address is not None:
        tx.run(_REST, of=lease.address, rested_since=now, cooling_until=now + cooling_ms)
    journal.line(
        tx,
        now,
        "lease.ended",
        f"{lease.pod_namespace}/{lease.pod_name} {lease.ifname}",
        reason,
        lease_id=lease_id,
        eni_id=lease.eni_id,
        address=lease.address,
    )
    return lease


def doubt(tx: Write, lease_id: int, now: int) -> None:
    """One witness against an active lease and not two: it keeps its address until that is settled."""
    row = tx.one(_DOUBT, id=lease_id)
    if row is not None:
        journal.line(tx, now, "lease.in_doubt", row[0], lease_id=lease_id, address=row[0])


def identify(tx: Write, lease_id: int, sandbox: model.Sandbox, now: int) -> None:
    """The sandbox of a lease whose container id was made up, for want of a record, is known now."""
    if tx.one(_HAS_KEY, container_id=sandbox.id, id=lease_id) is not None:
        return
    named = tx.run(
        _IDENTIFY,
        of=lease_id,
        container_id=sandbox.id,
        pod_namespace=sandbox.pod_namespace,
        pod_name=sandbox.pod_name,
        pod_uid=sandbox.pod_uid,
    )
    if named.rowcount:
        who = f"{sandbox.pod_namespace}/{sandbox.pod_name}"
        journal.line(tx, now, "lease.identified", who, sandbox.id, lease_id=lease_id)


def note_late_delete(tx: Write, container_id: str, ifname: str, now: int) -> None:
    """Remember a deletion for an unknown sandbox, so that a takeover does not bring its lease in."""
    tx.run(_LATE_DELETE, container_id=container_id, ifname=ifname, at=now)
    journal.line(tx, now, "lease.late_delete", f"{container_id} {ifname}")
