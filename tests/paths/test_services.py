"""Services by a kube-proxy in each of its modes, beside us: endpoints anywhere, NodePorts, both policies.

Translation of destinations comes first (-100), so what is decided by destination must be decided by the
endpoint: off the VPC it is reached as the node, in the VPC as the pod. A NodePort is answered by the
interface it came in by, also by a pod of another one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import talk
from tests.lab.kubeproxy import MODES, KubeProxy, Mode, Policy, Service
from tests.paths.leg import Leg
from tests.paths.test_paths_beyond import NODE, POD, leg, seen_as
from tests.paths.town import INTERFACES, MARK, PORT, SETTINGS, Town

CLUSTER_IP, SERVICE_PORT, NODE_PORT = "172.20.0.10", 8000, 30080


@pytest.fixture(params=MODES)
def proxies(town: Town, request: pytest.FixtureRequest) -> Iterator[list[KubeProxy]]:
    kube: Mode = request.param
    made = [KubeProxy(node.netns, kube) for node in town.lab.nodes]
    yield made
    for proxy in made:
        proxy.close()


def serve(
    proxies: list[KubeProxy], endpoint: str, *, here: bool = False, policy: Policy = "Cluster"
) -> None:
    """One service of TCP and UDP on every node; is its endpoint on the first?"""
    where = [(endpoint, PORT)]
    local = where if here else []
    for number, proxy in enumerate(proxies):
        proxy.load(
            Service(
                f"web-{protocol}",
                CLUSTER_IP,
                SERVICE_PORT,
                where,
                local if number == 0 else [],
                NODE_PORT,
                policy,
                protocol,
            )
            for protocol in ("tcp", "udp")
        )


@pytest.mark.path("pod to ClusterIP, endpoint in the VPC")
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_an_endpoint_in_the_vpc_sees_the_pod_itself(
    town: Town, proxies: list[KubeProxy], interface: int
) -> None:
    """On the other node and on this one, of any interface."""
    pod, far, near = town.pod(0, interface), town.pod(1, 1), town.pod(0, 2, 1)
    serve(proxies, far.address)
    out = Leg(
        town.link(pod),
        f"eth{interface}",
        pod.address,
        CLUSTER_IP,
        seen_destination=far.address,
    )
    there = Leg("eth1", town.link(far), pod.address, far.address)
    for protocol in ("tcp", "udp"):
        seen = town.walk(
            pod.netns, CLUSTER_IP, SERVICE_PORT, (0, out), (1, there), protocol=protocol
        )
        assert seen == (far.pod, pod.address)
    serve(proxies, near.address)
    within = Leg(
        town.link(pod), town.link(near), pod.address, CLUSTER_IP, seen_destination=near.address
    )
    assert town.walk(pod.netns, CLUSTER_IP, SERVICE_PORT, (0, within)) == (near.pod, pod.address)


@pytest.mark.path("pod to ClusterIP, endpoint off the VPC")
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_an_endpoint_off_the_vpc_is_reached_as_if_it_were_called_directly(
    town: Town, proxies: list[KubeProxy], mode: str, interface: int
) -> None:
    """From the first packet on by the right interface: the destination counts, not the service."""
    pod, place = town.pod(0, interface), town.beyond.peer
    seen = seen_as("peer", mode)
    serve(proxies, place.address)
    direct = leg(town, interface, place.address, seen)
    way = Leg(
        direct.into,
        direct.out,
        pod.address,
        CLUSTER_IP,
        direct.seen_source,
        place.address,
        mark=direct.mark,
        kept=direct.kept,
    )
    shown = {NODE: town.node(0).address, POD: pod.address}[seen]
    for protocol in ("tcp", "udp"):
        told = town.walk(pod.netns, CLUSTER_IP, SERVICE_PORT, (0, way), protocol=protocol)
        assert told == (place.name, shown)


@pytest.mark.path("pod to ClusterIP, endpoint itself")
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_pod_reaches_itself_through_its_service(
    town: Town, proxies: list[KubeProxy], interface: int
) -> None:
    """kube-proxy masquerades it, or the pod would get a packet from itself."""
    pod, one = town.pod(0, interface), town.node(0).address
    serve(proxies, pod.address)
    link = town.link(pod)
    way = Leg(link, link, pod.address, CLUSTER_IP, one, pod.address, masqueraded=True)
    for protocol in ("tcp", "udp"):
        seen = town.walk(pod.netns, CLUSTER_IP, SERVICE_PORT, (0, way), protocol=protocol)
        assert seen == (pod.pod, one)
        assert town.ports_used(SERVICE_PORT) == set()


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(each, marks=pytest.mark.path(f"internet to NodePort {each}"))
        for each in ("Cluster", "Local")
    ],
)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_node_port_is_answered_by_the_interface_it_came_in_by(
    town: Town, proxies: list[KubeProxy], policy: Policy, interface: int
) -> None:
    """A caller on the internet sees the node's public address answer, whichever interface has the pod."""
    pod, one, caller = town.pod(0, interface), town.node(0), town.beyond.internet
    serve(proxies, pod.address, policy=policy, here=True)
    hidden = policy == "Cluster"
    way = Leg(
        "eth0",
        town.link(pod),
        caller.address,
        one.address,
        one.address if hidden else caller.address,
        pod.address,
        masqueraded=hidden,
        answer_mark=MARK,
        kept=True,
    )
    for protocol in ("tcp", "udp"):
        seen = town.walk(caller.netns, town.public[0], NODE_PORT, (0, way), protocol=protocol)
        assert seen == (pod.pod, one.address if hidden else caller.address)
        eni = town.eni(0, 0)
        assert town.ports_used(NODE_PORT) == {("igw", eni), (eni, "igw")}


@pytest.mark.path("internet to NodePort Cluster, pod on another node")
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_node_port_of_policy_cluster_leads_to_another_nodes_pod(
    town: Town, proxies: list[KubeProxy]
) -> None:
    """As the first node, by its primary interface, and back through it."""
    pod, one, caller = town.pod(1, 1), town.node(0), town.beyond.internet
    serve(proxies, pod.address)
    through = Leg(
        "eth0",
        "eth0",
        caller.address,
        one.address,
        one.address,
        pod.address,
        masqueraded=True,
        kept=True,
    )
    there = Leg("eth1", town.link(pod), one.address, pod.address)
    seen = town.walk(caller.netns, town.public[0], NODE_PORT, (0, through), (1, there))
    assert seen == (pod.pod, one.address)


@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_node_port_of_policy_local_without_a_pod_here_is_silent(
    town: Town, proxies: list[KubeProxy]
) -> None:
    """And the other node, which has one, answers under its own public address."""
    pod, caller = town.pod(0, 1), town.beyond.internet
    serve(proxies, pod.address, policy="Local", here=True)
    with pytest.raises(TimeoutError):
        talk.ask(caller.netns, town.public[1], NODE_PORT, wait=0.3)
    assert talk.ask(caller.netns, town.public[0], NODE_PORT) == (pod.pod, caller.address)


@pytest.mark.path("pod to NodePort Local of another node")
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_pod_calls_a_node_port_of_the_other_node(
    town: Town, proxies: list[KubeProxy], interface: int
) -> None:
    """Inside the VPC as itself; policy Local shows it to the pod there."""
    pod, far, two = town.pod(0, interface), town.pod(1, 2), town.node(1)
    for number, proxy in enumerate(proxies):
        where = [(far.address, PORT)]
        local = where if number == 1 else []
        proxy.load([Service("web", CLUSTER_IP, SERVICE_PORT, where, local, NODE_PORT, "Local")])
    out = Leg(town.link(pod), f"eth{interface}", pod.address, two.address)
    there = Leg(
        "eth0",
        town.link(far),
        pod.address,
        two.address,
        pod.address,
        far.address,
        answer_mark=MARK,
        kept=True,
    )
    seen = town.walk(pod.netns, two.address, NODE_PORT, (0, out), (1, there))
    assert seen == (far.pod, pod.address)
