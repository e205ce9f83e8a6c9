"""Which kernel objects each pod, each interface and the node itself need.

Priorities, table numbers and names are those of the VPC CNI, so that the node looks as operators and
tools expect it; what is added is a mark on everything. What differs from what is there is drift's to say,
and how an object gets into the kernel does not belong here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ledger import model
from reconciler import settings as knobs

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
    # A pod must not be able to turn the host into one that believes its router advertisements or redirects.
    sysctls = tuple(
        model.Sysctl(f"ipv6/conf/{link.name}/{name}", value)
        for name, value in (("accept_ra", "0"), ("accept_redirects", "0"), ("forwarding", "0"))
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


def ours(thing: model.KernelObject) -> bool:
    """Does the thing bear our mark? An address cannot bear one."""
    if isinstance(thing, model.Link):
        return thing.kind == "veth" and thing.alias.startswith(MARK)
    if isinstance(thing, model.Route | model.Rule):
        return thing.protocol == PROTOCOL
    return False
