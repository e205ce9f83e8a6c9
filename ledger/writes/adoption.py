"""What an observation may change: bring in what was never known, doubt what it misses.

It ends no lease, and it is older than it looks: our own confirmed calls of the last ADOPTION_LAG_MS
count for more. What EC2 answers to our calls does not belong here; see `cloud`.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, exists, func, select, update

from ledger import model, rows, schema
from ledger.database import Statement, Write
from ledger.writes import cloud, journal

_enis, _addresses = schema.enis, schema.addresses

ADOPTION_LAG_MS = 300_000
"""EC2's and IMDS's pictures may be this old: what we released later than that is not believed back."""

_LIVE_ENIS = Statement(
    select(_enis.c.eni_id, _enis.c.created_at, _enis.c.absent_since).where(
        _enis.c.gone_at.is_(None)
    )
)
_ENI_ABSENT = Statement(
    update(_enis).where(_enis.c.eni_id == bindparam("of")).values(absent_since=bindparam("since"))
)
_MANAGED = Statement(
    update(_enis).where(_enis.c.eni_id == bindparam("of")).values(managed=bindparam("managed"))
)
_LIVE = Statement(
    select(
        _addresses.c.address,
        _addresses.c.eni_id,
        _addresses.c.prefix,
        _addresses.c.state,
        _addresses.c.assigned_at,
        _addresses.c.absent_since,
    ).where(_addresses.c.released_at.is_(None))
)
_ABSENT = Statement(
    update(_addresses)
    .where(_addresses.c.address == bindparam("of"), _addresses.c.released_at.is_(None))
    .values(absent_since=bindparam("since"))
)
_ABSENT_IF_FREE = Statement(
    update(_addresses)
    .where(
        _addresses.c.address == bindparam("of"),
        _addresses.c.state == schema.word("assigned"),
        _addresses.c.absent_since.is_(None),
        ~exists().where(
            schema.leases.c.address == _addresses.c.address, schema.leases.c.ended_at.is_(None)
        ),
    )
    .values(absent_since=bindparam("since"))
)
_LAST_PREFIX_RELEASE = Statement(
    select(func.max(schema.prefixes.c.released_at)).where(
        schema.prefixes.c.cidr == bindparam("cidr")
    )
)
_LAST_RELEASE = Statement(
    select(func.max(_addresses.c.released_at)).where(_addresses.c.address == bindparam("address"))
)


def adopt(tx: Write, seen: model.ObservedCloud, now: int, *, imds_only: bool = False) -> bool:
    """Bring in what EC2 shows and the ledger does not know; mark what it misses. True if any is new.

    Nothing but EC2's own picture is adopted, or where EC2 is never asked that of instance metadata. An
    address we released is believed back only by a picture
    newer than the release by ADOPTION_LAG_MS, and one we were given is missed no sooner. What is
    missing gets `absent_since`, so that no pod is given it meanwhile; leases are left alone.
    """
    if seen.source != "ec2" and not imds_only:
        return False
    changed = False
    for each in seen.enis:
        changed |= _adopt_eni(tx, each, seen.at, now)
    _mark_enis(tx, seen, now)
    _mark_addresses(tx, seen, now)
    return changed


def contradict(tx: Write, addresses: Collection[str], at: int, now: int) -> None:
    """Instance metadata miss these: those that no pod has are kept from pods until EC2 shows them."""
    for address in sorted(addresses):
        if tx.run(_ABSENT_IF_FREE, of=address, since=at).rowcount:
            journal.line(tx, now, "address.contradicted", address, address=address)


def _adopt_eni(tx: Write, each: model.ObservedEni, seen_at: int, now: int) -> bool:
    eni = each.eni
    row = tx.one(cloud.ENI_KNOWN, eni_id=eni.eni_id)
    changed = row is None
    if row is None:
        cloud.insert_eni(tx, eni, "adopted", now)
    else:
        before = rows.eni(row)
        if before.state == "gone":  # an old picture of what we deleted
            return False
        if before.state == "created" and eni.attachment_id is not None:
            cloud.eni_attaching(tx, eni.eni_id, eni.device, eni.card, eni.attachment_id, now)
            changed = True
        if before.managed != eni.managed and before.state != "created":
            changed = True
            tx.run(_MANAGED, of=eni.eni_id, managed=int(eni.managed))
            whose = "ours" if eni.managed else "somebody else's"
            journal.line(tx, now, "eni.managed", eni.eni_id, f"{whose} now", eni_id=eni.eni_id)
        if eni.attachment_id and before.delete_on_termination != eni.delete_on_termination:
            tx.run(cloud.SURVIVES_NOT, of=eni.eni_id, set=int(eni.delete_on_termination))
    if eni.managed:
        for address in each.addresses:
            changed |= _adopt_address(tx, eni.eni_id, address, seen_at, now)
        for cidr in each.prefixes:
            changed |= _adopt_prefix(tx, eni.eni_id, cidr, seen_at, now)
    return changed


def _adopt_prefix(tx: Write, eni_id: str, cidr: str, seen_at: int, now: int) -> bool:
    """True if it is new. One on another interface than the ledger has it waits until that is settled."""
    if tx.one(cloud.LIVE_PREFIX, cidr=cidr) is not None:
        return False
    row = tx.one(_LAST_PREFIX_RELEASE, cidr=cidr)
    if row is not None and row[0] is not None and seen_at <= row[0] + ADOPTION_LAG_MS:
        return False
    return cloud.prefix_assigned(tx, eni_id, cidr, "adopted", now)


def _adopt_address(tx: Write, eni_id: str, address: str, seen_at: int, now: int) -> bool:
    """True if it is new. One that the ledger has on another interface is doubtful from now on.

    Not if the picture may be older than our own answer: then it shows where the address was before.
    """
    held = tx.one(cloud.LIVE_ONE, address=address)
    if held is None:
        return _believed(tx, address, seen_at) and cloud.assigned(
            tx, eni_id, address, "adopted", now
        )
    elsewhere = held[0] != eni_id and held[1] == "assigned"
    if elsewhere and held[2] <= seen_at - ADOPTION_LAG_MS:
        cloud.address_quarantine(
            tx, address, f"EC2 shows it on {eni_id}, we had it on {held[0]}", now
        )
    return False


def _believed(tx: Write, address: str, seen_at: int) -> bool:
    row = tx.one(_LAST_RELEASE, address=address)
    released_at = row[0] if row else None
    return released_at is None or seen_at > released_at + ADOPTION_LAG_MS


def _mark_enis(tx: Write, seen: model.ObservedCloud, now: int) -> None:
    shown = {each.eni.eni_id for each in seen.enis}
    for eni_id, created_at, absent_since in tx.all(_LIVE_ENIS):
        if eni_id in shown and absent_since is not None:
            tx.run(_ENI_ABSENT, of=eni_id, since=None)
            journal.line(tx, now, "eni.seen_again", eni_id, eni_id=eni_id)
        elif created_at > seen.at - ADOPTION_LAG_MS:
            continue  # our own answer is younger than what this picture can be
        elif eni_id not in shown and absent_since is None:
            tx.run(_ENI_ABSENT, of=eni_id, since=seen.at)
            journal.line(tx, now, "eni.absent", eni_id, eni_id=eni_id)


def _mark_addresses(tx: Write, seen: model.ObservedCloud, now: int) -> None:
    shown: dict[str, Collection[str]] = {
        each.eni.eni_id: {*each.addresses, *each.prefixes} for each in seen.enis
    }
    for address, eni_id, prefix, state, assigned_at, absent_since in tx.all(_LIVE):
        there = (prefix or address) in shown.get(eni_id, ())
        if there and absent_since is not None:
            tx.run(_ABSENT, of=address, since=None)
            journal.line(tx, now, "address.seen_again", address, eni_id=eni_id, address=address)
        elif assigned_at > seen.at - ADOPTION_LAG_MS:
            continue
        elif not there and absent_since is None and state == "assigned":
            tx.run(_ABSENT, of=address, since=seen.at)
            journal.line(tx, now, "address.absent", address, eni_id=eni_id, address=address)
