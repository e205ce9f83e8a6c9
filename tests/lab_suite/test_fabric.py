"""The fabric delivers what EC2 says is assigned, and drops and counts what EC2 forbids."""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import fabric, spaces
from tests.lab.node import Node
from tests.lab_suite.small_vpc import SmallVpc, opened

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
_names = (f"fabric-{n}" for n in itertools.count())


@pytest.fixture
def vpc() -> Iterator[SmallVpc]:
    with opened(next(_names)) as small:
        yield small


def ping(frm: Node, to: str, source: str | None = None) -> bool:
    """One ping from a node, from `source` if given. All answers here come within milliseconds."""
    line = ["ping", "-c1", "-W0.5", *(("-I", source) if source else ()), to]
    try:
        return "1 received" in frm.netns.command(*line)
    except RuntimeError:
        return False


def up(node: Node, eni: dict[str, Any], *lines: str, table: int = 2) -> None:
    """Raise an interface found by its MAC and give it a table of its own, as the node agent does."""
    device = device_of(node, eni["MacAddress"])
    gateway = node.vpc.gateway(eni["SubnetId"]).ip
    batch = [
        f"link set {device} up",
        f"route add {gateway} dev {device} scope link table {table}",
        f"route add default via {gateway} dev {device} table {table}",
        *lines,
    ]
    node.netns.command("ip", "-batch", "-", stdin="\n".join(batch))
    node.vpc.await_link(eni["NetworkInterfaceId"])


def device_of(node: Node, mac: str) -> str:
    for line in node.netns.command("ip", "-br", "link").splitlines():
        name, _, address, *_ = line.split()
        if address == mac:
            return name.partition("@")[0]
    raise LookupError(mac)


def own(node: Node, *addresses: str) -> None:
    """Let the node answer for addresses, as it does for those of its pods."""
    for address in addresses:
        node.netns.command("ip", "address", "add", address, "dev", "lo")


def settle(node: Node) -> None:
    """Wait until duplicate address detection is over (RFC 4862, about a second).

    The kernel would announce it by netlink; the probe is `ip`, so it is asked until a deadline.
    """
    deadline = time.monotonic() + 10
    while node.netns.command("ip", "-6", "address", "show", "tentative"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def new_addresses(answer: dict[str, Any]) -> list[str]:
    return [item["PrivateIpAddress"] for item in answer["AssignedPrivateIpAddresses"]]


def test_nodes_reach_each_other_and_their_router(vpc: SmallVpc) -> None:
    """Primary to primary across subnets, and the implicit router at .1."""
    assert ping(vpc.one, vpc.two.address)
    assert ping(vpc.one, "10.0.0.1")
    assert ping(vpc.two, "10.0.16.1")
    assert vpc.fabric.drops() == {}


@pytest.mark.parametrize("nobody", ["10.0.15.250", "10.0.99.99", "203.0.113.9"])
def test_what_nobody_owns_vanishes_in_silence(vpc: SmallVpc, nobody: str) -> None:
    """In the own subnet, in the VPC, outside: no answer and no ICMP error either, as in AWS."""
    line = ["ping", "-c1", "-W0.5", nobody]
    done = vpc.one.netns.run(subprocess.run, line, capture_output=True, text=True, check=False)
    assert (
        "0 received, 100% packet loss" in done.stdout
    )  # with ICMP errors it would count those too
    assert done.stderr == ""
    told = vpc.one.netns.command("ip", "neighbour")
    assert "FAILED" not in told
    assert "INCOMPLETE" not in told


def test_a_guest_interface_comes_with_ec2s_mac_and_down(vpc: SmallVpc) -> None:
    """The node must find a hot-plugged interface by its MAC, and raise it itself."""
    eni = vpc.attach(vpc.one)
    shown = vpc.one.netns.command("ip", "link", "show", device_of(vpc.one, eni["MacAddress"]))
    assert shown.split()[1].startswith("eth1")
    assert "state DOWN" in shown
    assert "mtu 9001" in shown


def test_a_secondary_address_works_from_its_own_interface(vpc: SmallVpc) -> None:
    """A second address of eth0 is delivered there and may be a source there."""
    [extra] = new_addresses(vpc.assign(vpc.held(vpc.one)[0], SecondaryPrivateIpAddressCount=1))
    own(vpc.one, extra)
    assert ping(vpc.one, vpc.two.address, extra)
    assert ping(vpc.two, extra)
    assert vpc.fabric.drops() == {}


def test_a_source_of_another_interface_is_dropped_and_counted_until_routed_right(
    vpc: SmallVpc,
) -> None:
    """Without a policy rule an address of eth1 leaves by eth0: the classic fault of a CNI."""
    eni = vpc.attach(vpc.one, SecondaryPrivateIpAddressCount=1)
    primary, extra = (item["PrivateIpAddress"] for item in eni["PrivateIpAddresses"])
    up(vpc.one, eni)
    own(vpc.one, primary, extra)
    wrong = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    for source in (primary, extra):
        assert not ping(vpc.one, vpc.two.address, source)
    assert vpc.fabric.drops() == {(wrong, primary): 1, (wrong, extra): 1}
    vpc.fabric.forget_drops()
    for source in (primary, extra):
        vpc.one.netns.command("ip", "rule", "add", "from", source, "lookup", "2")
        assert ping(vpc.one, vpc.two.address, source)
    assert vpc.fabric.drops() == {}


def test_an_address_of_eth0_sent_by_eth1_is_dropped(vpc: SmallVpc) -> None:
    """The check is per interface, not per instance."""
    eni = vpc.attach(vpc.one)
    up(vpc.one, eni, f"rule add from {vpc.one.address} lookup 2")
    assert not ping(vpc.one, vpc.two.address, vpc.one.address)
    assert vpc.fabric.drops() == {(eni["NetworkInterfaceId"], vpc.one.address): 1}


def test_an_address_never_assigned_is_dropped(vpc: SmallVpc) -> None:
    """A spoofed source of the right subnet does not pass."""
    own(vpc.one, "10.0.7.7")
    assert not ping(vpc.one, vpc.two.address, "10.0.7.7")
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    assert vpc.fabric.drops() == {(eni, "10.0.7.7"): 1}


def test_every_address_of_a_prefix_is_delivered_to_its_interface(vpc: SmallVpc) -> None:
    """First and last address of a /28 work as soon as it is assigned."""
    eni = vpc.attach(vpc.one)
    answer = vpc.assign(eni, Ipv4PrefixCount=1)
    prefix = answer["AssignedIpv4Prefixes"][0]["Ipv4Prefix"]
    up(vpc.one, eni, f"rule add from {prefix} lookup 2")
    base, _, last = prefix.removesuffix("/28").rpartition(".")
    for host in (int(last), int(last) + 15):
        own(vpc.one, f"{base}.{host}")
        assert ping(vpc.one, vpc.two.address, f"{base}.{host}")
        assert ping(vpc.two, f"{base}.{host}")
    assert vpc.fabric.drops() == {}


def test_ipv6_obeys_the_same_rules(vpc: SmallVpc) -> None:
    """An address and a /80 of eth0 pass, an address of nobody is counted."""
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    peer = vpc.held(vpc.two)[0]["NetworkInterfaceId"]
    [good] = vpc.call("AssignIpv6Addresses", NetworkInterfaceId=eni, Ipv6AddressCount=1)[
        "AssignedIpv6Addresses"
    ]
    [prefix] = vpc.call("AssignIpv6Addresses", NetworkInterfaceId=peer, Ipv6PrefixCount=1)[
        "AssignedIpv6Prefixes"
    ]
    other = prefix.removesuffix("/80") + "9"
    spoofed = prefix.removesuffix("/80") + "a"
    own(vpc.one, good, spoofed)
    own(vpc.two, other)
    settle(vpc.one)
    settle(vpc.two)
    assert ping(vpc.one, other, good)
    assert vpc.fabric.drops() == {}
    assert not ping(vpc.one, other, spoofed)
    assert vpc.fabric.drops() == {(eni, spoofed): 1}


def test_an_unassigned_address_is_dead_at_once(vpc: SmallVpc) -> None:
    """After UnassignPrivateIpAddresses neither direction works."""
    eni = vpc.held(vpc.one)[0]
    [extra] = new_addresses(vpc.assign(eni, SecondaryPrivateIpAddressCount=1))
    own(vpc.one, extra)
    assert ping(vpc.two, extra)
    vpc.call(
        "UnassignPrivateIpAddresses",
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        PrivateIpAddresses=[extra],
    )
    assert not ping(vpc.two, extra)
    assert not ping(vpc.one, vpc.two.address, extra)
    assert vpc.fabric.drops() == {(eni["NetworkInterfaceId"], extra): 1}


def test_an_address_moved_to_another_interface_answers_from_there(vpc: SmallVpc) -> None:
    """AllowReassignment moves the route; the old owner's use of it is dropped."""
    first = vpc.held(vpc.one)[0]
    second = vpc.attach(vpc.one)
    [extra] = new_addresses(vpc.assign(first, SecondaryPrivateIpAddressCount=1))
    own(vpc.one, extra)
    vpc.assign(second, PrivateIpAddresses=[extra], AllowReassignment=True)
    assert not ping(vpc.one, vpc.two.address, extra)
    assert vpc.fabric.drops() == {(first["NetworkInterfaceId"], extra): 1}
    up(vpc.one, second, f"rule add from {extra} lookup 2")
    assert ping(vpc.one, vpc.two.address, extra)


def test_a_detached_interface_disappears_from_the_node(vpc: SmallVpc) -> None:
    """And comes back, under the same MAC, when it is attached again."""
    eni = vpc.attach(vpc.one)
    device_of(vpc.one, eni["MacAddress"])
    attachment = eni["Attachment"]["AttachmentId"]
    vpc.call("DetachNetworkInterface", AttachmentId=attachment)
    with pytest.raises(LookupError):
        device_of(vpc.one, eni["MacAddress"])
    vpc.call(
        "AttachNetworkInterface",
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        InstanceId=vpc.two.instance,
        DeviceIndex=1,
    )
    assert device_of(vpc.two, eni["MacAddress"]) == "eth1"


def test_without_the_source_check_an_interface_may_send_for_others(vpc: SmallVpc) -> None:
    """SourceDestCheck=false lets a foreign source pass; true again stops it."""
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    own(vpc.one, "10.0.7.7")
    vpc.call(
        "ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni, SourceDestCheck={"Value": False}
    )
    ping(vpc.one, vpc.two.address, "10.0.7.7")
    assert vpc.fabric.drops() == {}
    vpc.call(
        "ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni, SourceDestCheck={"Value": True}
    )
    ping(vpc.one, vpc.two.address, "10.0.7.7")
    assert vpc.fabric.drops() == {(eni, "10.0.7.7"): 1}


@pytest.mark.parametrize("address", [fabric.IMDS, fabric.API])
def test_services_of_the_vpc_know_the_instance_by_its_source(vpc: SmallVpc, address: str) -> None:
    """A listener in the VPC sees the node's own address: whose it is, EC2 knows."""
    peers: list[str] = []
    with vpc.fabric.listen(address) as listener:

        def serve() -> None:
            connection, (peer, _) = listener.accept()
            peers.append(peer)
            connection.close()

        server = threading.Thread(target=serve)
        server.start()
        vpc.two.netns.run(socket.create_connection, (address, 80)).close()
        server.join()
    assert [vpc.cloud.owner_of_source(peer) for peer in peers] == [vpc.two.instance]


def test_a_reboot_brings_the_same_interfaces_to_a_new_namespace(vpc: SmallVpc) -> None:
    """Links, rules and /run are gone, the boot id is new, eth0 has its address again."""
    eni = vpc.attach(vpc.one)
    up(vpc.one, eni, "rule add from 10.0.7.7 lookup 2")
    (vpc.one.run / "socket").touch()
    (vpc.one.state / "ledger.db").touch()
    before = vpc.one.boot_id.read_text()
    vpc.one.reboot()
    assert vpc.one.boot_id.read_text() != before
    assert [path.name for path in (*vpc.one.run.iterdir(), *vpc.one.state.iterdir())] == [
        "ledger.db"
    ]
    assert "10.0.7.7" not in vpc.one.netns.command("ip", "rule")
    assert device_of(vpc.one, eni["MacAddress"]) == "eth1"
    assert ping(vpc.one, vpc.two.address)


def test_termination_takes_the_interfaces_away(vpc: SmallVpc) -> None:
    """TerminateInstances leaves the node without a link, and its address is nobody's."""
    vpc.call("TerminateInstances", InstanceIds=[vpc.two.instance])
    assert {name for _, name in vpc.two.netns.run(socket.if_nameindex)} == {"lo"}
    assert not ping(vpc.one, vpc.two.address)
