"""What the reconciler asks: the open rows as nouns, and the few sums it decides by.

Text for a person does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Integer,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
)

from ledger import model, rows, schema
from ledger.database import Read, Statement
from ledger.reads.terms import HOLDS, LIVE, ONE, OPEN, OPEN_STATES, ZERO

_leases, _addresses, _enis = schema.leases, schema.addresses, schema.enis
_intents, _installed = schema.intents, schema.installed
_HOST_LINK: ColumnElement[str] = literal_column("'host '")

_NODE = Statement(select(*rows.NODE))
_SCHEDULING = Statement(
    select(
        schema.scheduling.c.schedulable, schema.scheduling.c.max_pods, schema.scheduling.c.seen_at
    )
)
_ENI = Statement(select(*rows.ENI).where(_enis.c.eni_id == bindparam("eni_id")))
_ENIS = Statement(
    select(*rows.ENI).where(_enis.c.gone_at.is_(None)).order_by(_enis.c.device, _enis.c.eni_id)
)
_PREFIXES = Statement(select(*rows.PREFIX).where(schema.prefixes.c.released_at.is_(None)))
_ADDRESSES = Statement(
    select(*rows.ADDRESS, _leases.c.id.is_not(None))
    .select_from(_addresses.outerjoin(_leases, HOLDS))
    .where(LIVE)
)
_LEASE = Statement(select(*rows.LEASE).where(_leases.c.id == bindparam("id")))
_LEASES = Statement(select(*rows.LEASE).where(OPEN).order_by(_leases.c.id))
_WAITING = Statement(
    select(*rows.LEASE)
    .where(OPEN, _leases.c.state == schema.word("waiting"))
    .order_by(_leases.c.id)
)
_OF_KEY = Statement(
    select(*rows.LEASE).where(
        _leases.c.container_id == bindparam("container_id"),
        _leases.c.ifname == bindparam("ifname"),
        _leases.c.family == bindparam("family"),
        OPEN,
    )
)
_of_pod = _leases.alias("of_pod")
_LAST_OF_POD = Statement(
    select(*rows.LEASE).where(
        _leases.c.id
        == select(func.max(_of_pod.c.id))
        .where(
            _of_pod.c.pod_namespace == bindparam("pod_namespace"),
            _of_pod.c.pod_name == bindparam("pod_name"),
            _of_pod.c.address.is_not(None),
        )
        .scalar_subquery()
    )
)
_INSTALLED = Statement(select(*rows.INSTALLED).order_by(_installed.c.id))
_INSTALLED_FOR = Statement(
    select(*rows.INSTALLED)
    .where(
        _installed.c.owner_kind == bindparam("owner_kind"), _installed.c.owner == bindparam("owner")
    )
    .order_by(_installed.c.id)
)
_RETIRED = Statement(
    select(*rows.INSTALLED)
    .where(
        _installed.c.place == schema.word("host"),
        _installed.c.kind == schema.word("link"),
        _installed.c.owner_kind == schema.word("lease"),
        _installed.c.state == schema.word("removing"),
        ~select(ONE)
        .where(
            _leases.c.id == cast(_installed.c.owner, Integer),
            OPEN,
            _installed.c.key == _HOST_LINK.concat(_leases.c.host_ifname),
        )
        .correlate(_installed)
        .exists(),
    )
    .order_by(_installed.c.id)
)
_NAMESAKES = Statement(
    select(_installed.c.owner)
    .where(
        _installed.c.place == schema.word("host"),
        _installed.c.kind == schema.word("link"),
        _installed.c.key == bindparam("key"),
        _installed.c.owner_kind == schema.word("lease"),
        _installed.c.owner != bindparam("owner"),
    )
    .distinct()
)
_INTENTS = Statement(
    select(*rows.INTENT)
    .where(
        _intents.c.state.in_(OPEN_STATES)
        | ((_intents.c.state == schema.word("failed")) & (_intents.c.retry_at > bindparam("now")))
    )
    .order_by(_intents.c.id)
)
_LATE_DELETE = Statement(
    select(schema.late_deletes.c.at).where(
        schema.late_deletes.c.container_id == bindparam("container_id"),
        schema.late_deletes.c.ifname == bindparam("ifname"),
    )
)
_TAKEOVER = Statement(
    select(schema.takeovers.c.id).where(schema.takeovers.c.handed_back_at.is_(None))
)
_ANY_LEASE = Statement(select(func.max(_leases.c.id)).where(_leases.c.claimed_at.is_not(None)))
_HOST_MACS = Statement(select(_leases.c.host_mac).distinct())
_BOOT = Statement(select(schema.boots.c.boot_id).order_by(schema.boots.c.last_start_at.desc()))
_DEMAND = Statement(
    select(_leases.c.created_at, _leases.c.ended_at)
    .where(_leases.c.created_at >= bindparam("since"))
    .order_by(_leases.c.created_at)
)
_FINDINGS = Statement(
    select(schema.findings.c.code, schema.findings.c.subject).where(
        schema.findings.c.closed_at.is_(None)
    )
)
_EXCLUDED = Statement(select(schema.excluded_subnets.c.subnet_id))
_usable = (
    (_enis.c.state == schema.word("usable"))
    & (_enis.c.managed == ONE)
    & _enis.c.subnet_id.not_in(select(schema.excluded_subnets.c.subnet_id))
)
_rested = _addresses.c.cooling_until <= bindparam("now")
_free = (
    (_leases.c.id.is_(None))
    & _usable
    & (_addresses.c.state == schema.word("assigned"))
    & _addresses.c.absent_since.is_(None)
)


def _sum(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, ONE), else_=ZERO)), ZERO)


_WITH_ALL = _addresses.join(_enis, _enis.c.eni_id == _addresses.c.eni_id).outerjoin(_leases, HOLDS)
_COUNTS = Statement(
    select(
        func.count(),
        _sum(_leases.c.id.is_not(None)),
        _sum(_free & _rested),
        _sum(_free & ~_rested),
        _sum(_addresses.c.state == schema.word("quarantine")),
    )
    .select_from(_WITH_ALL)
    .where(LIVE)
)
_NEXT_COOLED = Statement(
    select(func.min(_addresses.c.cooling_until)).select_from(_WITH_ALL).where(LIVE, _free, ~_rested)
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Addresses by use. `free` can be leased this moment; unusable ones are only in `total`."""

    total: int
    leased: int
    free: int
    cooling: int
    quarantine: int


def desired(tx: Read, now: int) -> model.Desired:
    """All a plan needs, in one snapshot: live rows, open intents and those that back off."""
    installed = tuple(map(rows.installed, tx.all(_INSTALLED)))
    rows.keep(len(installed))
    return model.Desired(
        node=node(tx),
        enis=tuple(map(rows.eni, tx.all(_ENIS))),
        prefixes=tuple(model.Prefix(*row) for row in tx.all(_PREFIXES)),
        addresses=tuple(map(rows.address, tx.all(_ADDRESSES))),
        leases=open_leases(tx),
        installed=installed,
        intents=tuple(map(rows.intent, tx.all(_INTENTS, now=now))),
        took_over=took_over(tx),
        scheduling=scheduling(tx),
        excluded=frozenset(subnet_id for (subnet_id,) in tx.all(_EXCLUDED)),
    )


def open_leases(tx: Read) -> tuple[model.Lease, ...]:
    """Leases that have not ended, the oldest first."""
    return tuple(map(rows.lease, tx.all(_LEASES)))


def enis(tx: Read) -> tuple[model.Eni, ...]:
    """The interfaces that are not gone."""
    return tuple(map(rows.eni, tx.all(_ENIS)))


def intents(tx: Read, now: int) -> tuple[model.Intent, ...]:
    """Calls that are open or back off."""
    return tuple(map(rows.intent, tx.all(_INTENTS, now=now)))


def node(tx: Read) -> model.Node | None:
    """Who this machine is; None before instance metadata was first heard."""
    row = tx.one(_NODE)
    return None if row is None else rows.node(row)


def scheduling(tx: Read) -> model.Scheduling | None:
    """What the cluster's API last said of this node; None before its first answer."""
    row = tx.one(_SCHEDULING)
    return None if row is None else model.Scheduling(bool(row[0]), row[1], row[2])


def eni(tx: Read, eni_id: str) -> model.Eni | None:
    """One interface, also one that is gone."""
    row = tx.one(_ENI, eni_id=eni_id)
    return None if row is None else rows.eni(row)


def last_lease_of(tx: Read, pod_namespace: str, pod_name: str) -> model.Lease | None:
    """The newest lease, open or ended, by which a pod of that name had an address."""
    row = tx.one(_LAST_OF_POD, pod_namespace=pod_namespace, pod_name=pod_name)
    return None if row is None else rows.lease(row)


def open_lease(tx: Read, container_id: str, ifname: str, family: int = 4) -> model.Lease | None:
    """The open lease of a sandbox interface."""
    row = tx.one(_OF_KEY, container_id=container_id, ifname=ifname, family=family)
    return None if row is None else rows.lease(row)


def lease(tx: Read, lease_id: int) -> model.Lease | None:
    """One lease, open or ended."""
    row = tx.one(_LEASE, id=lease_id)
    return None if row is None else rows.lease(row)


def waiting(tx: Read) -> tuple[model.Lease, ...]:
    """Leases that wait for an address, the oldest first."""
    return tuple(map(rows.lease, tx.all(_WAITING)))


def installed_for(tx: Read, owner_kind: model.OwnerKind, owner: str) -> tuple[model.Installed, ...]:
    """The kernel objects of one owner, in the order in which they were planned."""
    return tuple(map(rows.installed, tx.all(_INSTALLED_FOR, owner_kind=owner_kind, owner=owner)))


def retired(tx: Read) -> tuple[model.Installed, ...]:
    """Links still to be removed: their lease has ended, or a namesake of its sandbox has their name now."""
    return tuple(map(rows.installed, tx.all(_RETIRED)))


def namesakes(tx: Read, host_ifname: str, lease_id: int) -> tuple[int, ...]:
    """Other leases whose host link has this name: sandboxes that a pod of that name had before."""
    key = model.Link(host_ifname).key[1:]
    found = tx.all(_NAMESAKES, key=" ".join(key), owner=str(lease_id))
    return tuple(int(owner) for (owner,) in found)


def free_count(tx: Read, now: int) -> Counts:
    """How many addresses there are, by use."""
    row = tx.one(_COUNTS, now=now)
    assert row is not None
    return Counts(*row)


def next_cooled_at(tx: Read, now: int) -> int | None:
    """When the next cooling address can be leased again (ms); None if none cools."""
    row = tx.one(_NEXT_COOLED, now=now)
    return None if row is None else row[0]


def host_macs(tx: Read) -> set[str]:
    """The MAC address of every link that a lease, open or ended, ever had (and that is not forgotten)."""
    return {mac for (mac,) in tx.all(_HOST_MACS)}


def boot_id(tx: Read) -> str:
    """The boot of the latest start, empty before the first."""
    row = tx.one(_BOOT)
    return "" if row is None else str(row[0])


def ever_leased(tx: Read) -> bool:
    """Has this ledger ever given out an address (that is not forgotten yet)? Waiting is no lease."""
    row = tx.one(_ANY_LEASE)
    return row is not None and row[0] is not None


def took_over(tx: Read) -> bool:
    """Was this node taken over from another CNI?"""
    return tx.one(_TAKEOVER) is not None


def demand(tx: Read, since: int) -> tuple[tuple[int, int | None], ...]:
    """When pods asked for an address at `since` (ms) or later, and when each was gone; None if it is there.

    A sandbox that never got one is there as well: it wanted one.
    """
    return tuple((came, went) for came, went in tx.all(_DEMAND, since=since))


def open_findings(tx: Read) -> set[tuple[str, str]]:
    """Code and subject of what is wrong or doubtful now."""
    return {(code, subject) for code, subject in tx.all(_FINDINGS)}


def late_delete(tx: Read, container_id: str, ifname: str) -> int | None:
    """When a deletion came for this sandbox while no lease was open; None if none did."""
    row = tx.one(_LATE_DELETE, container_id=container_id, ifname=ifname)
    return None if row is None else int(row[0])
