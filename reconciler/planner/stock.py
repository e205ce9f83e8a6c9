"""What the node holds and what is on its way: the ledger's rows and open intents, counted.

Cooling addresses count as held and not as ready: a pod cannot have one. A call that was planned, sent
or whose reply was lost counts as done, so that nothing is asked for twice; one that failed bars what it
asked for until its `retry_at`. How much the node should hold does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ledger import model
from reconciler import errors
from reconciler.planner import actions, notation

SERVING: Final = frozenset({"created", "attaching", "attached", "usable"})
"""Interfaces whose addresses pods have or will have; the others are on their way out."""

REST_MS: Final = 60_000
"""An address free for less is not given back: pods come and go faster than EC2 calls are worth."""

_UNDER_WAY: Final = frozenset({"planned", "sent", "unknown"})
_WHOLE_ACTION: Final = frozenset({"throttled", "ec2_denied", "ec2_down"})
"""Reasons that would meet the same action for any interface."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One interface that may carry pods, with its addresses that are `assigned`.

    `occupied` counts slots: these, those in quarantine or being released, those on their way, and
    those that an observation shows and the ledger does not know.
    """

    eni: model.Eni
    addresses: tuple[model.Address, ...]
    leased: frozenset[str]
    occupied: int
    busy: bool
    """A mutation of it is under way, or a lease or a doubtful address is on it."""

    def ready(self, now: int) -> tuple[model.Address, ...]:
        """Free addresses that are not cooling, and that EC2 shows if it was asked."""
        free = (
            a for a in self.addresses if a.address not in self.leased and a.absent_since is None
        )
        return tuple(a for a in free if a.cooling_until <= now)

    def rested(self, now: int) -> tuple[model.Address, ...]:
        """Ready addresses that have been free for REST_MS, longest first."""
        old = (a for a in self.ready(now) if now - a.rested_since >= REST_MS)
        return tuple(sorted(old, key=lambda a: (a.rested_since, a.address)))


@dataclass(frozen=True, slots=True)
class Barred:
    """What calls that failed forbid until their time comes."""

    operations: frozenset[str] = frozenset()
    subjects: frozenset[tuple[str, str]] = frozenset()
    subnets: tuple[tuple[str, int], ...] = ()
    """Full subnets, with the number of addresses that one of them had not."""
    devices: frozenset[int] = frozenset()
    """Device indexes that turned out to be taken."""

    def bars(self, operation: str, subject: str) -> bool:
        """True if the operation must not be tried on the subject now."""
        return operation in self.operations or (operation, subject) in self.subjects

    def room_in(self, subnet_id: str) -> int | None:
        """How many addresses may still be tried in a full subnet (0: none); None if it is not full."""
        missing = [count for subnet, count in self.subnets if subnet == subnet_id]
        return min(missing) // 2 if missing else None


@dataclass(frozen=True, slots=True)
class Stock:
    """The counts behind a plan. All are of IPv4 secondary addresses on the default card."""

    holdings: tuple[Holding, ...]
    under_way: tuple[actions.CloudAction, ...]
    doubtful: tuple[actions.CloudAction, ...]
    """Those of `under_way` whose reply was lost."""
    barred: Barred
    enis: int
    """Interfaces that take a place on the default card, foreign and coming ones included."""
    devices: frozenset[int]
    """Device indexes of the default card in use or asked for."""
    waiting: int
    """Pods that wait for an address."""
    total: int
    leased: int
    ready: int
    rested: int
    coming: int

    @property
    def spare(self) -> int:
        """Addresses left for pods to come once those that wait are served; below 0 some get none."""
        return self.ready + self.coming - self.waiting

    @property
    def unserved(self) -> int:
        """Waiting pods for which nothing is there and nothing on its way."""
        return max(-self.spare, 0)

    @property
    def loose(self) -> tuple[Holding, ...]:
        """Interfaces that were made and are attached to nothing yet."""
        return tuple(h for h in self.holdings if h.eni.state == "created" and not h.eni.primary)

    def may(self, operation: str, eni_id: str) -> bool:
        """Not barred by a failure, and no lost reply leaves the interface's state in doubt."""
        return not self.barred.bars(operation, eni_id) and not self.touches(eni_id, doubtful=True)

    def touches(self, eni_id: str, *, doubtful: bool = False) -> bool:
        """True if a mutation of the interface is under way (or, if `doubtful`, its reply was lost)."""
        calls = self.doubtful if doubtful else self.under_way
        return any(getattr(call, "eni_id", None) == eni_id for call in calls)


def count(desired: model.Desired, observed: model.ObservedCloud | model.Unknown, now: int) -> Stock:
    """Count it. An observation only ever adds: what it shows and the ledger does not know takes room."""
    under_way = _actions(i for i in desired.intents if i.state in _UNDER_WAY)
    seen = {} if isinstance(observed, model.Unknown) else {o.eni.eni_id: o for o in observed.enis}
    leased = frozenset(lease.address for lease in desired.leases if lease.address) | frozenset(
        a.address for a in desired.addresses if a.leased
    )
    enis = [eni for eni in desired.enis if eni.state != "gone"]
    known = {eni.eni_id for eni in enis}
    strangers = [o.eni for o in seen.values() if o.eni.eni_id not in known and o.eni.device >= 0]
    on_card = [eni for eni in (*enis, *strangers) if eni.card == 0]
    holdings = tuple(
        _holding(eni, desired, seen.get(eni.eni_id), leased, under_way)
        for eni in sorted(on_card, key=lambda e: (not e.primary, e.device < 0, e.device, e.eni_id))
        if eni.eni_id in known and eni.managed and eni.kind == "interface" and eni.state in SERVING
    )
    asked = [call for call in under_way if isinstance(call, actions.CreateEni)]
    return Stock(
        holdings=holdings,
        under_way=under_way,
        doubtful=_actions(i for i in desired.intents if i.state == "unknown"),
        barred=_barred(desired, now),
        enis=len(on_card) + len(asked),
        devices=frozenset(eni.device for eni in on_card if eni.device >= 0)
        | frozenset(call.device for call in under_way if isinstance(call, actions.AttachEni)),
        waiting=sum(
            lease.state == "waiting" and not lease.address and lease.family == 4
            for lease in desired.leases
        ),
        total=sum(len(h.addresses) for h in holdings),
        leased=sum(len(h.leased) for h in holdings),
        ready=sum(len(h.ready(now)) for h in holdings),
        rested=sum(len(h.rested(now)) for h in holdings),
        coming=sum(call.secondaries for call in asked)
        + sum(_assigning(h.eni.eni_id, under_way) for h in holdings),
    )


def _actions(intents: Iterable[model.Intent]) -> tuple[actions.CloudAction, ...]:
    return tuple(notation.action(intent) for intent in intents)


def _assigning(eni_id: str, under_way: tuple[actions.CloudAction, ...]) -> int:
    """Addresses on their way to one interface."""
    return sum(
        call.count
        for call in under_way
        if isinstance(call, actions.AssignAddresses) and call.eni_id == eni_id
    )


def _holding(
    eni: model.Eni,
    desired: model.Desired,
    seen: model.ObservedEni | None,
    leased: frozenset[str],
    under_way: tuple[actions.CloudAction, ...],
) -> Holding:
    rows = [a for a in desired.addresses if a.eni_id == eni.eni_id and a.family == 4]
    rows = [a for a in rows if a.state != "released"]
    assigned = tuple(a for a in rows if a.state == "assigned")
    coming = _assigning(eni.eni_id, under_way)
    names = {a.address for a in rows}
    # While a reply is out, an address nobody knows is most likely one of those on their way.
    strangers = len([a for a in seen.addresses if a not in names]) if seen else 0
    prefixes = sum(p.eni_id == eni.eni_id and p.state != "released" for p in desired.prefixes)
    return Holding(
        eni=eni,
        addresses=assigned,
        leased=frozenset(a.address for a in assigned if a.address in leased),
        occupied=len(rows) + prefixes + max(coming, strangers),
        busy=any(getattr(call, "eni_id", None) == eni.eni_id for call in under_way)
        or any(lease.eni_id == eni.eni_id for lease in desired.leases if lease.state != "ended")
        or any(a.state != "assigned" or a.address in leased for a in rows)
        or bool(prefixes),
    )


def _barred(desired: model.Desired, now: int) -> Barred:
    """What failed and may not be tried again yet, as narrow as EC2's reason allows."""
    operations: set[str] = set()
    subjects: set[tuple[str, str]] = set()
    subnets: list[tuple[str, int]] = []
    devices: set[int] = set()
    subnet_of = {eni.eni_id: eni.subnet_id for eni in desired.enis}
    for intent in desired.intents:
        if intent.state != "failed" or intent.retry_at <= now:
            continue
        action = notation.action(intent)
        reason = errors.from_ec2(intent.error.partition(":")[0], intent.error).reason
        if reason in _WHOLE_ACTION:
            operations.add(intent.operation)
        elif reason == "subnet_full" and isinstance(action, actions.CreateEni):
            subnets.append((action.subnet_id, action.secondaries + 1))
        elif reason == "subnet_full" and isinstance(action, actions.AssignAddresses):
            subnets.append((subnet_of.get(action.eni_id, ""), action.count))
        elif isinstance(action, actions.AttachEni) and "device index" in intent.error:
            devices.add(action.device)
        else:
            subjects.add((intent.operation, intent.subject))
    return Barred(frozenset(operations), frozenset(subjects), tuple(subnets), frozenset(devices))
