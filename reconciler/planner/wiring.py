"""Which kernel objects each pod and each interface needs, and what differs from what is there.

`pod` and `eni` say what should be, `diff` turns the difference into actions, `compare` into sentences.
Priorities, table numbers and names are those of the VPC CNI, so that the node looks as operators and
tools expect it; what is added is a mark on everything, and only what bears it, or what a row names, is
ever removed. How an object gets into the kernel does not belong here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions

MAIN = 254
"""RT_TABLE_MAIN of linux/rtnetlink.h: the table of the primary interface and of the pods' routes."""

TO_POD, FROM_POD, FROM_ENI = 512, 1536, 32765
BY_MARK, TO_SERVICE = 1024, 1535
"""Rule priorities, numerically as the VPC CNI has them; other agents on the node are placed around them."""

GATEWAY = "169.254.1.1"
"""What a pod takes for its router: no host has it, a permanent neighbour entry says where it is."""

PROTOCOL = 201
"""Our mark on routes (rtm_protocol) and rules (FRA_PROTOCOL): free in iproute2's rt_protos."""

BY_KERNEL = 2
"""RTPROT_KERNEL of linux/rtnetlink.h: the route came with an address."""

MARK = "vpcledger:"
"""Our mark on links: the alias starts so and goes on with the lease's id."""

_RETIRED = "ended"
"""What a pod's link is called after its lease, before the lease's number."""

_FIRST_INDEX, _INDEXES = 1_000_000, 1_000_000
"""Interface indexes of veth pairs lie above those the kernel counts up to: 2 for each lease id."""


@dataclass(frozen=True, slots=True)
class PodWiring:
    """What one pod interface needs, in the order in which it is made.

    `host` is in the node's namespace (its link makes the pod's end as well), `pod` in the pod's own,
    `sysctls` are written by the launcher; a file that does not exist is passed over (no IPv6). `end` is
    the pair's other end as the pod sees it; not to be put, only to be compared.
    """

    host: tuple[model.KernelObject, ...]
    pod: tuple[model.KernelObject, ...]
    sysctls: tuple[model.Sysctl, ...]
    end: model.Link

    @property
    def link(self) -> model.Link:
        """The veth pair."""
        assert isinstance(self.host[0], model.Link)
        return self.host[0]

    @property
    def things(self) -> tuple[model.KernelObject, ...]:
        """All of it, as the ledger writes it down."""
        return (*self.host, *self.pod, *self.sysctls)


def table(eni: model.Eni) -> int:
    """The routing table of an attached interface.

    Network card 0: main for device 0, else device + 1. Card n: 10000 + 100 n + device, which is also
    what amazon-ec2-net-utils takes. ValueError for one that is not attached.
    """
    if eni.device < 0:
        raise ValueError(f"{eni.eni_id} is not attached, so it has no routing table")
    if eni.card:
        return 10_000 + 100 * eni.card + eni.device
    return eni.device + 1 if eni.device else MAIN


def host_ifname(prefix: str, namespace: str, name: str) -> str:
    """The host veth's name: prefix and the first 11 hex digits of SHA-1("namespace.name").

    Tools (the network policy agent among them) find a pod's link by this, so nothing else is hashed.
    """
    digest = hashlib.sha1(f"{namespace}.{name}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:11]


def alias(lease_id: int) -> str:
    """The mark on the host link of a lease."""
    return f"{MARK}{lease_id}"


def retired(link: model.Link, lease_id: int) -> model.Link:
    """The host link of a lease that has ended, as it is called until it is removed.

    No VPCLEDGER or upstream setting lets a pod's link be called so: VETHPREFIX has four letters at most.
    """
    return dataclasses.replace(link, name=f"{_RETIRED}{lease_id % 10**10}", up=False)


def is_retired(thing: model.KernelObject) -> bool:
    """Is this a link that has left its pod and waits to be removed together with others?"""
    return (
        isinstance(thing, model.Link)
        and thing.name.startswith(_RETIRED)
        and thing.name[len(_RETIRED) :].isdigit()
    )


def pod_mac(host_mac: str) -> str:
    """The MAC of the pod's end: the host end's with its last bit flipped, so nobody has to look it up."""
    return f"{host_mac[:-2]}{int(host_mac[-2:], 16) ^ 1:02x}"


def pod(lease: model.Lease, eni: model.Eni, settings: knobs.Settings) -> PodWiring:
    """The wiring of a lease that has its address, host link name and host MAC.

    The host finds the pod by a link route and rule 512; the pod's packets leave through the table of
    the interface that owns its address (rule 1536; main needs none). The pod sees its address as a
    host address, a router out of nowhere and that router's MAC. The pair of an adopted lease was made by
    another CNI, which chose the pod's end. ValueError while anything is missing.
    """
    if not (lease.address and lease.host_ifname and lease.host_mac):
        raise ValueError(f"lease {lease.id} has no address, host link name or host MAC yet")
    host = f"{lease.address}/32"
    routed_by = table(eni)
    link = model.Link(
        lease.host_ifname, mac=lease.host_mac, mtu=settings.mtu, alias=alias(lease.id)
    )
    end = model.Link(lease.ifname, mtu=settings.mtu)
    if not lease.adopted:
        index = _FIRST_INDEX + 2 * (lease.id % _INDEXES)
        end = replace(end, mac=pod_mac(lease.host_mac), index=index + 1)
        link = replace(link, peer=end.name, peer_mac=end.mac, index=index)
    to_pod = model.Route(host, link.name, protocol=PROTOCOL)
    rules = [model.Rule(TO_POD, MAIN, dst=host, protocol=PROTOCOL)]
    if routed_by != MAIN:
        rules.append(model.Rule(FROM_POD, routed_by, src=host, protocol=PROTOCOL))
    inside = (
        model.Route(f"{GATEWAY}/32", lease.ifname, where="pod", protocol=PROTOCOL),
        model.Route("0.0.0.0/0", lease.ifname, via=GATEWAY, where="pod", protocol=PROTOCOL),
        model.InterfaceAddress(lease.ifname, host, where="pod"),
        model.Neighbour(lease.ifname, GATEWAY, lease.host_mac),
    )
    # A pod must not be able to turn the host into one that believes its router advertisements.
    sysctls = tuple(
        model.Sysctl(f"ipv6/conf/{link.name}/{name}", value)
        for name, value in (("accept_ra", "0"), ("accept_redirects", "1"), ("forwarding", "0"))
    )
    return PodWiring((link, to_pod, *rules), inside, sysctls, end)


def eni(eni: model.Eni, link: str, settings: knobs.Settings) -> tuple[model.KernelObject, ...]:
    """What an attached interface needs on its link (found by MAC), in the order in which it is made.

    The primary gets its MTU and nothing else: its addresses and routes are the operating system's. Any
    other gets its primary address, a table with a default route by way of the subnet's router (subnet
    base + 1, VPC guide) and rule 32765 for what that address sends.
    """
    itself = model.Link(link, kind="", mac=eni.mac, mtu=settings.eni_mtu)
    if eni.primary:
        return (itself,)
    subnet = ipaddress.ip_network(eni.subnet_cidr)
    router, own = str(subnet[1]), table(eni)
    return (
        itself,
        model.InterfaceAddress(link, f"{eni.primary_ip}/{subnet.prefixlen}"),
        model.Route(f"{router}/32", link, table=own, protocol=PROTOCOL),
        model.Route("0.0.0.0/0", link, table=own, via=router, protocol=PROTOCOL),
        model.Rule(FROM_ENI, own, src=f"{eni.primary_ip}/32", protocol=PROTOCOL),
    )


def host(
    settings: knobs.Settings, installed: Iterable[model.Installed]
) -> tuple[model.KernelObject, ...]:
    """What the node needs for all pods alike: what is marked, or goes to such a service, looks up main.

    A mark of earlier settings keeps its rule, for open connections bear it; `installed` remembers it
    until the next boot. In every setting there is a rule for the mark: one who turns translation off
    has connections open that it began.
    """
    marks = {settings.connmark: None}  # in order, each once
    for row in installed:
        if row.owner_kind == "host" and isinstance(row.thing, model.Rule) and row.thing.fwmark:
            marks[row.thing.fwmark] = None
    return (
        *(model.Rule(BY_MARK, MAIN, fwmark=m, fwmask=m, protocol=PROTOCOL) for m in marks),
        *(
            model.Rule(
                TO_SERVICE, MAIN, dst=cidr if cidr != "0.0.0.0/0" else None, protocol=PROTOCOL
            )
            for cidr in dict.fromkeys(settings.external_service_cidrs)
        ),
    )


def connected(
    enis: Iterable[model.Eni], links: Mapping[str, model.Link], observed: model.ObservedKernel
) -> tuple[model.Route, ...]:
    """The routes to be removed that the kernel made for the address of a further interface.

    Who configures every interface by DHCP leaves in main a second route to the subnet, by the further
    interface: what the node itself sends would leave there with another's address, and the VPC drop it.
    """
    found = []
    for eni in enis:
        link = links.get(eni.eni_id)
        if link is None or eni.primary:
            continue
        found += [
            route
            for route in observed.routes
            if (route.link, route.dst, route.table) == (link.name, eni.subnet_cidr, MAIN)
            and (route.via, route.protocol) == (None, BY_KERNEL)
        ]
    return tuple(found)


# ------------------------------------------------------------------------------- the difference


def diff(
    wanted: Iterable[model.KernelObject],
    observed: model.ObservedKernel,
    named: Iterable[model.KernelObject],
) -> tuple[actions.KernelAction, ...]:
    """What to do in the node's namespace so that `wanted` is there and nothing of ours besides.

    Makes before it breaks: what replaces something is put first and the old removed after; only a
    link whose name another sandbox of ours still has must go before. Removed is what bears our mark
    or is one of `named` (what the ledger's rows say we made). Pods' namespaces are not looked into,
    so objects there are left out; of two links of one name the later wins.
    """
    need = {thing.key: thing for thing in wanted if visible(thing)}
    rows = tuple(named)
    exact = {_exactly(thing) for thing in rows if not isinstance(thing, model.Link)}
    veths = [thing for thing in rows if isinstance(thing, model.Link) and thing.kind == "veth"]

    renamed = {found.name: thing for thing, found in misnamed(need.values(), observed)}
    satisfied: set[tuple[str, ...]] = set()
    stale: list[model.KernelObject] = []
    for found in _things(observed):
        thing = need.get(found.key)
        if isinstance(found, model.Link) and found.name in renamed:
            continue
        if thing is not None and _marked_alike(thing, found) and not faults(thing, found):
            satisfied.add(found.key)
        elif isinstance(found, model.Link):
            if not (thing is not None and same_link(thing, found)) and (
                ours(found) or any(same_link(veth, found) for veth in veths)
            ):
                stale.append(found)
        elif ours(found) or _exactly(found) in exact:
            stale.append(found)

    in_the_way = [each for each in stale if isinstance(each, model.Link) and each.key in need]
    rest = sorted((each for each in stale if each not in in_the_way), key=_removal_order)
    return (
        *(actions.Remove(each) for each in in_the_way),
        *(actions.Rename(thing, name) for name, thing in renamed.items()),
        *(actions.Put(thing) for key, thing in need.items() if key not in satisfied),
        *(actions.Remove(each) for each in rest),
    )


def compare(
    wanted: Iterable[model.KernelObject], observed: model.ObservedKernel | model.Unknown
) -> tuple[str, ...]:
    """A sentence for each wanted object that is missing or different; none means all is well.

    `observed` is the namespace in which all of them belong; sysctls are passed over. A missing mark is
    no difference: packets do not mind.
    """
    if isinstance(observed, model.Unknown):
        return (f"the kernel could not be asked: {observed.why}",)
    here = _by_key(observed)
    found: list[str] = []
    for thing in wanted:
        if isinstance(thing, model.Sysctl):
            continue
        found += _sentences(thing, here.get(thing.key, ()))
        if isinstance(thing, model.Link) and observed.peers.get(thing.name) is False:
            found.append(f"{describe(thing)} has lost its other end")
    return tuple(found)


def visible(thing: model.KernelObject) -> bool:
    """Is the thing one that an observation of the node's namespace can show?"""
    if isinstance(thing, model.Sysctl | model.Neighbour):
        return False
    return getattr(thing, "where", "host") == "host"


def ours(thing: model.KernelObject) -> bool:
    """Does the thing bear our mark? An address cannot bear one."""
    if isinstance(thing, model.Link):
        return thing.kind == "veth" and thing.alias.startswith(MARK)
    if isinstance(thing, model.Route | model.Rule):
        return thing.protocol == PROTOCOL
    return False


def misnamed(
    wanted: Iterable[model.KernelObject], observed: model.ObservedKernel
) -> Iterator[tuple[model.Link, model.Link]]:
    """Pods' links that somebody has given other names: each as wanted and as found.

    Both alias and MAC must be right, and nobody may have its name meanwhile. Interfaces of EC2 may be
    called as anybody likes: they are found by MAC.
    """
    names = {link.name for link in observed.links}
    by_mark = {(x.alias, x.mac): x for x in observed.links if x.alias and not is_retired(x)}
    for thing in wanted:
        if isinstance(thing, model.Link) and thing.alias and thing.name not in names:
            found = by_mark.get((thing.alias, thing.mac))
            if found is not None:
                yield thing, found


def same_link(one: model.KernelObject, other: model.KernelObject) -> bool:
    """Are these one link and not just one name? Its alias (our lease) or its MAC tells."""
    if not (isinstance(one, model.Link) and isinstance(other, model.Link) and one.key == other.key):
        return False
    return bool((one.alias and one.alias == other.alias) or (one.mac and one.mac == other.mac))


def describe(thing: model.KernelObject) -> str:
    """The thing in the words of ip(8)."""
    match thing:
        case model.Link():
            return f"link {thing.name}"
        case model.InterfaceAddress():
            return f"address {thing.cidr} on {thing.link}"
        case model.Route():
            via = f" via {thing.via}" if thing.via else ""
            place = "in the pod" if thing.where == "pod" else f"in table {thing.table}"
            return f"route {thing.dst}{via} dev {thing.link} {place}"
        case model.Rule():
            to = f" to {thing.dst}" if thing.dst else ""
            mark = f" fwmark {thing.fwmark:#x}/{thing.fwmask:#x}" if thing.fwmark else ""
            return f"rule {thing.priority} from {thing.src or 'all'}{to}{mark} lookup {thing.table}"
        case model.Neighbour():
            return f"neighbour {thing.ip} on {thing.link}"
        case model.Sysctl():
            return f"sysctl net/{thing.path}"


def faults(wanted: model.KernelObject, found: model.KernelObject) -> tuple[str, ...]:
    """In what the object found, of the same key, does not do what the wanted one would."""
    pairs: list[tuple[str, object, object]] = []
    match wanted, found:
        case model.Link(), model.Link():
            if wanted.kind:
                pairs.append(("kind", wanted.kind, found.kind))
            if wanted.mac:
                pairs.append(("MAC", wanted.mac, found.mac))
            pairs.append(("MTU", wanted.mtu, found.mtu))
            pairs.append(("state", _state(wanted), _state(found)))
        case model.Route(), model.Route():
            pairs.append(("gateway", wanted.via or "none", found.via or "none"))
        case model.Neighbour(), model.Neighbour():
            pairs.append(("MAC", wanted.mac, found.mac))
    return tuple(f"{what} is {has}, not {want}" for what, want, has in pairs if want != has)


def _exactly(thing: model.KernelObject) -> tuple[object, ...]:
    """The key and the mark: somebody's rule that only looks like ours is not named by our row."""
    return (*thing.key, getattr(thing, "protocol", 0))


def _state(link: model.Link) -> str:
    return "up" if link.up else "down"


def _marked_alike(wanted: model.KernelObject, found: model.KernelObject) -> bool:
    if isinstance(wanted, model.Link) and isinstance(found, model.Link):
        return not wanted.alias or wanted.alias == found.alias
    if isinstance(wanted, model.Route | model.Rule) and isinstance(found, model.Route | model.Rule):
        return wanted.protocol == found.protocol
    return True


def _sentences(
    thing: model.KernelObject, candidates: Iterable[model.KernelObject]
) -> tuple[str, ...]:
    """Nothing when one candidate does, else what is wrong with the first, or that there is none."""
    wrong = [faults(thing, each) for each in candidates]
    if not wrong:
        return (f"{describe(thing)} is missing",)
    return () if () in wrong else tuple(f"{describe(thing)}: {text}" for text in wrong[0])


def _things(observed: model.ObservedKernel) -> Iterator[model.KernelObject]:
    yield from observed.links
    yield from observed.addresses
    yield from observed.routes
    yield from observed.rules
    yield from observed.neighbours


def _by_key(
    observed: model.ObservedKernel,
) -> dict[tuple[str, ...], list[model.KernelObject]]:
    found: dict[tuple[str, ...], list[model.KernelObject]] = {}
    for each in _things(observed):
        found.setdefault(each.key, []).append(each)
    return found


def _removal_order(thing: model.KernelObject) -> int:
    """Rules first, so nothing is sent to what is about to go; links last, they take routes along."""
    order = (model.Rule, model.Route, model.Neighbour, model.InterfaceAddress, model.Link)
    return order.index(type(thing))
