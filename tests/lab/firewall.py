"""What security groups let through: a stateful filter for each port of the fabric, in nftables.

An interface remembers what its groups have admitted, in either direction, by addresses, protocol and
ports; what belongs to it passes without a rule, through this interface and no other (VPC User Guide,
"Security group connection tracking"). So a reply that leaves by another interface than the request came
in by is judged anew, which one conntrack for the whole VPC would not show. Every packet is judged twice,
on leaving one port and on entering another, and what is refused is counted by port and addresses.

As in AWS the metadata service is not filtered; here nothing that lives in the VPC itself is. A group
named by a rule stands for the addresses of its members' ports.

What does not belong here: which rules a group has (`permissions`), who owns which address (`fabric`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tests.lab import permissions
from tests.lab.netns import Netns

REMEMBERED = "350s"
"""How long an idle flow stays admitted: the Nitro default for established TCP."""

_DIRECTIONS = {"egress": ("iifname", "saddr", "daddr"), "ingress": ("oifname", "daddr", "saddr")}


def _key(direction: str, family: str, *, ports: bool) -> str:
    """A flow as the port sees it: the guest's side first, whichever way the packet goes."""
    device, own, peer = _DIRECTIONS[direction]
    sport, dport = ("sport", "dport") if direction == "egress" else ("dport", "sport")
    addresses = f"{device} . {family} {own} . {family} {peer}"
    if ports:
        return f"{addresses} . meta l4proto . th {sport} . th {dport}"
    return f"{addresses} . {'icmp' if family == 'ip' else 'icmpv6'} id"


def _static() -> str:
    """The parts that never change: sets of flows, where packets come by, what is remembered."""
    lines = ["table inet groups {"]
    for family, kind in (("ip", "ipv4_addr"), ("ip6", "ipv6_addr")):
        icmp = "icmp" if family == "ip" else "icmpv6"
        flags = f"size 65535; flags dynamic,timeout; timeout {REMEMBERED};"
        lines += [
            (
                f"set flows_{family} {{ type ifname . {kind} . {kind} . inet_proto . inet_service"
                f" . inet_service; {flags} }}"
            ),
            (
                f"set echoes_{family} {{ typeof iifname . {family} saddr . {family} daddr"
                f" . {icmp} id; {flags} }}"
            ),
        ]
        lines += [
            f"set refused_{direction}_{family} {{ type ifname . {kind} . {kind};"
            " size 65535; flags dynamic; counter; }"
            for direction in _DIRECTIONS
        ]
    for direction, (device, _, _) in _DIRECTIONS.items():
        priority = "filter + 10" if direction == "egress" else "filter + 20"
        known, remember, refuse = [], [], []
        for family, proto, errs in (
            ("ip", "ipv4", "icmp type { destination-unreachable, time-exceeded }"),
            ("ip6", "ipv6", "icmpv6 type { destination-unreachable, packet-too-big }"),
        ):
            flow, echo = (_key(direction, family, ports=with_ports) for with_ports in (True, False))
            known += [
                f"meta nfproto {proto} meta l4proto {{ tcp, udp }} {flow} @flows_{family} goto admit_{direction}",
                f"meta nfproto {proto} {echo} @echoes_{family} goto admit_{direction}",
                f"{errs} accept",
            ]
            remember += [
                (
                    f"meta nfproto {proto} meta l4proto {{ tcp, udp }}"
                    f" update @flows_{family} {{ {flow} }}"
                ),
                f"meta nfproto {proto} update @echoes_{family} {{ {echo} }}",
            ]
            who = f"{device} . {family} saddr . {family} daddr"
            refuse.append(f"meta nfproto {proto} update @refused_{direction}_{family} {{ {who} }}")
        lines += [
            f"map {direction} {{ type ifname : verdict; }}",
            (f"chain {direction} {{ type filter hook forward priority {priority};"
            f" {device} vmap @{direction}; }}"),
            f"chain known_{direction} {{", *known, "}",
            f"chain admit_{direction} {{", *remember, "accept", "}",
            f"chain refuse_{direction} {{", *refuse, "drop", "}",
        ]  # fmt: skip
    return "\n".join([*lines, "}"])


class Firewall:
    """The filters of one fabric's ports. Not thread-safe: called with the Cloud's lock held."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        self._ports: dict[str, dict[str, Any]] = {}  # device -> its interface
        self._groups: dict[str, dict[str, Any]] = {}
        self._sets: dict[str, set[str]] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        netns.command("nft", "-f", "-", stdin=_static())

    def guard(self, device: str, eni: dict[str, Any], groups: Iterable[dict[str, Any]]) -> None:
        """Filter a port by its interface's groups and addresses, as they are now."""
        self._ports[device] = eni
        for group in groups:
            self._groups[group["GroupId"]] = group
        self._load()

    def release(self, device: str) -> None:
        """The port is gone, and with it all it had admitted."""
        if self._ports.pop(device, None) is not None:
            self._load()

    def change(self, group: dict[str, Any]) -> None:
        """A group has other rules now. What its members have admitted already goes on."""
        if group["GroupId"] in self._groups:
            self._groups[group["GroupId"]] = group
            self._load()

    def refusals(self) -> dict[tuple[str, str, str, str], int]:
        """Packets refused so far by (device, "egress" or "ingress", source, destination)."""
        counted: dict[tuple[str, str, str, str], int] = {}
        for direction in _DIRECTIONS:
            for family in ("ip", "ip6"):
                name = f"refused_{direction}_{family}"
                listing = self._netns.command("nft", "-j", "list", "set", "inet", "groups", name)
                for item in json.loads(listing)["nftables"]:
                    for element in item.get("set", {}).get("elem", ()):
                        device, source, destination = element["elem"]["val"]["concat"]
                        counted[device, direction, source, destination] = element["elem"][
                            "counter"
                        ]["packets"]
        return counted

    def _load(self) -> None:
        """Bring the kernel from what is loaded to what should be, in one transaction."""
        sets, chains = dict(self._members()), dict(self._judges())
        lines = []
        for name in sets.keys() - self._sets.keys():
            kind = "ipv6_addr" if name.endswith("_ip6") else "ipv4_addr"
            lines.append(f"add set inet groups {name} {{ type {kind}; flags interval; }}")
        for name, wanted in sets.items():
            known = self._sets.get(name, set())
            if gone := known - wanted:
                lines.append(f"delete element inet groups {name} {{ {', '.join(sorted(gone))} }}")
            if new := wanted - known:
                lines.append(f"add element inet groups {name} {{ {', '.join(sorted(new))} }}")
        lines += [f"add chain inet groups {name}" for name in chains.keys() - self._chains.keys()]
        for name, body in chains.items():
            if body != self._chains.get(name):
                lines.append(f"flush chain inet groups {name}")
                lines += [f"add rule inet groups {name} {rule}" for rule in body]
        for verb, devices in (
            ("delete", _devices(self._chains) - _devices(chains)),
            ("add", _devices(chains) - _devices(self._chains)),
        ):
            for device in sorted(devices):
                for direction in _DIRECTIONS:
                    jump = f" : jump {_chain(device, direction)}" if verb == "add" else ""
                    lines.append(f"{verb} element inet groups {direction} {{ {device}{jump} }}")
        lines += [f"delete chain inet groups {name}" for name in _doomed(self._chains, chains)]
        lines += [f"delete set inet groups {name}" for name in self._sets.keys() - sets.keys()]
        if lines:
            self._netns.command("nft", "-f", "-", stdin="\n".join(lines))
        self._sets, self._chains = sets, chains

    def _members(self) -> Iterator[tuple[str, set[str]]]:
        """For each group a port has: the addresses that stand for it in rules."""
        for group in self._used():
            for family in ("ip", "ip6"):
                yield (
                    _members_of(group, family),
                    {
                        address
                        for eni in self._ports.values()
                        if group in _groups_of(eni)
                        for address in _addresses(eni, family)
                    },
                )

    def _judges(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        used = self._used()
        for direction in _DIRECTIONS:
            for group in used:
                rules = permissions.of(self._groups[group], direction)
                body = [line for rule in rules for line in _rule(rule, direction, used)]
                yield f"{group.replace('-', '_')}_{direction}", tuple(body)
            for device, eni in self._ports.items():
                jumps = (f"jump {g.replace('-', '_')}_{direction}" for g in _groups_of(eni))
                judge = (f"jump known_{direction}", *jumps, f"goto refuse_{direction}")
                yield _chain(device, direction), judge

    def _used(self) -> set[str]:
        return {group for eni in self._ports.values() for group in _groups_of(eni)}


def _rule(rule: permissions.Rule, direction: str, known: set[str]) -> Iterator[str]:
    """One rule of a group as nft lines. A group nobody is a member of admits nobody."""
    _, _, peer = _DIRECTIONS[direction]
    for family in ("ip", "ip6"):
        if rule.peer.startswith("sg-"):
            if rule.peer not in known:
                continue
            who = f"{family} {peer} @{_members_of(rule.peer, family)}"
        elif (":" in rule.peer) == (family == "ip6"):
            every = rule.peer.endswith("/0")
            proto = "ipv6" if family == "ip6" else "ipv4"
            who = f"meta nfproto {proto}" if every else f"{family} {peer} {rule.peer}"
        else:
            continue
        yield f"{who}{_what(rule)} goto admit_{direction}"


def _what(rule: permissions.Rule) -> str:
    if rule.protocol == permissions.ALL:
        return ""
    if rule.protocol in {"tcp", "udp"} and rule.first is not None and rule.first >= 0:
        return f" {rule.protocol} dport {rule.first}-{rule.last}"
    if rule.protocol in {"icmp", "icmpv6"} and rule.first is not None and rule.first >= 0:
        return f" {rule.protocol} type {rule.first}"
    return f" meta l4proto {'ipv6-icmp' if rule.protocol == 'icmpv6' else rule.protocol}"


def _groups_of(eni: dict[str, Any]) -> list[str]:
    return [group["GroupId"] for group in eni["Groups"]]


def _addresses(eni: dict[str, Any], family: str) -> Iterator[str]:
    if family == "ip":
        yield from (item["PrivateIpAddress"] for item in eni.get("PrivateIpAddresses", ()))
        yield from (item["Ipv4Prefix"] for item in eni.get("Ipv4Prefixes", ()))
    else:
        yield from (item["Ipv6Address"] for item in eni.get("Ipv6Addresses", ()))
        yield from (item["Ipv6Prefix"] for item in eni.get("Ipv6Prefixes", ()))


def _members_of(group: str, family: str) -> str:
    return f"{group.replace('-', '_')}_{family}"


def _chain(device: str, direction: str) -> str:
    return f"{device}_{direction}"


def _devices(chains: Iterable[str]) -> set[str]:
    return {name.partition("_")[0] for name in chains if not name.startswith("sg_")}


def _doomed(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Chains to delete: those of ports before those of groups, to which they jump."""
    return sorted(set(before) - set(after), key=lambda name: name.startswith("sg_"))
