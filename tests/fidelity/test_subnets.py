"""VPCs, subnets and security groups: what the interfaces stand on."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, refused


def test_a_subnet_gives_all_but_five_addresses(make: Workshop) -> None:
    assert make.subnet(24)["AvailableIpAddressCount"] == 251


def test_a_subnet_lies_in_its_vpc(ec2: Any, place: Place) -> None:
    code, _ = refused(ec2.create_subnet, VpcId=place.vpc, CidrBlock="10.50.0.0/24")
    assert code == "InvalidSubnet.Range"


@pytest.mark.parametrize("length", [15, 29])
def test_a_subnet_is_between_16_and_28(ec2: Any, place: Place, length: int) -> None:
    code, _ = refused(ec2.create_subnet, VpcId=place.vpc, CidrBlock=f"10.99.0.0/{length}")
    assert code == "InvalidSubnet.Range"


def test_subnets_do_not_overlap(ec2: Any, place: Place) -> None:
    code, _ = refused(ec2.create_subnet, VpcId=place.vpc, CidrBlock=place.subnet_cidr)
    assert code == "InvalidSubnet.Conflict"


def test_what_is_no_cidr_is_refused(ec2: Any, place: Place) -> None:
    code, _ = refused(ec2.create_subnet, VpcId=place.vpc, CidrBlock="10.99")
    assert code == "InvalidParameterValue"


def test_a_subnet_with_an_interface_cannot_be_deleted(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    make.eni(SubnetId=subnet)
    code, text = refused(ec2.delete_subnet, SubnetId=subnet)
    assert (code, text) == (
        "DependencyViolation",
        f"The subnet '{subnet}' has dependencies and cannot be deleted.",
    )


def test_a_group_in_use_cannot_be_deleted(ec2: Any, make: Workshop) -> None:
    group = make.group("in use")
    make.eni(Groups=[group])
    code, text = refused(ec2.delete_security_group, GroupId=group)
    assert (code, text) == ("DependencyViolation", f"resource {group} has a dependent object")


def test_a_group_name_is_used_once_in_a_vpc(ec2: Any, make: Workshop) -> None:
    make.group("only one")
    code, _ = refused(
        ec2.create_security_group,
        GroupName="only one",
        Description="another",
        VpcId=make.place.vpc,
    )
    assert code == "InvalidGroup.Duplicate"


def test_a_vpc_with_subnets_cannot_be_deleted(ec2: Any, place: Place) -> None:
    code, _ = refused(ec2.delete_vpc, VpcId=place.vpc)
    assert code == "DependencyViolation"


@pytest.fixture
def vpc(ec2: Any) -> Iterator[str]:
    """A VPC of the test's own."""
    made = ec2.create_vpc(CidrBlock="10.98.0.0/16")["Vpc"]["VpcId"]
    yield made
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [made]}])["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=made)


def test_a_vpc_can_have_a_second_block(ec2: Any, vpc: str) -> None:
    ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock="100.64.0.0/16")
    [shown] = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"]
    blocks = [each["CidrBlock"] for each in shown["CidrBlockAssociationSet"]]
    assert blocks == ["10.98.0.0/16", "100.64.0.0/16"]
    made = ec2.create_subnet(VpcId=vpc, CidrBlock="100.64.3.0/24")["Subnet"]
    assert made["AvailableIpAddressCount"] == 251


def test_a_vpc_can_have_ipv6_later(ec2: Any, vpc: str) -> None:
    ec2.associate_vpc_cidr_block(VpcId=vpc, AmazonProvidedIpv6CidrBlock=True)
    [shown] = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"]
    [block] = [each["Ipv6CidrBlock"] for each in shown["Ipv6CidrBlockAssociationSet"]]
    wide = ipaddress.IPv6Network(block)
    assert wide.prefixlen == 56
    narrow = str(next(wide.subnets(new_prefix=64)))
    made = ec2.create_subnet(VpcId=vpc, CidrBlock="10.98.1.0/24", Ipv6CidrBlock=narrow)["Subnet"]
    [row] = made["Ipv6CidrBlockAssociationSet"]
    assert row["Ipv6CidrBlock"] == narrow


def test_a_group_of_another_vpc_is_refused(ec2: Any, make: Workshop, vpc: str) -> None:
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.98.2.0/24")["Subnet"]["SubnetId"]
    refused(ec2.create_network_interface, SubnetId=subnet, Groups=[make.place.group])
    [shown] = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]
    assert shown["AvailableIpAddressCount"] == 251


def test_the_region_knows_its_zones(ec2: Any, place: Place) -> None:
    zones = {zone["ZoneName"] for zone in ec2.describe_availability_zones()["AvailabilityZones"]}
    assert {place.zone, place.other_zone} <= zones


def test_a_subnet_in_no_zone_is_refused(ec2: Any, place: Place) -> None:
    code, _ = refused(
        ec2.create_subnet,
        VpcId=place.vpc,
        CidrBlock="10.99.250.0/24",
        AvailabilityZone="nowhere-1a",
    )
    assert code == "InvalidParameterValue"
