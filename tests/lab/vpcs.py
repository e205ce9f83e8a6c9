"""VPCs, their CIDR blocks, and the Region they lie in.

Does not belong here: subnets, security groups.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tests.lab import errors, filters, groups, tags

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

ZONES = "abc"
"""The zone letters of the Region."""

_FILTERS = {
    "tag": "Tags",
    "cidr": "CidrBlock",
    "cidr-block-association.association-id": "CidrBlockAssociationSet.AssociationId",
    "cidr-block-association.cidr-block": "CidrBlockAssociationSet.CidrBlock",
    "cidr-block-association.state": "CidrBlockAssociationSet.CidrBlockState.State",
    "dhcp-options-id": "DhcpOptionsId",
    "ipv6-cidr-block-association.association-id": "Ipv6CidrBlockAssociationSet.AssociationId",
    "ipv6-cidr-block-association.ipv6-cidr-block": "Ipv6CidrBlockAssociationSet.Ipv6CidrBlock",
    "ipv6-cidr-block-association.ipv6-pool": "Ipv6CidrBlockAssociationSet.Ipv6Pool",
    "ipv6-cidr-block-association.state": "Ipv6CidrBlockAssociationSet.Ipv6CidrBlockState.State",
    "is-default": "IsDefault",
    "owner-id": "OwnerId",
    "state": "State",
    "vpc-id": "VpcId",
}


def ipv4_block(text: str, lengths: range, code: str) -> ipaddress.IPv4Network:
    """An IPv4 CIDR of an allowed length, or EC2's refusal; host bits are cut as EC2 does."""
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise errors.bad_value(text, "cidrBlock", "This is not a valid CIDR block.") from None
    if network.prefixlen not in lengths:
        raise errors.ApiError(code, f"The CIDR '{text}' is invalid.")
    return network


def create_vpc(cloud: Cloud, params: Item) -> Item:
    """CreateVpc: /16 to /28, a /56 of IPv6 on request, a default security group."""
    if "CidrBlock" not in params:
        raise errors.missing("cidrBlock")
    block = str(ipv4_block(params["CidrBlock"], range(16, 29), "InvalidVpc.Range"))
    vpc_id = cloud.new_id("vpc")
    vpc: Item = {
        "VpcId": vpc_id,
        "CidrBlock": block,
        "CidrBlockAssociationSet": [_association(cloud, block)],
        "Ipv6CidrBlockAssociationSet": [],
        "DhcpOptionsId": "dopt-0c1d2e3f4a5b6c7d8",
        "InstanceTenancy": params.get("InstanceTenancy", "default"),
        "IsDefault": False,
        "OwnerId": cloud.account,
        "State": "available",
        "Tags": tags.wanted(params, "vpc"),
    }
    if params.get("AmazonProvidedIpv6CidrBlock"):
        vpc["Ipv6CidrBlockAssociationSet"] = [_ipv6_association(cloud)]
    cloud.put("vpc", vpc_id, vpc)
    groups.add(cloud, vpc_id, "default", "default VPC security group")
    return {"Vpc": vpc}


def _association(cloud: Cloud, block: str) -> Item:
    return {
        "AssociationId": cloud.new_id("vpc-cidr-assoc"),
        "CidrBlock": block,
        "CidrBlockState": {"State": "associated"},
    }


def _ipv6_association(cloud: Cloud) -> Item:
    # Never 0 in the last byte, so that every block reads "...00::/56" and is easy to cut.
    start = (0x2A05D018 << 96) | (cloud.rng.getrandbits(16) << 80)
    start |= cloud.rng.randrange(1, 256) << 72
    return {
        "AssociationId": cloud.new_id("vpc-cidr-assoc"),
        "Ipv6CidrBlock": str(ipaddress.IPv6Network((start, 56))),
        "Ipv6CidrBlockState": {"State": "associated"},
        "NetworkBorderGroup": cloud.region,
        "Ipv6Pool": "Amazon",
    }


def associate_vpc_cidr_block(cloud: Cloud, params: Item) -> Item:
    """AssociateVpcCidrBlock: one more IPv4 block, or a /56 from Amazon's pool."""
    vpc = cloud.need("vpc", "vpc", params["VpcId"])
    if params.get("AmazonProvidedIpv6CidrBlock"):
        added = _ipv6_association(cloud)
        known = [*vpc["Ipv6CidrBlockAssociationSet"], added]
        cloud.change("vpc", vpc["VpcId"], Ipv6CidrBlockAssociationSet=known)
        return {"VpcId": vpc["VpcId"], "Ipv6CidrBlockAssociation": added}
    if "CidrBlock" not in params:
        raise errors.missing("cidrBlock")
    network = ipv4_block(params["CidrBlock"], range(16, 29), "InvalidVpc.Range")
    for each in vpc["CidrBlockAssociationSet"]:
        if network.overlaps(ipaddress.IPv4Network(each["CidrBlock"])):
            raise errors.ApiError(
                "CidrConflict", f"The CIDR '{network}' conflicts with another CIDR of the VPC"
            )
    added = _association(cloud, str(network))
    known = [*vpc["CidrBlockAssociationSet"], added]
    cloud.change("vpc", vpc["VpcId"], CidrBlockAssociationSet=known)
    return {"VpcId": vpc["VpcId"], "CidrBlockAssociation": added}


def describe_vpcs(cloud: Cloud, params: Item) -> Item:
    """DescribeVpcs, paged."""
    seen = cloud.seen("vpc", "vpc", params.get("VpcIds"))
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, "VpcId", ids=params.get("VpcIds"))
    return filters.paged("Vpcs", shown, token)


def delete_vpc(cloud: Cloud, params: Item) -> Item:
    """DeleteVpc: refused while a subnet or a security group of its own remains."""
    vpc_id = params["VpcId"]
    cloud.need("vpc", "vpc", vpc_id)
    inside = groups.of_vpc(cloud, vpc_id)
    if any(subnet["VpcId"] == vpc_id for subnet in cloud.scan("subnet")) or len(inside) > 1:
        raise errors.dependency(f"The vpc '{vpc_id}' has dependencies and cannot be deleted.")
    for group in inside:
        cloud.drop("group", group["GroupId"])
    cloud.drop("vpc", vpc_id)
    return {}


def describe_availability_zones(cloud: Cloud, params: Item) -> Item:
    """DescribeAvailabilityZones: the Region's zones, by name, id or filter."""
    short = zone_id_stem(cloud.region)
    zones: list[Item] = [
        {
            "ZoneName": cloud.region + letter,
            "ZoneId": f"{short}-az{number}",
            "RegionName": cloud.region,
            "GroupName": cloud.region,
            "NetworkBorderGroup": cloud.region,
            "State": "available",
            "OptInStatus": "opt-in-not-required",
            "ZoneType": "availability-zone",
            "Messages": [],
        }
        for number, letter in enumerate(ZONES, 1)
    ]
    for member, key in (("ZoneNames", "ZoneName"), ("ZoneIds", "ZoneId")):
        for name in params.get(member) or []:
            if all(zone[key] != name for zone in zones):
                raise errors.value(f"Invalid availability zone: [{name}]")
        if params.get(member):
            zones = [zone for zone in zones if zone[key] in params[member]]
    paths = {
        "zone-name": "ZoneName",
        "zone-id": "ZoneId",
        "region-name": "RegionName",
        "group-name": "GroupName",
        "state": "State",
        "zone-type": "ZoneType",
        "opt-in-status": "OptInStatus",
    }
    return {"AvailabilityZones": filters.select(zones, params.get("Filters"), paths)}


def describe_regions(cloud: Cloud, params: Item) -> Item:
    """DescribeRegions: the one there is."""
    regions: list[Item] = [
        {
            "RegionName": cloud.region,
            "Endpoint": f"ec2.{cloud.region}.amazonaws.com",
            "OptInStatus": "opt-in-not-required",
        }
    ]
    for name in params.get("RegionNames") or []:
        if name != cloud.region:
            raise errors.value(f"Invalid region name: {name}")
    paths = {
        "region-name": "RegionName",
        "endpoint": "Endpoint",
        "opt-in-status": "OptInStatus",
    }
    return {"Regions": filters.select(regions, params.get("Filters"), paths)}


def zone_id_stem(region: str) -> str:
    """eu-west-1 -> euw1, as in the zone id euw1-az1."""
    area, *_, direction, number = region.split("-")
    compound = {"northeast": "ne", "southeast": "se", "northwest": "nw", "southwest": "sw"}
    return area + compound.get(direction, direction[0]) + number


OPERATIONS = {
    "CreateVpc": create_vpc,
    "DescribeVpcs": describe_vpcs,
    "DeleteVpc": delete_vpc,
    "AssociateVpcCidrBlock": associate_vpc_cidr_block,
    "DescribeAvailabilityZones": describe_availability_zones,
    "DescribeRegions": describe_regions,
}
