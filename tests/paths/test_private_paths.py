"""Inside the VPC nothing is ever translated or marked, whatever the mode: pods see pods, nodes see pods."""

from __future__ import annotations

import itertools

import pytest

from tests.lab.beyond import Place
from tests.paths.leg import Leg
from tests.paths.town import INTERFACES, PORT, SETTINGS, Town

PAIRS = list(itertools.product(INTERFACES, INTERFACES))

pytestmark = pytest.mark.parametrize("mode", SETTINGS, indirect=True)


@pytest.mark.path("pod to pod on one node")
def test_pods_of_one_node_meet_without_leaving_it(town: Town) -> None:
    """From each interface's pod to each interface's: veth to veth, nothing on any ethX."""
    for one, other in PAIRS:
        a, b = town.pod(0, one, 0), town.pod(0, other, 1)
        leg = Leg(town.link(a), town.link(b), a.address, b.address)
        assert town.walk(a.netns, b.address, PORT, (0, leg)) == (b.pod, a.address)
        assert town.ports_used(PORT) == set()


@pytest.mark.path("pod to pod on another node")
def test_pods_of_two_nodes_meet_by_the_interfaces_that_own_their_addresses(town: Town) -> None:
    """Out and back by the same interface on either side, as the VPC's ports show."""
    for one, other in PAIRS:
        a, b = town.pod(0, one), town.pod(1, other)
        near = Leg(town.link(a), f"eth{one}", a.address, b.address)
        far = Leg(f"eth{other}", town.link(b), a.address, b.address)
        assert town.walk(a.netns, b.address, PORT, (0, near), (1, far)) == (b.pod, a.address)
        ours, theirs = town.eni(0, one), town.eni(1, other)
        assert town.ports_used(PORT) == {(ours, theirs), (theirs, ours)}


@pytest.mark.path("node to pod and pod to node")
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_node_and_pods_meet_as_they_are(town: Town, interface: int) -> None:
    """A node to its own pod and to the other node's, a pod to its own node and to the other."""
    one, two = town.node(0), town.node(1)
    mine, others = town.pod(0, interface), town.pod(1, interface)
    link = town.link(mine)
    to_mine = Leg("", link, one.address, mine.address, kept=None)
    assert town.walk(one.netns, mine.address, PORT, (0, to_mine)) == (mine.pod, one.address)
    to_me = Leg(link, "", mine.address, one.address, kept=None)
    assert town.walk(mine.netns, one.address, PORT, (0, to_me)) == (one.name, mine.address)

    out = Leg("", "eth0", one.address, others.address, kept=None)
    through = Leg(f"eth{interface}", town.link(others), one.address, others.address)
    seen = town.walk(one.netns, others.address, PORT, (0, out), (1, through))
    assert seen == (others.pod, one.address)

    out = Leg(link, f"eth{interface}", mine.address, two.address)
    arrives = Leg("eth0", "", mine.address, two.address, kept=None)
    seen = town.walk(mine.netns, two.address, PORT, (0, out), (1, arrives))
    assert seen == (two.name, mine.address)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    "who",
    [
        pytest.param("peer", marks=pytest.mark.path("peered VPC to pod")),
        pytest.param("premises", marks=pytest.mark.path("premises to pod")),
    ],
)
def test_private_neighbours_reach_pods_by_their_own_addresses(
    town: Town, who: str, interface: int
) -> None:
    """What began outside is answered by the interface it came in by, untranslated and unmarked."""
    place: Place = getattr(town.beyond, who)
    pod = town.pod(0, interface)
    leg = Leg(f"eth{interface}", town.link(pod), place.address, pod.address)
    assert town.walk(place.netns, pod.address, PORT, (0, leg)) == (pod.pod, place.address)
    eni = town.eni(0, interface)
    assert town.ports_used(PORT) == {(place.device, eni), (eni, place.device)}
