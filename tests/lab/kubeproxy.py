"""Stands in for kube-proxy on one node: ClusterIP and NodePort services as packet rules, in its three modes.

The chains, marks and their order follow what kube-proxy is documented to do (Kubernetes, "Virtual IPs and
Service Proxies", and the layout of its chains as operators see it): destinations are translated in nat
PREROUTING and OUTPUT at -100; what must be masqueraded gets the bit 0x4000, which POSTROUTING takes off
again; a NodePort of policy Local leads to endpoints of this node only, and not at all without one; in
filter FORWARD packets that belong to no connection are dropped. The text is our own.

    legacy, nft    iptables in either backend, loaded by iptables-restore
    nftables       a table of its own, `ip kube-proxy`

Not simulated: session affinity, load balancer addresses, topology, IPVS, UDP conntrack clean-up. Which
endpoints a service has is told by the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.lab.netns import Netns

Mode = Literal["legacy", "nft", "nftables"]
Policy = Literal["Cluster", "Local"]
"""externalTrafficPolicy of a service."""

MODES: tuple[Mode, ...] = ("legacy", "nft", "nftables")

MASQUERADE = 0x4000
"""kube-proxy's --iptables-masquerade-bit is 14 by default."""


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a service. Endpoints are (address, port); `local` are those on this node."""

    name: str
    cluster_ip: str
    port: int
    endpoints: Sequence[tuple[str, int]]
    local: Sequence[tuple[str, int]] = ()
    node_port: int = 0
    external_policy: Policy = "Cluster"
    protocol: Literal["tcp", "udp"] = "tcp"

    def tag(self, *more: object) -> str:
        """What the names of its chains end with: 16 characters made of its name."""
        digest = hashlib.sha256(":".join(map(str, (self.name, self.protocol, *more))).encode())
        return digest.hexdigest()[:16].upper()


class KubeProxy:
    """The rules of one node in one mode, there until `close()`; `load` replaces them all."""

    def __init__(self, netns: Netns, mode: Mode, services: Iterable[Service] = ()) -> None:
        self._netns = netns
        self._chains: dict[str, list[str]] = {}  # table -> those of ours that are there
        self.mode = mode
        self.load(services)

    def load(self, services: Iterable[Service]) -> None:
        """Make these the node's services, in one transaction per table, as kube-proxy syncs."""
        known = list(services)
        if self.mode == "nftables":
            self._netns.command("nft", "-f", "-", stdin="\n".join(_nftables(known)))
            return
        for table, rules in (("nat", list(_nat(known))), ("filter", list(_filter(known)))):
            jumps = [] if table in self._chains else [f"-I {jump}" for jump in _jumps(table)]
            chains = [line.split()[0][1:] for line in rules if line.startswith(":")]
            stale = [each for each in self._chains.get(table, ()) if each not in chains]
            # Naming a chain empties it; a stale one goes when no rule leads to it any more.
            emptied = [f":{chain} - [0:0]" for chain in stale]
            self._restore(table, *emptied, *rules, *jumps, *(f"-X {chain}" for chain in stale))
            self._chains[table] = chains

    def close(self) -> None:
        """`kube-proxy --cleanup`."""
        if self.mode == "nftables":
            self._netns.command("nft", "delete", "table", "ip", "kube-proxy")
            return
        for table, chains in self._chains.items():
            self._restore(
                table,
                *(f":{chain} - [0:0]" for chain in chains),
                *(f"-D {jump}" for jump in _jumps(table)),
                *(f"-X {chain}" for chain in chains),
            )
        self._chains = {}

    def _restore(self, table: str, *lines: str) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        self._netns.command(f"iptables-{self.mode}-restore", "-w", "5", "--noflush", stdin=text)


_JUMPS = (
    ("nat", "PREROUTING", "KUBE-SERVICES"),
    ("nat", "OUTPUT", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    ("filter", "FORWARD", "KUBE-FORWARD"),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
    ("filter", "INPUT", "KUBE-EXTERNAL-SERVICES"),
)


def _jumps(table: str) -> list[str]:
    return [f"{chain} -j {target}" for where, chain, target in _JUMPS if where == table]


# ── iptables ──────────────────────────────────────────────────────────────────────────────────


def _nat(services: list[Service]) -> Iterator[str]:
    """Chains first (naming one empties it), then their rules."""
    rules: list[str] = []
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    mark = f"{MASQUERADE:#x}"
    rules += [
        f"-A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN",
        f"-A KUBE-POSTROUTING -j MARK --xor-mark {mark}",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        f"-A KUBE-MARK-MASQ -j MARK --or-mark {mark}",
    ]
    for service in services:
        if not service.endpoints:
            continue  # the filter table answers for it
        every, one = f"KUBE-SVC-{service.tag()}", f"-p {service.protocol} -m {service.protocol}"
        chains.append(every)
        rules.append(
            f"-A KUBE-SERVICES -d {service.cluster_ip}/32 {one} --dport {service.port} -j {every}"
        )
        rules += _spread(every, service, service.endpoints)
        for endpoint in dict.fromkeys((*service.endpoints, *service.local)):
            chain = _endpoint_chain(service, endpoint)
            chains.append(chain)
            rules += [
                # A pod that reaches itself through its service must see somebody else's address.
                f"-A {chain} -s {endpoint[0]}/32 -j KUBE-MARK-MASQ",
                f"-A {chain} {one} -j DNAT --to-destination {endpoint[0]}:{endpoint[1]}",
            ]
        if not service.node_port:
            continue
        outer = f"KUBE-EXT-{service.tag()}"
        chains.append(outer)
        rules.append(f"-A KUBE-NODEPORTS {one} --dport {service.node_port} -j {outer}")
        if service.external_policy == "Cluster":
            rules += [f"-A {outer} -j KUBE-MARK-MASQ", f"-A {outer} -j {every}"]
            continue
        near = f"KUBE-SVL-{service.tag()}"
        chains.append(near)
        own = f"-A {outer} -m addrtype --src-type LOCAL"
        rules += [
            f"{own} -j KUBE-MARK-MASQ",
            f"{own} -j {every}",
            f"-A {outer} -j {near}",
            *_spread(near, service, service.local),
        ]
    rules.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    yield from (f":{chain} - [0:0]" for chain in chains)
    yield from rules


def _endpoint_chain(service: Service, endpoint: tuple[str, int]) -> str:
    return f"KUBE-SEP-{service.tag(*endpoint)}"


def _spread(chain: str, service: Service, endpoints: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Each endpoint with equal chance: of n that are left, the first with 1/n."""
    for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield f"-A {chain} {chance}-j {_endpoint_chain(service, endpoint)}"


def _filter(services: list[Service]) -> Iterator[str]:
    yield from (
        f":{chain} - [0:0]"
        for chain in ("KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-EXTERNAL-SERVICES")
    )
    mark = f"{MASQUERADE:#x}"
    yield "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield f"-A KUBE-FORWARD -m mark --mark {mark}/{mark} -j ACCEPT"
    yield "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    for service in services:
        one = f"-p {service.protocol} -m {service.protocol}"
        if not service.endpoints:
            yield (
                f"-A KUBE-PROXY-FIREWALL -d {service.cluster_ip}/32 {one} --dport {service.port}"
                " -j REJECT"
            )
        reachable = service.local if service.external_policy == "Local" else service.endpoints
        if service.node_port and not reachable:
            yield (
                f"-A KUBE-EXTERNAL-SERVICES {one} -m addrtype --dst-type LOCAL"
                f" --dport {service.node_port} -j DROP"
            )


# ── nftables ──────────────────────────────────────────────────────────────────────────────────


def _nftables(services: list[Service]) -> Iterator[str]:
    """The table anew: kube-proxy in this mode leaves everything outside of it alone."""
    mark = f"{MASQUERADE:#x}"
    yield "table ip kube-proxy {}"
    yield "delete table ip kube-proxy"
    yield "table ip kube-proxy {"
    yield from (
        "chain mark-for-masquerade {",
        f"mark set mark or {mark}",
        "}",
        "chain masquerading {",
        f"mark and {mark} == 0 return",
        f"mark set mark xor {mark}",
        "masquerade fully-random",
        "}",
    )
    ips: list[str] = []
    ports: list[str] = []
    silent: list[str] = []
    for service in services:
        tag, proto = service.tag().lower(), service.protocol
        if service.endpoints:
            yield f"chain service-{tag} {{"
            yield _chosen(service, service.endpoints)
            yield "}"
            ips.append(f"{service.cluster_ip} . {proto} . {service.port} : goto service-{tag}")
        for address, port in dict.fromkeys((*service.endpoints, *service.local)):
            yield f"chain endpoint-{service.tag(address, port).lower()} {{"
            yield f"ip saddr {address} jump mark-for-masquerade"
            yield f"meta l4proto {proto} dnat to {address}:{port}"
            yield "}"
        reachable = service.local if service.external_policy == "Local" else service.endpoints
        if service.node_port and not reachable:
            silent.append(f"{proto} . {service.node_port} : drop")
        if service.node_port and service.endpoints:
            yield f"chain external-{tag} {{"
            if service.external_policy == "Cluster":
                yield "jump mark-for-masquerade"
                yield f"goto service-{tag}"
            else:
                yield "fib saddr type local jump mark-for-masquerade"
                yield f"fib saddr type local goto service-{tag}"
                if service.local:
                    yield _chosen(service, service.local)
            yield "}"
            ports.append(f"{proto} . {service.node_port} : goto external-{tag}")
    yield from _map("service-ips", "ipv4_addr . inet_proto . inet_service", ips)
    yield from _map("service-nodeports", "inet_proto . inet_service", ports)
    yield from _map("no-endpoint-nodeports", "inet_proto . inet_service", silent)
    yield "chain services {"
    yield "ip daddr . meta l4proto . th dport vmap @service-ips"
    yield "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports"
    yield "}"
    for hook, priority in (("prerouting", "dstnat"), ("output", "-100")):
        yield f"chain nat-{hook} {{ type nat hook {hook} priority {priority}; jump services"
        yield "}"
    yield "chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading"
    yield "}"
    yield "chain filter-input { type filter hook input priority -110;"
    yield "fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports"
    yield "}"
    yield "chain filter-forward { type filter hook forward priority -110;"
    yield "ct state invalid drop"
    yield "}"
    yield "}"


def _map(name: str, kind: str, elements: list[str]) -> Iterator[str]:
    content = f"elements = {{ {', '.join(elements)} }}" if elements else ""
    yield f"map {name} {{ type {kind} : verdict; {content}"
    yield "}"


def _chosen(service: Service, endpoints: Sequence[tuple[str, int]]) -> str:
    choices = ", ".join(
        f"{number} : goto endpoint-{service.tag(*endpoint).lower()}"
        for number, endpoint in enumerate(endpoints)
    )
    return f"numgen random mod {len(endpoints)} vmap {{ {choices} }}"
