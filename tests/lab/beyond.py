"""What lies beyond the VPC: the internet, a peered VPC of its own, a network on premises; one host in each.

    nodes ── vpc ──┬── igw ──── internet     192.0.2.10, any address off the others' CIDRs
                   ├────────── peer          10.1.0.10 in the second VPC, 10.1.0.0/16 (peering)
                   └────────── premises      172.16.0.10 in 172.16.0.0/16 (virtual private gateway)

The internet gateway translates one to one and without state: a source with a public association becomes
its public address, and a public address its private one on the way in. Any other source is counted and
dropped (VPC User Guide, "Enable internet access"), which is what proves SNAT: a pod's own address does not
get out. A peer and a network on premises know the VPC's private addresses and see sources as they are. The
peer is an instance of a VPC with ports, a source check and security groups of its own (`peering`).

Not simulated: BGP. Nothing passes from one of these to another through the VPC, as in AWS (no edge routing). What the VPC delivers to whom does not belong here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.lab import peering
from tests.lab.netns import Netns

if TYPE_CHECKING:
    from tests.lab.fabric import Fabric

VPC = "10.0.0.0/16"
PEER = peering.NETWORK
PREMISES = "172.16.0.0/16"

_GATEWAY = """
table ip igw {
    set associated { type ipv4_addr; }
    map public { type ipv4_addr : ipv4_addr; }
    map private { type ipv4_addr : ipv4_addr; }
    set refused { type ipv4_addr . ipv4_addr; size 65535; flags dynamic; counter; }
    chain translate {
        type filter hook prerouting priority raw; policy accept;
        iifname "vpc" ip saddr != @associated add @refused { ip saddr . ip daddr } drop
        iifname "vpc" ip saddr set ip saddr map @public
        iifname "internet" ip daddr set ip daddr map @private
    }
}
"""

_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")  # RFC 1918, 6598


@dataclass(frozen=True, slots=True)
class Place:
    """A host somewhere out there: `netns` is the host, `device` the VPC's link that leads to it."""

    name: str
    address: str
    netns: Netns
    device: str


class Beyond:
    """The three places, joined to a fabric until `close()`; their names stand in its directory."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._addresses = (f"198.18.0.{n}" for n in itertools.count())  # RFC 2544: nobody's
        self._gateway = self._made("igw")
        self._gateway.command("nft", "-f", "-", stdin=_GATEWAY)
        self._join(fabric.netns, "igw", ["default"], self._gateway, "vpc", _PRIVATE)
        internet = self._place("internet", "192.0.2.10", self._gateway, "internet", "default")
        self.internet = dataclasses.replace(internet, device="igw")
        self.peered = peering.PeeredVpc(fabric, open_to=VPC)
        # A host in another VPC, whose router is the other end of the link.
        self._join(fabric.netns, "pcx", [PEER], self.peered.fabric.netns, "pcx", [VPC])
        self.peer = Place("peer", peering.ADDRESS, self.peered.netns, "pcx")
        self.premises = self._place("premises", "172.16.0.10", fabric.netns, "vgw", PREMISES)
        self._public: dict[str, str] = {}
        fabric.tell_associations(self._associate)

    def places(self) -> tuple[Place, ...]:
        """All of them."""
        return self.internet, self.peer, self.premises

    def refused(self) -> dict[tuple[str, str], int]:
        """Packets the internet gateway did not let out, by (source, destination)."""
        listing = self._gateway.command("nft", "-j", "list", "set", "ip", "igw", "refused")
        counted: dict[tuple[str, str], int] = {}
        for item in json.loads(listing)["nftables"]:
            for element in item.get("set", {}).get("elem", ()):
                source, destination = element["elem"]["val"]["concat"]
                counted[source, destination] = element["elem"]["counter"]["packets"]
        return counted

    def forget_refused(self) -> None:
        """Start counting afresh."""
        self._gateway.command("nft", "flush set ip igw refused")

    def close(self) -> None:
        """Take the places away; the VPC has no way out any more."""
        self._fabric.tell_associations(None)
        for device in ("igw", "pcx", "vgw"):
            self._fabric.netns.command("ip", "link", "delete", device)
        self.peered.close()
        for netns in (self.internet.netns, self.premises.netns, self._gateway):
            netns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _associate(self, public: dict[str, str]) -> None:
        """Private -> public addresses, whenever an association came or went."""
        lines = [
            "flush set ip igw associated",
            "flush map ip igw public",
            "flush map ip igw private",
        ]
        for private, address in public.items():
            lines += [
                f"add element ip igw associated {{ {private} }}",
                f"add element ip igw public {{ {private} : {address} }}",
                f"add element ip igw private {{ {address} : {private} }}",
            ]
        if public != self._public:
            self._gateway.command("nft", "-f", "-", stdin="\n".join(lines))
        self._public = public

    def _made(self, name: str) -> Netns:
        netns = Netns(name, directory=self._fabric.directory / "netns")
        for sysctl in ("all", "default"):
            netns.sysctl(f"ipv4/conf/{sysctl}/rp_filter", 0)
        netns.sysctl("ipv4/ip_forward", 1)
        return netns

    def _place(self, name: str, address: str, by: Netns, device: str, network: str) -> Place:
        netns = self._made(name)
        netns.command("ip", "address", "add", f"{address}/32", "dev", "lo")
        self._join(by, device, [network], netns, "eth0", ["default"], f"src {address}")
        return Place(name, address, netns, device)

    def _join(
        self,
        near: Netns,
        device: str,
        out: Sequence[str],
        far: Netns,
        its: str,
        back: Sequence[str],
        source: str = "",
    ) -> None:
        """A link between two namespaces, each routing to the other what lies there.

        `source`: a host at the far end speaks as itself, not as the link it is behind.
        """
        ours, theirs = next(self._addresses), next(self._addresses)
        near.command(
            "ip", "link", "add", device, "mtu", "9001", "type", "veth",
            "peer", "name", its, "mtu", "9001", "netns", far.path,
        )  # fmt: skip
        for netns, link, own, other, networks, words in (
            (near, device, ours, theirs, out, ""),
            (far, its, theirs, ours, back, source),
        ):
            lines = [
                f"address add {own}/31 dev {link}",
                f"link set {link} up",
                *(f"route add {net} via {other} dev {link} {words}" for net in networks),
            ]
            netns.command("ip", "-batch", "-", stdin="\n".join(lines))
        # A first ARP request that is lost would be repeated only after a second.
        near.await_up(device)
        far.await_up(its)


def associated(interfaces: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Private -> public address of every association the interfaces have."""
    return {
        row["PrivateIpAddress"]: row["Association"]["PublicIp"]
        for eni in interfaces
        for row in eni.get("PrivateIpAddresses", ())
        if "Association" in row
    }
