"""Bring in what another CNI gave out: leases of pods it wired, and addresses whose holder nobody names.

Which pods live, and on which interface an address is, is decided before; what they need in the kernel
does not belong here either.
"""

from __future__ import annotations

from sqlalchemy import bindparam, insert, update

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import cloud, journal, leases

_INSERT = Statement(
    insert(schema.leases).returning(*rows.LEASE),
    [
        "container_id", "ifname", "network", "netns", "family", "state", "address", "eni_id",
        "host_ifname", "host_mac", "pod_namespace", "pod_name", "pod_uid", "boot_id",
        "created_at", "claimed_at", "activated_at", "reason", "adopted",
    ],
)  # fmt: skip
_TAKEOVER = Statement(
    insert(schema.takeovers),
    ["at", "origin", "checkpoint", "leases", "stale", "quarantined"],
)
_HANDED_BACK = Statement(
    update(schema.takeovers)
    .where(schema.takeovers.c.handed_back_at.is_(None))
    .values(handed_back_at=bindparam("at"))
)


def adopt_lease(
    tx: Write,
    allocation: model.Allocation,
    *,
    eni_id: str,
    host_ifname: str,
    host_mac: str,
    boot_id: str,
    in_doubt: bool,
    now: int,
) -> model.Lease:
    """The lease of a pod that another CNI wired, with a row for its address if EC2 shows none.

    A sandbox that has an open lease already keeps it, and that is returned.
    """
    held = leases.of_key(tx, allocation.container_id, allocation.ifname)
    if held is not None:
        return held
    cloud.assigned(tx, eni_id, allocation.address, "adopted", now)
    created_at = allocation.allocated_at or now
    row = tx.one(
        _INSERT,
        container_id=allocation.container_id,
        ifname=allocation.ifname,
        network=allocation.network,
        netns=allocation.netns,
        family=4,
        state="in_doubt" if in_doubt else "active",
        address=allocation.address,
        eni_id=eni_id,
        host_ifname=host_ifname,
        host_mac=host_mac,
        pod_namespace=allocation.pod_namespace,
        pod_name=allocation.pod_name,
        pod_uid="",
        boot_id=boot_id,
        created_at=created_at,
        claimed_at=created_at,
        activated_at=created_at,
        reason="",
        adopted=1,
    )
    assert row is not None
    lease = rows.lease(row)
    who = f"{lease.pod_namespace}/{lease.pod_name} {lease.ifname}"
    journal.line(
        tx, now, "lease.adopted", who, lease_id=lease.id, eni_id=eni_id, address=lease.address
    )
    return lease


def record_takeover(
    tx: Write,
    *,
    origin: str,
    checkpoint: str,
    leases: int,
    stale: int,
    quarantined: int,
    now: int,
) -> None:
    """The node is ours from now on; it happens once."""
    tx.run(
        _TAKEOVER,
        at=now,
        origin=origin,
        checkpoint=checkpoint,
        leases=leases,
        stale=stale,
        quarantined=quarantined,
    )
    text = f"{leases} leases, {stale} stale, {quarantined} addresses in quarantine"
    journal.line(tx, now, "node.taken_over", origin, text)


def hand_back(tx: Write, now: int) -> None:
    """The node is another CNI's from now on."""
    tx.run(_HANDED_BACK, at=now)
    journal.line(tx, now, "node.handed_back", "")
