"""The internet, a peered VPC and a network on premises: who gets out, and as whom."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from tests.lab import spaces
from tests.lab.beyond import Beyond, Place
from tests.lab.hops import Trail
from tests.lab.node import Node
from tests.lab_suite.small_vpc import SmallVpc, opened

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
_names = (f"beyond-{n}" for n in itertools.count())


@pytest.fixture
def vpc() -> Iterator[SmallVpc]:
    with opened(next(_names)) as small:
        yield small


@pytest.fixture
def beyond(vpc: SmallVpc) -> Iterator[Beyond]:
    with Beyond(vpc.fabric) as places:
        yield places


def publish(vpc: SmallVpc, node: Node) -> tuple[str, str]:
    """Give a node's primary address a public one: the public address, the association's id."""
    made = vpc.call("AllocateAddress", Domain="vpc")
    eni = vpc.held(node)[0]["NetworkInterfaceId"]
    association = vpc.call(
        "AssociateAddress", AllocationId=made["AllocationId"], NetworkInterfaceId=eni
    )
    return made["PublicIp"], association["AssociationId"]


def ping(frm: Node | Place, to: str, *options: str) -> bool:
    try:
        return "1 received" in frm.netns.command("ping", "-c1", "-W0.4", *options, to)
    except RuntimeError:
        return False


def seen_by(place: Place, frm: Node) -> str:
    """The source under which a place's host sees a TCP connection of the node's."""
    with place.netns.run(socket.create_server, (place.address, 80)) as server:
        client = frm.netns.run(socket.create_connection, (place.address, 80), 1)
        served, peer = server.accept()
        served.close()
        client.close()
        return str(peer[0])


def test_only_a_source_with_a_public_address_reaches_the_internet(
    vpc: SmallVpc, beyond: Beyond
) -> None:
    """Without one it is counted and dropped; with one it goes out as that, and is answered."""
    assert not ping(vpc.one, beyond.internet.address)
    assert beyond.refused() == {(vpc.one.address, beyond.internet.address): 1}
    beyond.forget_refused()
    public, association = publish(vpc, vpc.one)
    assert ping(vpc.one, beyond.internet.address)
    assert seen_by(beyond.internet, vpc.one) == public
    answer = vpc.assign(vpc.held(vpc.one)[0], SecondaryPrivateIpAddressCount=1)
    extra = answer["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    vpc.one.netns.command("ip", "address", "add", f"{extra}/32", "dev", "eth0")
    assert not ping(vpc.one, beyond.internet.address, "-I", extra)
    assert beyond.refused() == {(extra, beyond.internet.address): 1}
    assert vpc.fabric.drops() == {}
    vpc.call("DisassociateAddress", AssociationId=association)
    assert not ping(vpc.one, beyond.internet.address)


def test_a_public_address_leads_in_to_whom_it_belongs(vpc: SmallVpc, beyond: Beyond) -> None:
    """Translated on the way in and back; an address of the pool that nobody has is a void."""
    public, _ = publish(vpc, vpc.one)
    vpc.call(
        "AuthorizeSecurityGroupIngress",
        GroupId=vpc.held(vpc.one)[0]["Groups"][0]["GroupId"],
        IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
    )
    with vpc.one.netns.run(socket.create_server, (vpc.one.address, 80)) as server:
        client = beyond.internet.netns.run(socket.create_connection, (public, 80), 1)
        served, peer = server.accept()
        assert peer[0] == beyond.internet.address
        assert client.getpeername()[0] == public
        client.close()
        served.close()
    assert not ping(beyond.internet, "203.0.113.200")


@pytest.mark.parametrize("name", ["peer", "premises"])
def test_private_neighbours_see_private_addresses(vpc: SmallVpc, beyond: Beyond, name: str) -> None:
    """In both directions, and the source check holds on the way to them as well."""
    place: Place = getattr(beyond, name)
    assert seen_by(place, vpc.one) == vpc.one.address
    assert not ping(place, vpc.one.address)  # nobody has opened the security group
    vpc.call(
        "AuthorizeSecurityGroupIngress",
        GroupId=vpc.held(vpc.one)[0]["Groups"][0]["GroupId"],
        IpPermissions=[{"IpProtocol": "icmp", "IpRanges": [{"CidrIp": f"{place.address}/32"}]}],
    )
    assert ping(place, vpc.one.address)
    vpc.one.netns.command("ip", "address", "add", "10.0.7.7/32", "dev", "lo")
    assert not ping(vpc.one, place.address, "-I", "10.0.7.7")
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    assert vpc.fabric.drops() == {(eni, "10.0.7.7"): 1}


def test_the_peered_vpc_has_a_fabric_of_its_own(vpc: SmallVpc, beyond: Beyond) -> None:
    """It checks sources at its own ports, delivers to owners alone, and is no way through for a third."""
    peer, second = beyond.peer, beyond.peered.fabric
    assert ping(vpc.one, peer.address)
    assert not ping(vpc.one, "10.1.0.77")  # nobody's there
    assert second.drops() == {}

    peer.netns.command("ip", "address", "add", "10.1.0.99/32", "dev", "lo")
    assert not ping(peer, vpc.one.address, "-I", "10.1.0.99")
    assert second.drops() == {(beyond.peered.eni, "10.1.0.99"): 1}
    assert vpc.fabric.drops() == {}
    second.forget_drops()

    assert not ping(beyond.premises, peer.address)
    assert second.drops() == {("pcx", beyond.premises.address): 1}


def test_what_nobody_owns_in_the_vpc_does_not_go_to_the_internet(
    vpc: SmallVpc, beyond: Beyond
) -> None:
    publish(vpc, vpc.one)
    with Trail(beyond.internet.netns) as trail:
        assert not ping(vpc.one, "10.0.15.250")
        assert ping(vpc.one, beyond.internet.address)
        assert {hop.destination for hop in trail.hops(hook="arrived")} == {beyond.internet.address}


def test_a_trail_tells_each_hook_with_its_interfaces_addresses_and_marks(
    vpc: SmallVpc, beyond: Beyond
) -> None:
    """The VPC forwards from port to port; on the node a mark is seen where it has been set."""
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    marking = (
        "table ip t { chain c { type filter hook output priority 0; meta mark set 0x40\n }\n }"
    )
    vpc.one.netns.command("nft", "-f", "-", stdin=marking)
    with Trail(vpc.one.netns) as trail, Trail(vpc.fabric.netns) as inside:
        assert ping(vpc.one, beyond.peer.address)
        sent, left, arrived, delivered = trail.hops()
        assert [hop.hook for hop in (sent, left, arrived, delivered)] == [
            "sent",
            "left",
            "arrived",
            "delivered",
        ]
        assert (sent.mark, left.mark, left.out) == (0, 0x40, "eth0")
        assert (delivered.into, delivered.source) == ("eth0", beyond.peer.address)
        way, back = inside.hops(hook="routed")
        assert way.source == back.destination == vpc.one.address
        assert (vpc.fabric.eni_at(way.into), way.out) == (eni, beyond.peer.device)
        assert (back.into, vpc.fabric.eni_at(back.out)) == (beyond.peer.device, eni)
        trail.forget()
        assert trail.hops() == []


def test_a_trail_sees_the_mark_of_a_connection(vpc: SmallVpc) -> None:
    """From the moment it has the bit, in both directions."""
    marking = "table ip t { chain c { type filter hook output priority 0; ct mark set 0x81\n }\n }"
    vpc.one.netns.command("nft", "-f", "-", stdin=marking)
    with Trail(vpc.one.netns, bit=0x80) as trail:
        assert ping(vpc.one, vpc.two.address)
        assert [(hop.hook, hop.kept) for hop in trail.hops()] == [
            ("sent", False),
            ("left", True),
            ("arrived", False),  # before the connection is looked up
            ("delivered", True),
        ]
