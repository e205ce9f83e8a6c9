"""The VPC as a network namespace: it delivers what EC2 says is assigned and drops what it forbids.

Every attached interface is a veth. The guest's end is born in the instance's namespace as eth<N> with
EC2's MAC and left down (whoever runs the node must find it by MAC and raise it); the fabric's end is
a port here. Routes are the mapping service:

    <primary> dev PORT scope link              every address and prefix via <primary> dev PORT onlink
    one permanent neighbour per port           guests do not answer ARP for their pods; EC2 does not ask
    .1 of each subnet on lo                    the implicit router; proxy ARP speaks for all the rest
    default dev lo, and "oif lo drop"          what nobody owns vanishes in silence, ARP answered, as in AWS

The source/destination check is one static rule: a source that has no route back through the port it
came by (`fib saddr . iif oif`) is counted per port and source, and dropped. IPv4 and IPv6 alike.

`Cloud.hooks` drive all of it, inside the call that caused it. One VPC address space per fabric:
overlapping VPCs cannot share one. Security groups are `firewall`'s, what lies beyond the VPC is
`beyond`'s. Not simulated: network ACLs, route tables per subnet, NAT gateways, branch interfaces,
latency, and the fragments and path MTU of EC2.

What does not belong here: what EC2 would allow (the Cloud), what a node does with its interfaces.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.lab import beyond
from tests.lab.firewall import Firewall
from tests.lab.spaces import RUN, Netns

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud

IMDS = "169.254.169.254"
"""Where instances find their metadata, port 80 (EC2 User Guide, "Access instance metadata")."""

API = "198.51.100.1"
"""Where nodes reach the EC2 API, port 80. An address off the VPC, as a public endpoint's would be."""

MTU = 9001  # EC2's jumbo frames: every interface of a current instance type comes up with it

_RULES = """
table inet lab {
    set unchecked { type ifname; }
    set drops4 { type ifname . ipv4_addr; size 65535; flags dynamic; counter; }
    set drops6 { type ifname . ipv6_addr; size 65535; flags dynamic; counter; }
    chain source_check {
        type filter hook prerouting priority raw; policy accept;
        iif lo accept
        iifname @unchecked accept
        ip saddr 0.0.0.0 accept
        ip6 saddr { ::, fe80::/10 } accept
        meta nfproto ipv4 fib saddr . iif oif 0 add @drops4 { iifname . ip saddr } drop
        meta nfproto ipv6 fib saddr . iif oif 0 add @drops6 { iifname . ip6 saddr } drop
    }
    chain nobody {
        type filter hook forward priority filter; policy accept;
        oif lo drop
    }
}
"""

_SYSCTLS = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/conf/default/proxy_arp": 1,
    "ipv4/conf/all/rp_filter": 0,  # the nft rule does it, for IPv6 too, and counts
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
}


@dataclass(slots=True)
class _Port:
    """One attached interface: its device here, its device there, and the routes that lead to it."""

    eni: str
    instance: str
    attachment: str
    device: str
    guest: str
    checked: bool = True
    routes: set[str] = field(default_factory=set)  # "<destination> <how>"


class Fabric:
    """The VPC of one Cloud, open from construction to `close()`; its names stand in `directory`."""

    def __init__(self, cloud: Cloud, directory: Path = RUN) -> None:
        self.directory = directory
        self._cloud = cloud
        self._nodes: dict[str, Netns] = {}
        self._ports: dict[str, _Port] = {}
        self._gateways: set[str] = set()
        self._told: Callable[[dict[str, str]], object] | None = None
        self.netns = Netns("vpc", directory=directory / "netns")
        for name, value in _SYSCTLS.items():
            self.netns.sysctl(name, value)
        self.netns.command("nft", "-f", "-", stdin=_RULES)
        self._firewall = Firewall(self.netns)
        self._ip(
            f"address add {IMDS}/32 dev lo",
            f"address add {API}/32 dev lo",
            "route add default dev lo metric 4000",
            "route add ::/0 dev lo metric 4000",
        )
        with cloud.lock:
            cloud.hooks.append(self._on_event)

    def close(self) -> None:
        """Stop listening to the Cloud and take the VPC down; guests lose their interfaces."""
        with self._cloud.lock:
            self._cloud.hooks.remove(self._on_event)
            for eni in list(self._ports):
                self._unplug(eni)
        self.netns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, instance: str, netns: Netns) -> None:
        """This namespace is that instance: plug in all it has attached, now and from now on.

        Joining again (a reboot with a new namespace) moves every interface over.
        """
        with self._cloud.lock:
            self.leave(instance)
            self._nodes[instance] = netns
            for eni in self._cloud.interfaces_of(instance):
                self._plug(eni)

    def leave(self, instance: str) -> None:
        """The instance is powered off: its interfaces vanish from its namespace."""
        with self._cloud.lock:
            for port in [port for port in self._ports.values() if port.instance == instance]:
                self._unplug(port.eni)
            self._nodes.pop(instance, None)

    def listen(self, address: str, port: int = 80) -> socket.socket:
        """A listening TCP socket in the VPC, to be served by a thread of this process."""
        return self.netns.run(socket.create_server, (address, port), backlog=128)

    def primary(self, instance: str) -> dict[str, Any]:
        """The instance's first interface (card 0, device 0), in DescribeNetworkInterfaces shape."""
        with self._cloud.lock:
            return self._cloud.interfaces_of(instance)[0]

    def gateway(self, subnet: str) -> ipaddress.IPv4Interface:
        """The implicit router of a subnet with the subnet's prefix length, e.g. 10.0.0.1/20."""
        with self._cloud.lock:
            found = self._cloud.get("subnet", subnet)
        if found is None:
            raise KeyError(subnet)
        network = ipaddress.IPv4Network(found["CidrBlock"])
        return ipaddress.IPv4Interface((network[1], network.prefixlen))

    def tell_associations(self, listener: Callable[[dict[str, str]], object] | None) -> None:
        """Call this with {private: public address} now and after each change; None to stop."""
        with self._cloud.lock:
            self._told = listener
            self._tell()

    def eni_at(self, device: str) -> str:
        """The interface whose port this device of the VPC is; the device's own name for others."""
        return next((p.eni for p in self._ports.values() if p.device == device), device)

    def await_link(self, eni: str) -> None:
        """Return once packets reach a guest that has raised this interface; TimeoutError after 5 s.

        The kernel opens our end a moment after the guest's, by a job of its own (linkwatch). What
        it gets before is lost, and a guest repeats a lost ARP request only after a second.
        """
        try:
            self.netns.await_up(self._ports[eni].device)
        except TimeoutError:
            raise TimeoutError(
                f"{eni} has no link; raise it in its instance's namespace first"
            ) from None

    def drops(self) -> dict[tuple[str, str], int]:
        """Packets dropped by the source check so far, by (interface id, source address)."""
        devices = {port.device: port.eni for port in self._ports.values()}
        counted: dict[tuple[str, str], int] = {}
        for name in ("drops4", "drops6"):
            listing = self.netns.command("nft", "-j", "list", "set", "inet", "lab", name)
            for item in json.loads(listing)["nftables"]:
                for element in item.get("set", {}).get("elem", ()):
                    device, source = element["elem"]["val"]["concat"]
                    counter = element["elem"]["counter"]["packets"]
                    counted[devices.get(device, device), source] = counter
        return counted

    def refusals(self) -> dict[tuple[str, str, str, str], int]:
        """Packets that security groups refused: (interface id, "egress" or "ingress", from, to)."""
        devices = {port.device: port.eni for port in self._ports.values()}
        return {
            (devices.get(device, device), way, source, destination): packets
            for (device, way, source, destination), packets in self._firewall.refusals().items()
        }

    def forget_drops(self) -> None:
        """Start counting afresh."""
        self.netns.command("nft", "flush set inet lab drops4; flush set inet lab drops6")

    # ── what EC2 announces ────────────────────────────────────────────────────────────────────

    def _on_event(self, event: str, news: dict[str, Any]) -> None:
        """`Cloud.hooks`: called with the Cloud's lock held, after its state has changed."""
        if event == "attached":
            self._plug(news["eni"])
        elif event == "addresses":
            self._route(news["eni"])
            self._tell()
        elif event == "source-check":
            self._check(news["eni"])
        elif event == "groups":
            self._guard(news["eni"])
        elif event == "rules":
            self._firewall.change(news["group"])
        elif event == "detached":
            self._unplug(news["eni"]["NetworkInterfaceId"])
        elif event == "instance-terminated":
            self.leave(news["instance_id"])

    def _tell(self) -> None:
        if self._told:
            self._told(beyond.associated(self._cloud.scan("interface")))

    def _plug(self, eni: dict[str, Any]) -> None:
        attachment = eni.get("Attachment") or {}
        instance = attachment.get("InstanceId", "")
        known = self._ports.get(eni["NetworkInterfaceId"])
        if instance not in self._nodes or (
            known and known.attachment == attachment["AttachmentId"]
        ):
            return
        self._gateway_up(eni["SubnetId"])
        node = self._nodes[instance]
        port = _Port(
            eni=eni["NetworkInterfaceId"],
            instance=instance,
            attachment=attachment["AttachmentId"],
            device="p" + eni["NetworkInterfaceId"][-14:],
            guest=self._guest_name(instance, attachment["DeviceIndex"]),
        )
        mac, device = eni["MacAddress"], port.device
        neighbours = [
            f"neighbour replace {_link_local(mac)} lladdr {mac} dev {device} nud permanent"
        ]
        if primary := eni.get("PrivateIpAddress"):  # an EFA-only interface has none
            neighbours += [f"neighbour replace {primary} lladdr {mac} dev {device} nud permanent"]
        self._ip(
            f"link add {device} mtu {MTU} type veth"
            f" peer name {port.guest} mtu {MTU} address {mac} netns {node.path}",
            f"link set {device} addrgenmode none up",
            f"address add fe80::1/64 dev {device} nodad",
            *neighbours,
            # Without it the first ARP of every guest waits up to 0.8 s for its proxied answer.
            sysctls={f"ipv4/neigh/{device}/proxy_delay": 0},
        )
        self._ports[port.eni] = port
        self._route(eni)
        self._check(eni)

    def _guard(self, eni: dict[str, Any]) -> None:
        port = self._ports.get(eni["NetworkInterfaceId"])
        if port is not None:
            named = (self._cloud.get("group", group["GroupId"]) for group in eni["Groups"])
            self._firewall.guard(port.device, eni, [group for group in named if group])

    def _unplug(self, eni: str) -> None:
        port = self._ports.pop(eni, None)
        if port is None:
            return
        if not port.checked:
            self.netns.command("nft", f"delete element inet lab unchecked {{ {port.device} }}")
        self._firewall.release(port.device)
        self._ip(f"link delete {port.device}")

    def _route(self, eni: dict[str, Any]) -> None:
        """Make the routes to a port those of its interface: the difference only, at once."""
        port = self._ports.get(eni["NetworkInterfaceId"])
        if port is None:
            return
        wanted = set(_routes(eni))
        lines = [
            f"route delete {route.split()[0]} dev {port.device}" for route in port.routes - wanted
        ]
        # The primary's comes first: the others lead via it.
        for route in sorted(wanted - port.routes, key=lambda line: "onlink" in line):
            destination, _, how = route.partition(" ")
            lines.append(f"route replace {destination} {how} dev {port.device}")
        port.routes = wanted
        self._ip(*lines)
        self._guard(eni)

    def _check(self, eni: dict[str, Any]) -> None:
        port = self._ports.get(eni["NetworkInterfaceId"])
        if port is None or port.checked == eni["SourceDestCheck"]:
            return
        port.checked = eni["SourceDestCheck"]
        verb = "delete" if port.checked else "add"
        self.netns.command("nft", f"{verb} element inet lab unchecked {{ {port.device} }}")

    def _gateway_up(self, subnet: str) -> None:
        if subnet not in self._gateways:
            router = self.gateway(subnet)
            self._ip(
                f"address add {router.ip}/32 dev lo",
                # The local route of the VPC: what nobody owns does not go to the internet instead.
                f"route add {router.network} dev lo metric 4000",
            )
            self._gateways.add(subnet)

    def _guest_name(self, instance: str, index: int) -> str:
        """eth<device index>; a second network card counts its own indexes, so the next free one."""
        taken = {port.guest for port in self._ports.values() if port.instance == instance}
        while f"eth{index}" in taken:
            index += 1
        return f"eth{index}"

    def _ip(self, *lines: str, sysctls: dict[str, int] | None = None) -> None:
        """Run `ip -batch` in the VPC (2 ms), then write sysctls of devices it made."""

        def inside() -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="\n".join(lines),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                for name, value in (sysctls or {}).items():
                    (Path("/proc/sys/net") / name).write_text(str(value))
            return done

        if lines:
            done = self.netns.run(inside)
            if done.returncode:
                raise RuntimeError(f"ip -batch: {done.stderr.strip()} in:\n" + "\n".join(lines))


def _routes(eni: dict[str, Any]) -> Iterator[str]:
    """What leads to an interface, in DescribeNetworkInterfaces shape, as `<destination> <how>`."""
    primary = eni.get("PrivateIpAddress")
    if primary:
        yield f"{primary}/32 scope link"
    for destination in (
        *(item["PrivateIpAddress"] + "/32" for item in eni.get("PrivateIpAddresses", ())),
        *(item["Ipv4Prefix"] for item in eni.get("Ipv4Prefixes", ())),
    ):
        if destination != f"{primary}/32":
            yield f"{destination} via {primary} onlink"
    for destination in (
        *(item["Ipv6Address"] + "/128" for item in eni.get("Ipv6Addresses", ())),
        *(item["Ipv6Prefix"] for item in eni.get("Ipv6Prefixes", ())),
    ):
        yield f"{destination} via {_link_local(eni['MacAddress'])} onlink"


def _link_local(mac: str) -> str:
    """The address a guest gives itself from its MAC (RFC 4291, appendix A: modified EUI-64)."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    eui = bytes([*octets[:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + eui))


def boot_lines(device: str, address: str, gateway: ipaddress.IPv4Interface) -> Sequence[str]:
    """What DHCP gives an instance on its primary interface, and on no other, as `ip -batch` lines."""
    return (
        f"link set {device} up",
        f"address add {address}/{gateway.network.prefixlen} dev {device}",
        f"route add default via {gateway.ip} dev {device}",
        f"route add ::/0 via fe80::1 dev {device}",
    )
