"""A setting changes while connections are open: they go on as they began, new ones follow the new setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import fabric, talk, world
from tests.lab.beyond import Place
from tests.lab.kubeproxy import KubeProxy, Service
from tests.lab.netns import Netns
from tests.paths.leg import Leg
from tests.paths.town import INTERFACES, PORT, SETTINGS, TABLES, Town, table_of

CLUSTER_IP, SERVICE_PORT = "172.20.0.20", 8000
PORTS = {"Cluster": 30090, "Local": 30091}
NEW_NETWORK = "100.64.0.0/24"
"""A VPC of 10.0.0.0/8 may get one of 100.64.0.0/10 besides (VPC User Guide, "VPC CIDR blocks")."""

FLIPS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (TABLES[name], SETTINGS[name]) for name in ("hashrandom", "excluded", "external")},
    "without node ports": (
        r"snat to [0-9.]+ fully-random",
        {"AWS_VPC_CNI_NODE_PORT_SUPPORT": "false"},
    ),
    "service networks": (
        r"1535:\tfrom all to 192\.0\.2\.0/24 lookup main",
        {"AWS_EXTERNAL_SERVICE_CIDRS": "192.0.2.0/24", "DISABLE_TCP_EARLY_DEMUX": "true"},
    ),
    "another mark": (r"0x00000100", {"AWS_VPC_K8S_CNI_CONNMARK": "0x100"}),
    "another prefix": (r'iifname "pod\*"', {"AWS_VPC_K8S_CNI_VETHPREFIX": "pod"}),
    "none": (TABLES["none"] + r"(?!.*1535:)", SETTINGS["none"]),
    "prng": (TABLES["prng"] + r"(?!.*iifname .pod\*)", SETTINGS["prng"]),
}
"""One after the other, besides the defaults: by what the table tells it, and what is set."""


class Calls:
    """Connections of every kind, each with what its far end must go on seeing."""

    def __init__(self, town: Town, stack: ExitStack) -> None:
        self._town, self._stack = town, stack
        self.open: dict[str, tuple[talk.Call, tuple[str, str]]] = {}
        caller = town.beyond.internet
        for interface in INTERFACES:
            pod, other = town.pod(0, interface), town.pod(1, interface)
            for name, address, port in (
                ("internet", caller.address, PORT),
                ("peer", town.beyond.peer.address, PORT),
                ("pod", other.address, PORT),
                ("service", CLUSTER_IP, SERVICE_PORT),
            ):
                self.dial(f"pod on eth{interface} > {name}", pod.netns, address, port)
            self.dial(f"peer > pod on eth{interface}", town.beyond.peer.netns, pod.address, PORT)
        for policy, port in PORTS.items():
            self.dial(f"internet > NodePort {policy}", caller.netns, town.public[0], port)

    def dial(self, name: str, *to: object) -> None:
        """Open one more."""
        try:
            call = self._stack.enter_context(talk.Call(*to))  # type: ignore[arg-type]  # as given
            self.open[name] = call, call.ask()
        except OSError as error:
            raise AssertionError(f"{name}: {error}; {self._town.told(PORT)}") from error

    def changed(self) -> dict[str, object]:
        """Those that broke, or whose far end sees somebody else now."""
        found: dict[str, object] = {}
        for name, (call, before) in self.open.items():
            try:
                now = call.ask()
            except OSError as error:
                found[name] = repr(error)
            else:
                if now != before:
                    found[name] = (before, now)
        return found


@pytest.fixture
def calls(town: Town) -> Iterator[Calls]:
    pod, peer = town.pod(0, 1, 1), town.beyond.peer
    proxy = KubeProxy(
        town.node(0).netns,
        "nftables",
        [
            Service("far", CLUSTER_IP, SERVICE_PORT, [(peer.address, PORT)]),
            *(
                Service(
                    policy,
                    f"172.20.1.{number}",
                    SERVICE_PORT,
                    [(pod.address, PORT)],
                    [(pod.address, PORT)],
                    port,
                    "Local" if policy == "Local" else "Cluster",
                )
                for number, (policy, port) in enumerate(PORTS.items(), 1)
            ),
        ],
    )
    with ExitStack() as stack:
        yield Calls(town, stack)
    proxy.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["prng"], indirect=True)
def test_what_is_open_goes_on_whatever_setting_changes(town: Town, calls: Calls) -> None:
    """The daemon restarts with one setting after the other, and at last with the defaults again.

    At each stop a new connection shows that the setting is in force, and stays open with the others.
    """
    pod, peer, node = town.pod(0, 1), town.beyond.peer, town.node(0).address
    for name, (tells, settings) in FLIPS.items():
        town.restart(tells, settings, nodes=1)
        assert calls.changed() == {}, f"at {name}"
        source = pod.address if name in {"external", "excluded"} else node
        calls.dial(f"since {name}", pod.netns, peer.address, PORT)
        assert calls.open[f"since {name}"][1] == (peer.name, source)


@pytest.fixture
def newcomer(town: Town) -> Iterator[Place]:
    """A host in a network that the VPC gets now; its router knows the way at once, the daemons not yet.

    The host goes when the test is over, the network stays with the VPC.
    """
    ec2, lab = town.lab.ec2, town.lab
    vpc, group = lab.world.vpc, lab.world.security_groups[0]
    ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock=NEW_NETWORK)
    [zone] = {each["AvailabilityZone"] for each in ec2.describe_subnets()["Subnets"][:1]}
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=NEW_NETWORK, AvailabilityZone=zone)["Subnet"]
    [instance] = world.launch(ec2, subnet["SubnetId"], group, 1, "t3.small")
    with ExitStack() as stack:
        netns = stack.enter_context(Netns())
        lab.fabric.join(instance, netns)
        stack.callback(ec2.terminate_instances, InstanceIds=[instance])
        stack.callback(lab.fabric.leave, instance)
        eni = lab.fabric.primary(instance)
        address, router = eni["PrivateIpAddress"], lab.fabric.gateway(eni["SubnetId"])
        lines = fabric.boot_lines("eth0", address, router)
        netns.command("ip", "-batch", "-", stdin="\n".join(lines))
        lab.fabric.await_link(eni["NetworkInterfaceId"])
        stack.enter_context(talk.Listener(netns, PORT, "newcomer"))
        yield Place("newcomer", address, netns, "")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prng"], indirect=True)
def test_a_network_that_the_vpc_gets_is_reached_untranslated_and_nothing_open_breaks(
    town: Town, calls: Calls, newcomer: Place
) -> None:
    """The daemons run on. Until they have asked, the host there sees the node; what began so stays so."""
    node, pods = town.node(0), [town.pod(0, interface) for interface in INTERFACES]
    assert NEW_NETWORK not in table_of(node)
    for interface, pod in enumerate(pods):
        name = f"pod on eth{interface} > newcomer, before"
        calls.dial(name, pod.netns, newcomer.address, PORT)
        assert calls.open[name][1] == ("newcomer", node.address)
    before = node.daemon
    town.until(lambda: NEW_NETWORK in table_of(node), "the network is known", seconds=40)
    assert node.daemon is before
    assert calls.changed() == {}
    for interface, pod in enumerate(pods):
        out = Leg(town.link(pod), f"eth{interface}", pod.address, newcomer.address)
        seen = town.walk(pod.netns, newcomer.address, PORT, (0, out))
        assert seen == ("newcomer", pod.address)
        name = f"pod on eth{interface} > newcomer, since"
        calls.dial(name, pod.netns, newcomer.address, PORT)
    assert calls.changed() == {}


@pytest.mark.parametrize("mode", ["external"], indirect=True)
def test_what_began_untranslated_stays_so(town: Town) -> None:
    """From external to translated: the peer goes on seeing pods, by their own interfaces."""
    peer = town.beyond.peer.address
    with ExitStack() as stack:
        pods = [town.pod(0, interface) for interface in INTERFACES]
        open_calls = [stack.enter_context(talk.Call(pod.netns, peer, PORT)) for pod in pods]
        assert [call.ask()[1] for call in open_calls] == [pod.address for pod in pods]
        town.mode("prng")
        assert [call.ask()[1] for call in open_calls] == [pod.address for pod in pods]
        assert {talk.ask(pod.netns, peer, PORT)[1] for pod in pods} == {town.node(0).address}
