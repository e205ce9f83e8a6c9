"""Two nodes with pods on each of three interfaces, all that lies beyond, and who must meet whom how.

`Town.mode` restarts the daemons with other settings; the pods and their connections stay. `Town.walk`
holds a conversation against what the node, the VPC and the far node have seen of it, packet by packet.

What does not belong here: the table of what is right for which path and setting (the tests).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Self

from tests.lab import talk
from tests.lab.beyond import Beyond
from tests.lab.hops import Trail
from tests.lab.kubelet import Sandbox
from tests.lab.netns import Netns
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.paths.leg import Leg, ends, held

MARK = 0x80
"""AWS_VPC_K8S_CNI_CONNMARK, unless set otherwise."""

PORT = 8080
"""Everybody listens here and says who asks."""

INTERFACES = (0, 1, 2)
"""Device indexes: a t3.small has three interfaces with three pods on each."""

SETTINGS: dict[str, dict[str, str]] = {
    "prng": {},
    "hashrandom": {"AWS_VPC_K8S_CNI_RANDOMIZESNAT": "hashrandom"},
    "none": {"AWS_VPC_K8S_CNI_RANDOMIZESNAT": "none"},
    "excluded": {"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.1.0.0/16,172.16.0.0/16"},
    "external": {"AWS_VPC_K8S_CNI_EXTERNALSNAT": "true"},
}
"""The modes of source translation, each with what it sets besides the defaults."""

DEFAULTS = {
    "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "prng",
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "",
    "AWS_VPC_K8S_CNI_EXTERNALSNAT": "false",
    "AWS_VPC_K8S_CNI_CONNMARK": "0x80",
    "AWS_VPC_K8S_CNI_VETHPREFIX": "eni",
    "AWS_VPC_CNI_NODE_PORT_SUPPORT": "true",
    "AWS_EXTERNAL_SERVICE_CIDRS": "",
    "DISABLE_TCP_EARLY_DEMUX": "false",
}
"""What is set without being asked for, so that a restart takes back what the last one set."""

_PLAIN = r"^(?!.*172\.16\.0\.0/16)"
TABLES = {
    "prng": _PLAIN + r".*snat to [0-9.]+ fully-random",
    "hashrandom": _PLAIN + r".*snat to [0-9.]+ random",
    "none": _PLAIN + r".*snat to [0-9.]+\n",
    "excluded": r"172\.16\.0\.0/16.*snat to [0-9.]+ fully-random",
    "external": r"^table(?!.*snat to)",
}
"""By which a listing of the daemon's table tells its mode (regular expressions)."""


class Town:
    """The lab with its pods, listeners and observers; `close()` ends it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.lab = stack.enter_context(
                Lab(nodes=2, instance_type="t3.small", attach_delay=0, throttle=None)
            )
            self.beyond = stack.enter_context(Beyond(self.lab.fabric))
            self._open_groups()
            self.public = [self._publish(node) for node in self.lab.nodes]
            self.lab.start()
            self.now = "prng"
            self.walked = 0  # conversations that were held against what was seen of them
            # The last acknowledgement of a conversation may come by during the next one.
            self._before: set[frozenset[tuple[str, int]]] = set()
            self.pods = [self._fill(number) for number in range(2)]
            for name, netns in self._hosts():
                stack.enter_context(talk.Listener(netns, PORT, name))
            self.trails = {
                node.name: stack.enter_context(Trail(node.netns, bit=MARK))
                for node in self.lab.nodes
            }
            self.vpc = stack.enter_context(Trail(self.lab.fabric.netns))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End all of it."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── who is who ────────────────────────────────────────────────────────────────────────────

    def pod(self, node: int, interface: int, which: int = 0) -> Sandbox:
        """A pod of a node (0, 1) whose address EC2 holds on this interface (0, 1, 2)."""
        return self.pods[node][interface][which]

    def node(self, number: int) -> Node:
        """The node."""
        return self.lab.nodes[number]

    def link(self, pod: Sandbox) -> str:
        """The host end of a pod's link, as the CNI result names it."""
        assert pod.result
        return str(pod.result["interfaces"][0]["name"])

    def eni(self, node: int, interface: int) -> str:
        """The id of an interface of a node."""
        with self.lab.cloud.lock:
            enis = self.lab.cloud.interfaces_of(self.lab.nodes[node].instance)
        return str(enis[interface]["NetworkInterfaceId"])

    # ── the daemons' settings ─────────────────────────────────────────────────────────────────

    def mode(self, name: str) -> None:
        """Restart both daemons with the settings of a mode, if they have others."""
        if name != self.now:
            self.restart(TABLES[name], SETTINGS[name])
            self.now = name

    def restart(self, tells: str, settings: dict[str, str], *, nodes: int = 2) -> None:
        """Restart the daemons, or the first node's alone, with these settings besides the defaults.

        They serve pods at once, as before; the settings are in force when the listing of their table and
        of the rules for all pods matches `tells`.
        """

        def again(node: Node) -> None:
            node.stop_daemon()
            node.start_daemon(**{**DEFAULTS, **settings})
            self.until(
                lambda: re.search(tells, settings_of(node), re.DOTALL),
                f"settings of {node.name} in force",
            )

        self.lab.on_each(again, self.lab.nodes[:nodes])
        self.now = ""

    @staticmethod
    def until(seen: Callable[[], object], what: str, *, seconds: float = 20.0) -> float:
        """Another process's doing, of which nothing tells us: looked for until a deadline.

        Returns the seconds that it took.
        """
        began = time.monotonic()
        while not seen():
            assert time.monotonic() < began + seconds, f"not seen in {seconds} s: {what}"
            time.sleep(0.005)
        return time.monotonic() - began

    # ── walking ───────────────────────────────────────────────────────────────────────────────

    def forget(self) -> None:
        """All observers start afresh."""
        for trail in (*self.trails.values(), self.vpc):
            trail.forget()
        self.lab.fabric.forget_drops()
        self.beyond.peered.fabric.forget_drops()
        self.beyond.forget_refused()

    def walk(
        self, frm: Netns, to: str, port: int, *legs: tuple[int, Leg], protocol: str = "tcp"
    ) -> tuple[str, str]:
        """Ask `to` who asks, and hold each (node, leg) against what that node saw of it.

        Every hop must be one of the leg's, every one of the leg's must be seen, with its mark; nothing
        of it may be seen on a node that has no leg. Returned is what `talk.ask` answers. The
        conversation is told by its ports: `port`, and PORT of endpoints.
        """
        self._look_afresh()
        try:
            answer = talk.ASK[protocol](frm, to, port)
        except OSError as error:
            raise AssertionError(f"{error}; {self.told(port)}") from error
        self._hold(port, legs, protocol)
        return answer

    def lost(self, frm: Netns, to: str, port: int, *legs: tuple[int, Leg], wait: float) -> None:
        """Ask where nobody answers within `wait` seconds: each leg is held to its way out, and no way back."""
        self._look_afresh()
        try:
            answer = talk.ask(frm, to, port, wait=wait)
        except TimeoutError:
            self._hold(port, legs, "tcp", answered=False)
        else:
            raise AssertionError(f"{answer} has answered; {self.told(port)}")

    def _look_afresh(self) -> None:
        self.walked += 1
        for trail in (*self.trails.values(), self.vpc):
            trail.forget()

    def _hold(
        self,
        port: int,
        legs: tuple[tuple[int, Leg], ...],
        protocol: str,
        *,
        answered: bool = True,
    ) -> None:
        spoken: set[frozenset[tuple[str, int]]] = set()
        for number, node in enumerate(self.lab.nodes):
            wanted = [each for where, each in legs if where == number]
            hops = [
                hop
                for hop in self.trails[node.name].hops(
                    protocol="udp" if protocol == "udp" else "tcp"
                )
                if {port, PORT} & {hop.sport, hop.dport} and ends(hop) not in self._before
            ]
            held(node.name, wanted, hops, answered=answered)
            spoken |= set(map(ends, hops))
        self._before = spoken

    @contextlib.contextmanager
    def unobserved(self) -> Iterator[None]:
        """Without the trails, for as long as streams flow."""
        trails = (*self.trails.values(), self.vpc)
        for trail in trails:
            trail.pause()
        try:
            yield
        finally:
            for trail in trails:
                trail.resume()

    def nothing_lost(self) -> None:
        """No source check of either VPC, and no internet gateway has dropped anything since `forget`."""
        drops = self.lab.fabric.drops() | self.beyond.peered.fabric.drops()
        refused = self.beyond.refused()
        assert not drops, f"dropped by the source check: {drops}"
        assert not refused, f"refused by the internet gateway: {refused}"

    def told(self, port: int) -> str:
        """What everybody saw, for who reads a failed assertion."""
        lines = [f"drops {self.lab.fabric.drops()}, internet gateway {self.beyond.refused()}"]
        for name, trail in (*self.trails.items(), ("vpc", self.vpc)):
            hops = [hop for hop in trail.hops() if {port, PORT} & {hop.sport, hop.dport}]
            lines += [f"{name} saw:", *map(str, hops)]
        return "\n".join(lines)

    def ports_used(self, port: int) -> set[tuple[str, str]]:
        """(interface or device in, out) by which the VPC has passed on packets of a conversation."""
        return {
            (self.lab.fabric.eni_at(hop.into), self.lab.fabric.eni_at(hop.out))
            for hop in self.vpc.hops(hook="routed")
            if {port, PORT} & {hop.sport, hop.dport}
        }

    # ── building ──────────────────────────────────────────────────────────────────────────────

    def _open_groups(self) -> None:
        """NodePorts for the internet, everything for the private neighbours."""
        ranges = [{"CidrIp": cidr} for cidr in ("10.1.0.0/16", "172.16.0.0/16")]
        self.lab.ec2.authorize_security_group_ingress(
            GroupId=self.lab.world.security_groups[0],
            IpPermissions=[
                {"IpProtocol": "-1", "IpRanges": ranges},
                *(
                    {
                        "IpProtocol": protocol,
                        "FromPort": 30000,
                        "ToPort": 32767,
                        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
                    }
                    for protocol in ("tcp", "udp")
                ),
            ],
        )

    def _publish(self, node: Node) -> str:
        """An Elastic IP for a node's primary address."""
        made = self.lab.ec2.allocate_address(Domain="vpc")
        self.lab.ec2.associate_address(
            AllocationId=made["AllocationId"],
            NetworkInterfaceId=self.lab.fabric.primary(node.instance)["NetworkInterfaceId"],
        )
        return str(made["PublicIp"])

    def _fill(self, number: int) -> dict[int, list[Sandbox]]:
        """Start pods until each interface carries two."""
        full: dict[int, list[Sandbox]] = {interface: [] for interface in INTERFACES}
        for n in range(9):
            pod = self.lab.kubelets[number].start(f"pod-{number}-{n}")
            full[self._interface_of(number, pod)].append(pod)
            if all(len(pods) >= 2 for pods in full.values()):
                return full
        raise AssertionError(f"nine pods did not fill three interfaces: {full}")

    def _interface_of(self, number: int, pod: Sandbox) -> int:
        with self.lab.cloud.lock:
            enis = self.lab.cloud.interfaces_of(self.lab.nodes[number].instance)
        for eni in enis:
            if pod.address in {each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]}:
                return int(eni["Attachment"]["DeviceIndex"])
        raise AssertionError(f"EC2 has not assigned {pod.address}")

    def _hosts(self) -> Iterator[tuple[str, Netns]]:
        for node in self.lab.nodes:
            yield node.name, node.netns
        for place in self.beyond.places():
            yield place.name, place.netns
        for node_pods in self.pods:
            for pods in node_pods.values():
                yield from ((pod.pod, pod.netns) for pod in pods)


def settings_of(node: Node) -> str:
    """What tells which settings are in force: the daemon's table, and the rules for no pod in particular."""
    rules = node.netns.command("ip", "-4", "rule").splitlines()
    for_all = [rule for rule in rules if rule.startswith(("1024:", "1535:"))]
    return "\n".join((table_of(node), *for_all))


def table_of(node: Node) -> str:
    """A listing of the daemon's table, without counters."""
    return node.netns.command("nft", "-s", "list", "table", "ip", "vpcledger")
