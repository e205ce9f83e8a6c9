"""Filters: every documented one of DescribeNetworkInterfaces, and the rules they all share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fidelity.workshop import Endpoint, Place, Workshop, refused

Eni = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """An attached interface with everything a filter can look at."""

    eni: Eni
    public: dict[str, str]


@pytest.fixture(scope="module")
def known(
    ec2: Any, endpoint: Endpoint, place: Place, blocks: Iterator[int], node: str
) -> Iterator[Known]:
    make = Workshop(ec2, endpoint, place, blocks)
    eni = make.eni(
        Description="found by filter",
        Groups=[place.group],
        Ipv6AddressCount=1,
        SecondaryPrivateIpAddressCount=1,
        TagSpecifications=[
            {"ResourceType": "network-interface", "Tags": [{"Key": "team", "Value": "red*blue"}]}
        ],
    )["NetworkInterfaceId"]
    make.attach(eni, node, index=2)
    elastic = ec2.allocate_address(Domain="vpc")
    association = ec2.associate_address(
        AllocationId=elastic["AllocationId"], NetworkInterfaceId=eni
    )["AssociationId"]
    yield Known(make.shown(eni), {"PublicIp": elastic["PublicIp"]})
    ec2.disassociate_address(AssociationId=association)
    ec2.release_address(AllocationId=elastic["AllocationId"])
    make.close()


def found(ec2: Any, place: Place, *filters: tuple[str, list[str]]) -> list[str]:
    """Ids in our VPC that match all filters."""
    wanted = [("vpc-id", [place.vpc]), *filters]
    reply = ec2.describe_network_interfaces(
        Filters=[{"Name": name, "Values": values} for name, values in wanted]
    )
    return [each["NetworkInterfaceId"] for each in reply["NetworkInterfaces"]]


EVERY: dict[str, Callable[[Eni], str] | str] = {
    "addresses.association.owner-id": lambda e: e["Association"]["IpOwnerId"],
    "addresses.association.public-ip": lambda e: e["Association"]["PublicIp"],
    "addresses.primary": "true",
    "addresses.private-ip-address": lambda e: e["PrivateIpAddresses"][1]["PrivateIpAddress"],
    "association.allocation-id": lambda e: e["Association"]["AllocationId"],
    "association.association-id": lambda e: e["Association"]["AssociationId"],
    "association.ip-owner-id": lambda e: e["Association"]["IpOwnerId"],
    "association.public-dns-name": lambda e: e["Association"]["PublicDnsName"],
    "association.public-ip": lambda e: e["Association"]["PublicIp"],
    "attachment.attach-time": lambda e: e["Attachment"]["AttachTime"].strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    ),
    "attachment.attachment-id": lambda e: e["Attachment"]["AttachmentId"],
    "attachment.delete-on-termination": "false",
    "attachment.device-index": "2",
    "attachment.instance-id": lambda e: e["Attachment"]["InstanceId"],
    "attachment.instance-owner-id": lambda e: e["Attachment"]["InstanceOwnerId"],
    "attachment.status": "attached",
    "availability-zone": lambda e: e["AvailabilityZone"],
    "description": "found by filter",
    "group-id": lambda e: e["Groups"][0]["GroupId"],
    "group-name": lambda e: e["Groups"][0]["GroupName"],
    "interface-type": "interface",
    "ipv6-addresses.ipv6-address": lambda e: e["Ipv6Addresses"][0]["Ipv6Address"],
    "mac-address": lambda e: e["MacAddress"],
    "network-interface-id": lambda e: e["NetworkInterfaceId"],
    "operator.managed": "false",
    "owner-id": lambda e: e["OwnerId"],
    "private-dns-name": lambda e: e["PrivateDnsName"],
    "private-ip-address": lambda e: e["PrivateIpAddress"],
    "requester-id": lambda e: e["RequesterId"],
    "requester-managed": "false",
    "source-dest-check": "true",
    "status": "in-use",
    "subnet-id": lambda e: e["SubnetId"],
    "tag-key": "team",
    "tag:team": r"red\*blue",
    "vpc-id": lambda e: e["VpcId"],
}


@pytest.mark.parametrize("name", EVERY)
def test_each_documented_filter_finds_and_excludes(
    ec2: Any, place: Place, known: Known, name: str
) -> None:
    value, mine = EVERY[name], known.eni["NetworkInterfaceId"]
    wanted = value if isinstance(value, str) else value(known.eni)
    assert mine in found(ec2, place, (name, [wanted]))
    assert mine not in found(ec2, place, (name, ["no such value"]))


def test_several_values_are_alternatives(ec2: Any, place: Place, known: Known) -> None:
    mine = known.eni["NetworkInterfaceId"]
    assert found(ec2, place, ("network-interface-id", ["eni-nothing", mine])) == [mine]


def test_several_filters_must_all_match(ec2: Any, place: Place, known: Known) -> None:
    mine = ("network-interface-id", [known.eni["NetworkInterfaceId"]])
    assert found(ec2, place, mine, ("status", ["in-use"])) == mine[1]
    assert found(ec2, place, mine, ("status", ["available"])) == []


@pytest.mark.parametrize("pattern", ["found*", "*filter", "f*by*", "found?by?filter", "*"])
def test_wildcards_match(ec2: Any, place: Place, known: Known, pattern: str) -> None:
    assert known.eni["NetworkInterfaceId"] in found(ec2, place, ("description", [pattern]))


@pytest.mark.parametrize("pattern", ["found", "?found by filter", "Found*", "found*y", ""])
def test_values_match_whole_and_by_case(ec2: Any, place: Place, known: Known, pattern: str) -> None:
    assert known.eni["NetworkInterfaceId"] not in found(ec2, place, ("description", [pattern]))


def test_a_backslash_takes_a_wildcards_meaning(ec2: Any, place: Place, known: Known) -> None:
    mine = known.eni["NetworkInterfaceId"]
    assert found(ec2, place, ("tag:team", [r"red\*blue"])) == [mine]
    assert found(ec2, place, ("tag:team", [r"red\*"])) == []


def test_filters_narrow_ids(ec2: Any, known: Known) -> None:
    reply = ec2.describe_network_interfaces(
        NetworkInterfaceIds=[known.eni["NetworkInterfaceId"]],
        Filters=[{"Name": "status", "Values": ["available"]}],
    )
    assert reply["NetworkInterfaces"] == []


@pytest.mark.parametrize(
    "operation",
    [
        "describe_network_interfaces",
        "describe_instances",
        "describe_subnets",
        "describe_vpcs",
        "describe_security_groups",
        "describe_tags",
        "describe_instance_types",
        "describe_availability_zones",
        "describe_addresses",
    ],
)
def test_an_unknown_filter_is_refused(ec2: Any, operation: str) -> None:
    code, text = refused(getattr(ec2, operation), Filters=[{"Name": "colour", "Values": ["red"]}])
    assert (code, text) == ("InvalidParameterValue", "The filter 'colour' is invalid")


def test_two_hundred_values_are_the_most(ec2: Any, place: Place) -> None:
    values = [f"eni-{number:017x}" for number in range(201)]
    assert found(ec2, place, ("network-interface-id", values[:199])) == []
    code, _ = refused(
        ec2.describe_network_interfaces,
        Filters=[{"Name": "network-interface-id", "Values": values}],
    )
    assert code == "FilterLimitExceeded"


def test_instances_are_found_by_state_and_interface(ec2: Any, node: str, known: Known) -> None:
    for name, value in (
        ("instance-id", node),
        ("network-interface.network-interface-id", known.eni["NetworkInterfaceId"]),
        ("network-interface.addresses.private-ip-address", known.eni["PrivateIpAddress"]),
    ):
        reply = ec2.describe_instances(
            Filters=[
                {"Name": name, "Values": [value]},
                {"Name": "instance-state-name", "Values": ["running"]},
            ]
        )
        [reservation] = reply["Reservations"]
        assert [each["InstanceId"] for each in reservation["Instances"]] == [node]


def test_subnets_are_found_by_vpc_and_zone(ec2: Any, place: Place) -> None:
    reply = ec2.describe_subnets(
        Filters=[
            {"Name": "vpc-id", "Values": [place.vpc]},
            {"Name": "availability-zone", "Values": [place.other_zone]},
        ]
    )
    assert [each["SubnetId"] for each in reply["Subnets"]] == [place.other_subnet]


def test_groups_are_found_by_vpc_and_name(ec2: Any, place: Place) -> None:
    reply = ec2.describe_security_groups(
        Filters=[
            {"Name": "vpc-id", "Values": [place.vpc]},
            {"Name": "group-name", "Values": ["pods"]},
        ]
    )
    assert [each["GroupId"] for each in reply["SecurityGroups"]] == [place.group]


def test_types_are_found_by_their_facts(ec2: Any) -> None:
    reply = ec2.describe_instance_types(
        Filters=[
            {"Name": "instance-type", "Values": ["m5.*"]},
            {"Name": "network-info.maximum-network-interfaces", "Values": ["3"]},
        ]
    )
    assert [each["InstanceType"] for each in reply["InstanceTypes"]] == ["m5.large"]
