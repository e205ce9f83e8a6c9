"""Security groups: who may talk to whom, what a port remembers, what it refuses and counts."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import spaces
from tests.lab.cloud import ApiError
from tests.lab.node import Node
from tests.lab_suite.small_vpc import SmallVpc, opened

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
_names = (f"firewall-{n}" for n in itertools.count())


@pytest.fixture
def vpc() -> Iterator[SmallVpc]:
    with opened(next(_names)) as small:
        yield small


def group(vpc: SmallVpc, name: str) -> str:
    made = vpc.call("CreateSecurityGroup", GroupName=name, Description=name, VpcId=vpc.vpc)
    return str(made["GroupId"])


def wear(vpc: SmallVpc, node: Node, *groups: str) -> str:
    """Put a node's first interface into these groups; its id."""
    eni = str(vpc.held(node)[0]["NetworkInterfaceId"])
    vpc.call("ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni, Groups=list(groups))
    return eni


def tcp(port: int, **peer: Any) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **peer}


def cidr(block: str) -> dict[str, Any]:
    return {"IpRanges": [{"CidrIp": block}]}


def members(of: str) -> dict[str, Any]:
    return {"UserIdGroupPairs": [{"GroupId": of}]}


def connects(frm: Node, to: Node, port: int) -> bool:
    """Does TCP from one node reach a listener of the other's?"""
    with to.netns.run(socket.create_server, ("", port)):
        try:
            frm.netns.run(socket.create_connection, (to.address, port), 0.3).close()
        except OSError:
            return False
        return True


def ping(frm: Node, to: str) -> bool:
    try:
        return "1 received" in frm.netns.command("ping", "-c1", "-W0.3", to)
    except RuntimeError:
        return False


def test_a_new_group_lets_everything_out_and_nothing_in(vpc: SmallVpc) -> None:
    """The answer comes back to who asked; nobody else may begin."""
    eni = wear(vpc, vpc.one, group(vpc, "closed"))
    vpc.call(
        "AuthorizeSecurityGroupIngress",
        GroupId=vpc.held(vpc.two)[0]["Groups"][0]["GroupId"],
        IpPermissions=[{"IpProtocol": "-1", **cidr("0.0.0.0/0")}],
    )
    assert ping(vpc.one, vpc.two.address)
    assert connects(vpc.one, vpc.two, 8080)
    assert vpc.fabric.refusals() == {}
    assert not ping(vpc.two, vpc.one.address)
    assert not connects(vpc.two, vpc.one, 8080)
    refused = vpc.fabric.refusals()
    assert refused.keys() == {(eni, "ingress", vpc.two.address, vpc.one.address)}
    assert vpc.fabric.drops() == {}


def test_a_port_of_a_protocol_is_opened_and_closed_while_packets_flow(vpc: SmallVpc) -> None:
    """Authorize and revoke work at once; another port stays shut."""
    opened_for = group(vpc, "web")
    wear(vpc, vpc.one, opened_for)
    rule = [tcp(80, **cidr(f"{vpc.two.address}/32"))]
    assert not connects(vpc.two, vpc.one, 80)
    vpc.call("AuthorizeSecurityGroupIngress", GroupId=opened_for, IpPermissions=rule)
    assert connects(vpc.two, vpc.one, 80)
    assert not connects(vpc.two, vpc.one, 81)
    vpc.call("RevokeSecurityGroupIngress", GroupId=opened_for, IpPermissions=rule)
    assert not connects(vpc.two, vpc.one, 80)


def test_a_group_as_source_means_its_members_and_all_their_addresses(vpc: SmallVpc) -> None:
    """Also an address assigned later, and no longer one that was given back."""
    inner, outer = group(vpc, "inner"), group(vpc, "outer")
    wear(vpc, vpc.one, inner)
    wear(vpc, vpc.two, outer)
    vpc.call(
        "AuthorizeSecurityGroupIngress",
        GroupId=inner,
        IpPermissions=[{"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, **members(outer)}],
    )
    assert ping(vpc.two, vpc.one.address)
    assert not connects(vpc.two, vpc.one, 80)
    answer = vpc.assign(vpc.held(vpc.two)[0], SecondaryPrivateIpAddressCount=1)
    extra = answer["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    vpc.two.netns.command("ip", "address", "add", f"{extra}/32", "dev", "eth0")
    vpc.two.netns.command("ping", "-c1", "-W0.5", "-I", extra, vpc.one.address)
    wear(vpc, vpc.two, group(vpc, "another"))
    assert not ping(vpc.two, vpc.one.address)


def test_without_a_rule_for_it_nothing_leaves(vpc: SmallVpc) -> None:
    """An egress rule can be taken away, the metadata service stays within reach."""
    shut = group(vpc, "shut")
    every = [{"IpProtocol": "-1", **cidr("0.0.0.0/0")}]
    vpc.call("RevokeSecurityGroupEgress", GroupId=shut, IpPermissions=every)
    eni = wear(vpc, vpc.one, shut)
    assert not ping(vpc.one, vpc.two.address)
    key = (eni, "egress", vpc.one.address, vpc.two.address)
    assert vpc.fabric.refusals() == {key: 1}
    assert ping(vpc.one, "169.254.169.254")


def test_a_reply_by_another_interface_is_not_known_there(vpc: SmallVpc) -> None:
    """Each interface remembers for itself: the asymmetric path breaks as it does in AWS."""
    shut = group(vpc, "shut")
    every = [{"IpProtocol": "-1", **cidr("0.0.0.0/0")}]
    vpc.call("RevokeSecurityGroupEgress", GroupId=shut, IpPermissions=every)
    eni = vpc.attach(vpc.one, Groups=[shut])
    other = eni["NetworkInterfaceId"]
    vpc.call(
        "ModifyNetworkInterfaceAttribute",
        NetworkInterfaceId=other,
        SourceDestCheck={"Value": False},
    )
    router = vpc.fabric.gateway(eni["SubnetId"]).ip
    lines = (
        "link set eth1 up",
        f"route add {router} dev eth1 scope link table 2",
        f"route add default via {router} dev eth1 table 2",
    )
    vpc.one.netns.command("ip", "-batch", "-", stdin="\n".join(lines))
    vpc.fabric.await_link(other)
    assert ping(vpc.two, vpc.one.address)
    vpc.one.netns.sysctl("ipv4/conf/all/rp_filter", 2)  # or the request would not be taken any more
    vpc.one.netns.command("ip", "rule", "add", "from", vpc.one.address, "lookup", "2")
    assert not ping(vpc.two, vpc.one.address)
    key = (other, "egress", vpc.one.address, vpc.two.address)
    assert vpc.fabric.refusals() == {key: 1}


def test_what_a_port_admitted_goes_on_when_the_rule_is_gone(vpc: SmallVpc) -> None:
    """Tracked connections live on; only new ones are judged by the new rules."""
    web = group(vpc, "web")
    wear(vpc, vpc.one, web)
    rule = [tcp(80, **cidr("10.0.0.0/16"))]
    vpc.call("AuthorizeSecurityGroupIngress", GroupId=web, IpPermissions=rule)
    with vpc.one.netns.run(socket.create_server, ("", 80)) as server:
        client = vpc.two.netns.run(socket.create_connection, (vpc.one.address, 80), 1)
        served, _ = server.accept()
        vpc.call("RevokeSecurityGroupIngress", GroupId=web, IpPermissions=rule)
        client.sendall(b"still")
        served.settimeout(1)
        assert served.recv(5) == b"still"
        client.close()
        served.close()
    assert not connects(vpc.two, vpc.one, 80)


def test_ipv6_is_judged_alike(vpc: SmallVpc) -> None:
    """A rule for 0.0.0.0/0 admits no IPv6, one for ::/0 does."""
    wide = group(vpc, "wide")
    wear(vpc, vpc.one, wide)
    eni = vpc.held(vpc.one)[0]["NetworkInterfaceId"]
    peer = vpc.held(vpc.two)[0]["NetworkInterfaceId"]
    ours, theirs = (
        vpc.call("AssignIpv6Addresses", NetworkInterfaceId=each, Ipv6AddressCount=1)[
            "AssignedIpv6Addresses"
        ][0]
        for each in (eni, peer)
    )
    vpc.one.netns.command("ip", "address", "add", ours, "dev", "eth0", "nodad")
    vpc.two.netns.command("ip", "address", "add", theirs, "dev", "eth0", "nodad")
    rule = {"IpProtocol": "-1", **cidr("0.0.0.0/0")}
    vpc.call("AuthorizeSecurityGroupIngress", GroupId=wide, IpPermissions=[rule])
    assert ping(vpc.two, vpc.one.address)
    assert not ping(vpc.two, ours)
    rule = {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    vpc.call("AuthorizeSecurityGroupIngress", GroupId=wide, IpPermissions=[rule])
    assert ping(vpc.two, ours)


def test_ec2_shows_the_rules_and_refuses_what_makes_no_sense(vpc: SmallVpc) -> None:
    """Rules of one protocol and range are one permission; twice the same, and the absent, are refused."""
    made = group(vpc, "web")
    both = [tcp(80, **cidr("10.0.0.0/16")), tcp(80, **members(made))]
    vpc.call("AuthorizeSecurityGroupIngress", GroupId=made, IpPermissions=both)
    [shown] = vpc.call("DescribeSecurityGroups", GroupIds=[made])["SecurityGroups"]
    [permission] = shown["IpPermissions"]
    assert permission["FromPort"] == permission["ToPort"] == 80
    assert permission["IpRanges"] == [{"CidrIp": "10.0.0.0/16"}]
    assert permission["UserIdGroupPairs"][0]["GroupId"] == made
    everything = {each["IpProtocol"] for each in shown["IpPermissionsEgress"]}
    assert everything == {"-1"}
    for operation, rules, code in (
        ("AuthorizeSecurityGroupIngress", both[:1], r"InvalidPermission\.Duplicate"),
        ("RevokeSecurityGroupIngress", [tcp(81, **cidr("10.0.0.0/16"))], "NotFound"),
        ("AuthorizeSecurityGroupIngress", [tcp(1, **cidr("nonsense"))], "malformed"),
        ("AuthorizeSecurityGroupIngress", [tcp(1, **members("sg-0123456789abcdef0"))], "NotFound"),
        ("AuthorizeSecurityGroupIngress", [], "ipPermissions"),
    ):
        with pytest.raises(ApiError, match=code):
            vpc.call(operation, GroupId=made, IpPermissions=rules)
