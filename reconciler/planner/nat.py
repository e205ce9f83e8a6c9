"""Which nftables table a node needs: source translation, marks, and the way back for NodePorts.

One table, the same for all pods: nothing here grows with them. The marks make a connection's packets
take the primary interface (rule 1024 looks up main by them), the translation gives those that leave the
VPC the node's address. What the kernel's routes and rules are is wiring's; how the table travels is the
provider's.

Why these hooks and priorities (kube-proxy translates destinations at -100 and sources at 100 in each of
its modes, iptables-legacy, iptables-nft and nftables; conntrack is at -200):

    prerouting, filter, -150   the node's own address is still the destination of a NodePort
    prerouting, filter, -90    the destination is the endpoint that kube-proxy chose; a chain of type
                               filter sees connections whose destination has been translated, one of
                               type nat would not
    postrouting, nat, 110      whoever wanted to translate a source, kube-proxy or portmap, has done it
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, ruleset
from reconciler.planner.ruleset import (
    Arrives,
    Chain,
    Count,
    Destination,
    FirstPacket,
    Hook,
    Jump,
    Leaves,
    Local,
    MarkConnection,
    Marked,
    MarkPacket,
    Return,
    Rule,
    TranslateSource,
)

TABLE = "vpcledger"
"""Our table of the family ip; no other of nftables' objects is ever touched."""

CHAINS = ("inbound", "outbound", "off-vpc", "translate")
"""The chains of the table, in this order."""

EARLY, CHOSEN, LAST = -150, -90, 110


def table(
    node: model.Node,
    primary_link: str,
    settings: knobs.Settings,
    *,
    prefixes: Iterable[str] = (),
    earlier_marks: Iterable[int] = (),
) -> ruleset.Table:
    """The table for this node, whose primary interface is `primary_link`.

    `prefixes` are those of pods' links from earlier settings, `earlier_marks` the marks of an earlier
    AWS_VPC_K8S_CNI_CONNMARK: open connections bear them and still find their way. The chains are there
    in every setting, even empty, because the kernel stops translating what it began once the last
    chain of type nat is gone.
    """
    mark = settings.connmark
    pods = [f"{prefix}*" for prefix in sorted({settings.veth_prefix, *prefixes})]
    marks = sorted({mark, *earlier_marks})
    exempt = networks((*node.vpc_cidrs, *settings.exclude_snat_cidrs))
    snat = not settings.external_snat

    inbound = [
        Rule(
            (Arrives(primary_link), Local("daddr . iif"), Count(), MarkConnection(mark)),
            "to a port of this node: answers leave where it came in",
        )
    ]
    outbound = [
        Rule((Arrives(link), FirstPacket(), Jump("off-vpc")), "where does a pod connect to?")
        for link in pods
    ]
    restore = [
        Rule((Arrives(link), Marked(bits), MarkPacket(bits)), "by the primary interface")
        for link in pods
        for bits in marks
    ]
    return ruleset.Table(
        TABLE,
        (
            Chain(
                "inbound",
                tuple(inbound if settings.node_port_support else ()),
                Hook("filter", "prerouting", EARLY),
            ),
            Chain(
                "outbound",
                (*(outbound if snat else ()), *restore),
                Hook("filter", "prerouting", CHOSEN),
            ),
            Chain(
                "off-vpc",
                (
                    Rule((Local("daddr"), Return())),
                    *exempt,
                    Rule((Count(), MarkConnection(mark)), "off the VPC"),
                )
                if snat
                else (),
            ),
            Chain(
                "translate",
                (
                    Rule(
                        (Leaves("vlan*"), Return()), "branch interfaces have addresses of their own"
                    ),
                    Rule((Local("saddr . oif"), Return()), "an address of that interface already"),
                    Rule((Local("daddr"), Return())),
                    *exempt,
                    Rule((Count(), TranslateSource(node.primary_ip, settings.random_snat))),
                )
                if snat
                else (),
                Hook("nat", "postrouting", LAST),
            ),
        ),
    )


def sysctls(primary_link: str, settings: knobs.Settings) -> tuple[model.Sysctl, ...]:
    """The node's sysctls that packets need.

    Loose reverse path filtering (RFC 3704) on the primary interface: what comes back there to a pod of
    another interface, translated or through a NodePort, has its way out by that other interface. And
    whether the kernel looks for the socket of a segment before it is routed (ip-sysctl, tcp_early_demux),
    written both ways: who turns the setting off again gets back what it was.
    """
    return (
        model.Sysctl(f"ipv4/conf/{primary_link}/rp_filter", "2"),
        model.Sysctl("ipv4/tcp_early_demux", "0" if settings.disable_tcp_early_demux else "1"),
    )


def networks(cidrs: Iterable[str]) -> tuple[Rule, ...]:
    """A rule that returns for each of the IPv4 networks; one that lies in another needs none."""
    parsed = (ipaddress.IPv4Network(cidr, strict=False) for cidr in cidrs if ":" not in cidr)
    return tuple(
        Rule((Destination(str(network)), Return()) if network.prefixlen else (Return(),))
        for network in ipaddress.collapse_addresses(parsed)
    )


def plan(
    desired: model.Desired,
    primary_link: str,
    observed: ruleset.Observed | model.Unknown,
    settings: knobs.Settings,
) -> tuple[tuple[actions.NatAction, ...], tuple[actions.Note, ...]]:
    """Replace the table if it differs in anything from what the rows say; nothing if it does not.

    Without a node row, the VPC's networks or the primary interface's link nothing is planned: a table
    that exempts nothing would translate pods' traffic inside the VPC.
    """
    node = desired.node
    if isinstance(observed, model.Unknown):
        return (), (actions.Note("nat_unknown", observed.why),)
    if node is None or not node.vpc_cidrs:
        return (), (actions.Note("nat_waits", "the VPC's networks are not known yet"),)
    if not primary_link:
        return (), (actions.Note("nat_waits", f"no link has the MAC {node.primary_mac}"),)
    wanted = table(
        node,
        primary_link,
        settings,
        prefixes=_prefixes(desired.leases),
        earlier_marks=_earlier_marks(desired.installed),
    )
    if observed.table == wanted:
        return (), ()
    return (actions.ReplaceTable(wanted),), ()


def _prefixes(leases: Iterable[model.Lease]) -> set[str]:
    """What the names of pods' links begin with: all but the eleven digits that tell pods apart."""
    return {lease.host_ifname[:-11] for lease in leases if len(lease.host_ifname) > 11}


def _earlier_marks(installed: Iterable[model.Installed]) -> set[int]:
    """The marks that rules of ours look up main by: those of this boot's settings, old ones included."""
    return {
        row.thing.fwmark
        for row in installed
        if row.owner_kind == "host" and isinstance(row.thing, model.Rule) and row.thing.fwmark
    }
