"""Off the VPC: who is translated, by which interface it leaves, whom the far end sees, in every mode.

The tables say it: a row is who is asked, a column the mode of source translation. `NODE` is seen as the
node and leaves by its primary interface, marked; `POD` is seen as itself and leaves by the interface that
owns its address; `LOST` the same, and the internet gateway has no public address for it.
"""

from __future__ import annotations

import pytest

from tests.lab.beyond import Place
from tests.lab.fabric import IMDS
from tests.paths.leg import Leg
from tests.paths.town import INTERFACES, MARK, PORT, SETTINGS, Town

NODE, POD, LOST = "NODE", "POD", "LOST"

SEEN_AS = {
    #           prng, hashrandom, none, excluded, external
    "internet": (NODE, NODE, NODE, NODE, LOST),
    "peer":     (NODE, NODE, NODE, POD, POD),
    "premises": (NODE, NODE, NODE, POD, POD),
    "imds":     (NODE, NODE, NODE, NODE, POD),
}  # fmt: skip

WHO = {
    "internet": "internet",
    "peer": "peered VPC",
    "premises": "premises",
    "imds": "instance metadata",
}


def leg(town: Town, interface: int, to: str, seen: str) -> Leg:
    """How a pod of the first node gets out, seen as the node or as itself."""
    pod = town.pod(0, interface)
    if seen == NODE:
        primary = town.node(0).address
        return Leg(
            town.link(pod), "eth0", pod.address, to, seen_source=primary, mark=MARK, kept=True
        )
    return Leg(town.link(pod), f"eth{interface}", pod.address, to)


def seen_as(who: str, mode: str) -> str:
    """What the table says."""
    return SEEN_AS[who][list(SETTINGS).index(mode)]


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    "who", [pytest.param(who, marks=pytest.mark.path(f"pod to {WHO[who]}")) for who in SEEN_AS]
)
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_a_pod_reaches_what_lies_beyond(town: Town, mode: str, who: str, interface: int) -> None:
    pod, seen = town.pod(0, interface), seen_as(who, mode)
    if who == "imds":
        _metadata(town, interface, seen)
        return
    place: Place = getattr(town.beyond, who)
    if seen == LOST:
        way = leg(town, interface, place.address, seen)
        town.lost(pod.netns, place.address, PORT, (0, way), wait=0.3)
        assert town.beyond.refused().keys() == {(pod.address, place.address)}
        assert town.lab.fabric.drops() == {}
        assert town.ports_used(PORT) == {(town.eni(0, interface), "igw")}
        town.forget()
        return
    shown = {NODE: town.node(0).address, POD: pod.address}[seen]
    if who == "internet":
        shown = town.public[0]
    for protocol in ("tcp", "udp"):
        way = leg(town, interface, place.address, seen)
        told = town.walk(pod.netns, place.address, PORT, (0, way), protocol=protocol)
        assert told == (who, shown)
        eni = town.eni(0, 0 if seen == NODE else interface)
        assert town.ports_used(PORT) == {(eni, place.device), (place.device, eni)}


def _metadata(town: Town, interface: int, seen: str) -> None:
    """A pod asks for a token and the instance's id, two hops away."""
    pod = town.pod(0, interface)
    way = leg(town, interface, IMDS, seen)
    told = town.walk(pod.netns, IMDS, 80, (0, way), protocol="imds")
    assert told == (town.node(0).instance, "")


@pytest.mark.path("node off the VPC")
@pytest.mark.parametrize("mode", SETTINGS, indirect=True)
def test_the_node_itself_is_not_touched(town: Town) -> None:
    """Its own connections leave by its primary interface under its own address, and are not marked."""
    one = town.node(0)
    for place, shown in (
        (town.beyond.internet, town.public[0]),
        (town.beyond.peer, one.address),
        (town.beyond.premises, one.address),
    ):
        way = Leg("", "eth0", one.address, place.address, kept=None)
        assert town.walk(one.netns, place.address, PORT, (0, way)) == (place.name, shown)
