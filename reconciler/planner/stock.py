"""What the node holds and what is on its way: the ledger's rows and open intents, counted.

Cooling addresses count as held and not as ready: a pod cannot have one. A call that was planned, sent
or whose reply was lost counts as done, so that nothing is asked for twice; one that failed bars what it
asked for until its `retry_at`. How much the node should hold does not belong here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ledger import model
from reconciler.planner import actions, barred, notation

SERVING: Final = frozenset({"created", "attaching", "attached", "usable"})
"""Interfaces whose addresses pods have or will have; the others are on their way out."""

CARRYING: Final = frozenset({"interface", "efa"})
"""EC2's InterfaceTypes that pods can be on; an efa-only one has no IP, a trunk is for branches."""

REST_MS: Final = 60_000
"""An address free for less is not given back: pods come and go faster than EC2 calls are worth."""

PREFIX_SIZE: Final = 16
"""Addresses of a /28."""

_UNDER_WAY: Final = frozenset({"planned", "sent", "unknown"})


@dataclass(frozen=True, slots=True)
class Holding:
    """One interface that may carry pods, with its addresses that are `assigned`.

    `addresses` are of the kind that counts, single ones or those of prefixes; `others` are of the kind
    that is on its way out. `occupied` counts slots, of which a prefix takes one: what is here, what is
    in quarantine or being released, what is on its way, and what an observation shows and the ledger
    does not know.
    """

    eni: model.Eni
    addresses: tuple[model.Address, ...]
    others: tuple[model.Address, ...]
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

    def leavers(self, now: int) -> tuple[model.Address, ...]:
        """Free rested addresses of the kind that is on its way out."""
        free = (a for a in self.others if not a.leased and a.cooling_until <= now)
        return tuple(a for a in free if now - a.rested_since >= REST_MS)

    @property
    def free_prefixes(self) -> frozenset[str]:
        """Prefixes of which no address is leased."""
        used = {a.prefix for a in self.addresses if a.address in self.leased}
        return frozenset(a.prefix for a in self.addresses if a.prefix and a.prefix not in used)

    def rested_prefixes(self, now: int) -> tuple[str, ...]:
        """Prefixes whose addresses have all been free for REST_MS, in order."""
        return whole(self.rested(now), self.addresses)


def whole(some: tuple[model.Address, ...], of: tuple[model.Address, ...]) -> tuple[str, ...]:
    """Prefixes that have all of their addresses in `some`."""
    there = Counter(a.prefix for a in some)
    every = Counter(a.prefix for a in of)
    whole = (p for p, n in there.items() if p is not None and n == every[p] == PREFIX_SIZE)
    return tuple(sorted(whole))


@dataclass(frozen=True, slots=True)
class Stock:
    """The counts behind a plan: IPv4 addresses for pods on one network card, of the kind that counts.

    With prefix delegation that is the addresses of prefixes, and single ones as well while the subnet
    has no blocks; without it single addresses alone.
    """

    holdings: tuple[Holding, ...]
    under_way: tuple[actions.CloudAction, ...]
    doubtful: tuple[actions.CloudAction, ...]
    """Those of `under_way` whose reply was lost."""
    barred: barred.Barred
    enis: int
    """Interfaces that take a place on the card, foreign and coming ones included."""
    devices: frozenset[int]
    """Device indexes of the card in use or asked for."""
    waiting: int
    """Pods that wait for an address of this card's."""
    total: int
    leased: int
    ready: int
    rested: int
    coming: int
    free_prefixes: int = 0
    """Prefixes that no pod uses, those on their way included."""
    fallback: bool = False
    """Single addresses stand in for prefixes: the subnet has no free blocks now."""
    card: int = 0
    """The network card's index."""

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


def count(
    desired: model.Desired,
    observed: model.ObservedCloud | model.Unknown,
    now: int,
    *,
    prefixed: bool = False,
    card: int = 0,
    waiting: int | None = None,
    excluded: bool = False,
) -> Stock:
    """Count one card. An observation only ever adds: what it shows and the ledger does not know takes room.

    `waiting` are pods that wait for this card; None: all that wait. Interfaces in excluded subnets take places
    and hold nothing for pods; with `excluded` those alone are the holdings, to be given back.
    """
    bars = barred.of(desired, now, card)
    home = desired.node.subnet_id if desired.node else ""
    fallback = prefixed and bars.blocks_in(home) == 0
    under_way = _actions(i for i in desired.intents if i.state in _UNDER_WAY)
    seen = {} if isinstance(observed, model.Unknown) else {o.eni.eni_id: o for o in observed.enis}
    leased = frozenset(lease.address for lease in desired.leases if lease.address) | frozenset(
        a.address for a in desired.addresses if a.leased
    )
    enis = [eni for eni in desired.enis if eni.state != "gone"]
    known = {eni.eni_id for eni in enis}
    strangers = [o.eni for o in seen.values() if o.eni.eni_id not in known and o.eni.device >= 0]
    on_card = [eni for eni in (*enis, *strangers) if eni.card == card]
    holdings = tuple(
        _holding(eni, desired, seen.get(eni.eni_id), leased, under_way, prefixed, fallback)
        for eni in sorted(on_card, key=lambda e: (not e.primary, e.device < 0, e.device, e.eni_id))
        if eni.eni_id in known and eni.managed and eni.kind in CARRYING and eni.state in SERVING
        if (eni.subnet_id in desired.excluded) == excluded
    )
    asked = [
        call for call in under_way if isinstance(call, actions.CreateEni) and call.card == card
    ]
    if waiting is None:
        waiting = sum(
            lease.state == "waiting" and not lease.address and lease.family == 4
            for lease in desired.leases
        )
    return Stock(
        holdings=holdings,
        under_way=under_way,
        doubtful=_actions(i for i in desired.intents if i.state == "unknown"),
        barred=bars,
        enis=len(on_card) + len(asked),
        devices=frozenset(eni.device for eni in on_card if eni.device >= 0)
        | frozenset(
            call.device
            for call in under_way
            if isinstance(call, actions.AttachEni) and call.card == card
        ),
        waiting=waiting,
        total=sum(len(h.addresses) for h in holdings),
        leased=sum(len(h.leased) for h in holdings),
        ready=sum(len(h.ready(now)) for h in holdings),
        rested=sum(len(h.rested(now)) for h in holdings),
        coming=sum(
            map(_brings, (*asked, *(c for h in holdings for c in _assigning(h, under_way))))
        ),
        free_prefixes=sum(len(h.free_prefixes) for h in holdings)
        + sum(call.prefixes for call in asked)
        + sum(
            call.count
            for h in holdings
            for call in _assigning(h, under_way)
            if isinstance(call, actions.AssignPrefixes)
        ),
        fallback=fallback,
        card=card,
    )


def _actions(intents: Iterable[model.Intent]) -> tuple[actions.CloudAction, ...]:
    return tuple(notation.action(intent) for intent in intents)


def _assigning(
    each: Holding | model.Eni, under_way: tuple[actions.CloudAction, ...]
) -> list[actions.AssignAddresses | actions.AssignPrefixes]:
    """Calls under way that bring one interface more."""
    eni = each if isinstance(each, model.Eni) else each.eni
    verbs = actions.AssignAddresses | actions.AssignPrefixes
    return [c for c in under_way if isinstance(c, verbs) and c.eni_id == eni.eni_id]


def _brings(call: actions.CloudAction) -> int:
    """How many addresses for pods a call brings."""
    match call:
        case actions.CreateEni():
            return call.secondaries + PREFIX_SIZE * call.prefixes
        case actions.AssignAddresses():
            return call.count
        case actions.AssignPrefixes():
            return PREFIX_SIZE * call.count
    return 0


def _holding(
    eni: model.Eni,
    desired: model.Desired,
    seen: model.ObservedEni | None,
    leased: frozenset[str],
    under_way: tuple[actions.CloudAction, ...],
    prefixed: bool,
    fallback: bool,
) -> Holding:
    rows = [a for a in desired.addresses if a.eni_id == eni.eni_id and a.family == 4]
    rows = [a for a in rows if a.state != "released"]
    assigned = [a for a in rows if a.state == "assigned"]
    counted = tuple(a for a in assigned if fallback or (a.prefix is not None) == prefixed)
    names = {a.address for a in counted}
    prefixes = {p.cidr for p in desired.prefixes if p.eni_id == eni.eni_id}
    singles = {a.address for a in rows if a.prefix is None}
    coming = sum(call.count for call in _assigning(eni, under_way))
    # While a reply is out, an address nobody knows is most likely one of those on their way.
    shown = {*seen.addresses, *seen.prefixes} if seen else set()
    strangers = len(shown - singles - prefixes)
    return Holding(
        eni=eni,
        addresses=counted,
        others=tuple(a for a in assigned if a.address not in names),
        leased=frozenset(a.address for a in counted if a.address in leased),
        occupied=len(singles) + len(prefixes) + max(coming, strangers),
        busy=any(getattr(call, "eni_id", None) == eni.eni_id for call in under_way)
        or any(lease.eni_id == eni.eni_id for lease in desired.leases if lease.state != "ended")
        or any(a.state != "assigned" or a.address in leased for a in rows),
    )
