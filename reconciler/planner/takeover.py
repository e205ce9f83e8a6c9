"""Who holds which address on a node that another CNI wired: its records against what the kernel shows.

Every address that a record or a kernel object names is accounted for, so none of them looks free: it is
leased to a pod that lives, in doubt, or in quarantine. A pod lives if a link of its name carries its
address's route. Writing it down does not belong here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import drift, wiring

UNSPECIFIED, BOOT = 0, 3
"""RTPROT_UNSPEC and RTPROT_BOOT of linux/rtnetlink.h: what the VPC CNI's rules and routes bear."""
NAMELESS: Final = "unknown-"
"""Container ids begin so where no record tells the sandbox that a live link belongs to."""
_DIGEST: Final = 11


@dataclass(frozen=True, slots=True)
class Heir:
    """An allocation with its interface; `link` is the pod's host link if it lives.

    `doubtful`: nothing of the pod is in the kernel, yet the runtime keeps its result and may delete it.
    `traces` are the unmarked rules and routes that name the address.
    """

    allocation: model.Allocation
    eni_id: str
    link: model.Link | None
    doubtful: bool
    traces: tuple[model.KernelObject, ...]


@dataclass(frozen=True, slots=True)
class Takeover:
    """`heirs` get leases; `strangers` are (address, why) that must not be given out."""

    heirs: tuple[Heir, ...] = ()
    strangers: tuple[tuple[str, str], ...] = ()


def needed(
    inheritance: model.Inheritance, kernel: model.ObservedKernel, settings: knobs.Settings
) -> bool:
    """Has somebody else given out addresses here? For a ledger that never had a lease."""
    return bool(inheritance.allocations) or bool(_pod_routes(kernel, settings))


def decide(
    inheritance: model.Inheritance,
    seen: Iterable[model.ObservedEni],
    kernel: model.ObservedKernel,
    settings: knobs.Settings,
) -> Takeover:
    """Account for every address in use. `seen` are this node's attached interfaces, the primary among them."""
    seen = tuple(seen)
    owners = _Owners(seen, kernel)
    primaries = {each.eni.primary_ip for each in seen}  # never a pod's, whatever a record says
    carried = {a: x for a, x in _pod_routes(kernel, settings).items() if a not in primaries}
    heirs = [
        _heir(each, owners, carried.get(each.address), kernel)
        for each in _one_each(inheritance.allocations)
        if each.address not in primaries
    ]
    named = {heir.allocation.address for heir in heirs}
    heirs += [
        _heir(_nameless(address, link), owners, link, kernel)
        for address, link in sorted(carried.items())
        if address not in named
    ]
    named |= set(carried)
    strangers = {
        address: f"{drift.describe(rule)} names it and no record does"
        for rule in kernel.rules
        if (address := _host_of(rule)) and address not in named and owners.shown(address)
    }
    return Takeover(tuple(heirs), tuple(sorted(strangers.items())))


def twins(wanted: Iterable[model.KernelObject]) -> tuple[model.KernelObject, ...]:
    """What the VPC CNI makes in the place of these: the same rules and routes without our mark."""
    found: list[model.KernelObject] = []
    for thing in wanted:
        if isinstance(thing, model.Rule):
            found.append(replace(thing, protocol=UNSPECIFIED))
        elif isinstance(thing, model.Route):
            found.append(replace(thing, protocol=BOOT))
    return tuple(found)


def misleading(
    desired: model.Desired, observed: model.ObservedKernel
) -> tuple[model.KernelObject, ...]:
    """The VPC CNI's rules that send a pod of ours through another table than its interface's.

    Left by an address's earlier interface, such a rule is older than ours, and of equal priority the
    older one wins (its W19). Only on a node that was taken over may they be removed.
    """
    own = {
        (row.thing.src, row.thing.table)
        for row in desired.installed
        if isinstance(row.thing, model.Rule) and row.thing.priority == wiring.FROM_POD
    }
    pods = {f"{lease.address}/32" for lease in desired.leases if lease.address}
    return tuple(
        rule
        for rule in observed.rules
        if (rule.priority, rule.protocol) == (wiring.FROM_POD, UNSPECIFIED)
        and rule.src in pods
        and (rule.src, rule.table) not in own
        and not (rule.dst or rule.fwmark)
    )


def _one_each(allocations: Iterable[model.Allocation]) -> list[model.Allocation]:
    """One per address: of two records for one the younger holds it, as its route does."""
    newest: dict[str, model.Allocation] = {}
    for each in sorted(allocations, key=lambda a: (a.allocated_at, a.container_id)):
        newest[each.address] = each
    return list(newest.values())


def _nameless(address: str, link: model.Link) -> model.Allocation:
    return model.Allocation(f"{NAMELESS}{link.name}", "eth0", "aws-cni", address)


def _heir(
    each: model.Allocation,
    owners: _Owners,
    link: model.Link | None,
    kernel: model.ObservedKernel,
) -> Heir:
    if link is not None and each.pod_name and not _is_of(link, each):
        link = None  # another pod's link has this address's route
    host = f"{each.address}/32"
    traces: tuple[model.KernelObject, ...] = (
        *(r for r in kernel.rules if host in {r.src, r.dst} and r.protocol == UNSPECIFIED),
        *(r for r in kernel.routes if r.dst == host and r.protocol == BOOT),
    )
    return Heir(each, owners.of(each.address), link, link is None and each.cached, traces)


def _is_of(link: model.Link, each: model.Allocation) -> bool:
    """The VPC CNI's own test: the link's name ends as this pod's would."""
    return link.name.endswith(wiring.host_ifname("", each.pod_namespace, each.pod_name))


def _pod_routes(kernel: model.ObservedKernel, settings: knobs.Settings) -> dict[str, model.Link]:
    """Addresses that a host route leads to by a pod's link, each with that link."""
    links = {link.name: link for link in kernel.links if _is_pod_link(link, settings)}
    return {
        route.dst.removesuffix("/32"): links[route.link]
        for route in kernel.routes
        if route.link in links and route.dst.endswith("/32") and route.table == wiring.MAIN
    }


def _is_pod_link(link: model.Link, settings: knobs.Settings) -> bool:
    tail = link.name.removeprefix(settings.veth_prefix)
    digest = len(tail) == _DIGEST and set(tail) <= set("0123456789abcdef")
    return link.kind == "veth" and (digest or wiring.ours(link))


def _host_of(rule: model.Rule) -> str:
    """The one address that a pod's rule is about, or nothing."""
    if rule.priority == wiring.TO_POD and rule.dst and rule.dst.endswith("/32"):
        return rule.dst.removesuffix("/32")
    if rule.priority == wiring.FROM_POD and rule.src and rule.src.endswith("/32"):
        return rule.src.removesuffix("/32")
    return ""


class _Owners:
    """Which interface an address belongs to: EC2's word, else the pod's rule, else the subnet."""

    def __init__(self, seen: tuple[model.ObservedEni, ...], kernel: model.ObservedKernel) -> None:
        self._seen = seen
        self._by_address = {a: each.eni.eni_id for each in seen for a in each.addresses}
        self._by_prefix = {
            ipaddress.ip_network(cidr): each.eni.eni_id for each in seen for cidr in each.prefixes
        }
        self._tables = {
            address: rule.table
            for rule in kernel.rules
            if rule.priority == wiring.FROM_POD and (address := _host_of(rule))
        }

    def shown(self, address: str) -> str:
        """The interface on which EC2 shows it, or nothing."""
        ip = ipaddress.ip_address(address)
        by_prefix = (eni_id for cidr, eni_id in self._by_prefix.items() if ip in cidr)
        return self._by_address.get(address) or next(by_prefix, "")

    def of(self, address: str) -> str:
        """The interface an address is, or most probably was, delivered to."""
        enis = [each.eni for each in self._seen if each.eni.device >= 0]
        table = self._tables.get(address, wiring.MAIN)
        by_table = (e.eni_id for e in enis if wiring.table(e) == table)
        primary = (e.eni_id for e in enis if e.primary)
        return self.shown(address) or next(by_table, "") or next(primary, "")
